"""TensorBoard records beside ``metrics.csv``, by the extra ``tensorboard``."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from napari_muvit.errors import require_extra
from napari_muvit.training.events import (
    CheckpointEvent,
    Event,
    FinishedEvent,
    PreviewEvent,
    StepEvent,
    ValidationEvent,
)

OpenWriter = Callable[[str, int], Any]


def check_tensorboard() -> None:
    """Refuse to start where TensorBoard is not installed.

    Raises
    ------
    MissingExtraError
        Naming the pip command.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise require_extra("tensorboard", "tensorboard", "writing TensorBoard records")


class TensorBoardWatcher:
    """Writes losses, rates, metrics and previews of a run into `folder`.

    After a resume, what an earlier process wrote past the checkpoint is marked to be left out.

    Parameters
    ----------
    open_writer
        ``(folder, purge_step)``: something with the methods of torch's ``SummaryWriter``.
    """

    def __init__(self, folder: Path, open_writer: OpenWriter | None = None) -> None:
        self._folder, self._open = folder, open_writer or _summary_writer
        self._writer: Any = None

    def __call__(self, event: Event) -> None:
        """Write what `event` tells."""
        if isinstance(event, StepEvent):
            writer = self._ready(event.step)
            writer.add_scalar("train/loss", event.loss, event.step)
            writer.add_scalar("train/learning_rate", event.learning_rate, event.step)
        elif isinstance(event, ValidationEvent):
            writer = self._ready(event.step + 1)
            known = {name: v for name, v in event.metrics.items() if math.isfinite(v)}
            for name, value in known.items():
                writer.add_scalar(f"val/{name}", value, event.step)
            writer.flush()
        elif isinstance(event, PreviewEvent):
            import imagecodecs

            picture = imagecodecs.png_decode(event.path.read_bytes())
            writer = self._ready(event.step + 1)
            writer.add_image("preview", picture, event.step, dataformats="HWC")
        elif isinstance(event, CheckpointEvent) and self._writer is not None:
            self._writer.flush()
        elif isinstance(event, FinishedEvent):
            self.close()

    def close(self) -> None:
        """End the file; a later event would begin another one."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _ready(self, purge_step: int) -> Any:
        """The writer; earlier records from `purge_step` on do not count."""
        if self._writer is None:
            self._writer = self._open(str(self._folder), purge_step)
        return self._writer


def _summary_writer(folder: str, purge_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder, purge_step=purge_step)
