"""The training state in ``checkpoint/state.pt``: everything that the next step depends on.

One file, written beside and renamed, so that weights, optimizer and counters always belong
together. It is read with ``weights_only=True``: tensors and plain values, never code.
"""

from __future__ import annotations

import dataclasses
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from napari_muvit.errors import CheckpointError
from napari_muvit.training.files import open_whole

FORMAT = 1


@dataclass
class Progress:
    """Where a run is: counters and scores, no tensors.

    All randomness of a step derives from (seed, step), so there is no generator to save.
    """

    step: int = 0
    accumulate: int = 1
    epoch: int = 0
    epoch_loss: float = 0.0
    epoch_steps: int = 0
    best: float | None = None
    best_step: int = 0
    stale: int = 0
    validated_step: int = 0
    preview_step: int = -1
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingState:
    """A checkpoint in memory."""

    progress: Progress
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    average: dict[str, Tensor] | None


def save_state(path: Path, state: TrainingState) -> None:
    """Write `state` at `path`; a crash leaves the previous file whole."""
    content = {
        "format": FORMAT, "progress": dataclasses.asdict(state.progress),
        "weights": state.weights, "optimizer": state.optimizer, "average": state.average,
    }
    path.parent.mkdir(exist_ok=True)
    with open_whole(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch reports a failed write in words of its own
            cause = error.__context__
            raise (cause if isinstance(cause, OSError) else error) from error


def load_state(path: Path) -> TrainingState:
    """The state written at `path`, on the CPU.

    Raises
    ------
    CheckpointError
        If the file is damaged or of another format.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["format"] != FORMAT:
            raise CheckpointError(
                f"the training state {str(path)!r} has format {content['format']!r}; this version "
                f"reads {FORMAT}. Use the napari-muvit version that wrote it."
            )
        return TrainingState(
            Progress(**content["progress"]), content["weights"], content["optimizer"],
            content["average"],
        )
    except (OSError, EOFError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"the training state {str(path)!r} cannot be read ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no details'}). Remove it to start "
            "this run's training again from its first step, or copy it back from a backup."
        ) from error
