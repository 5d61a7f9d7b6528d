"""What the engine asks of a task: pretraining, fine-tuning, or a script's own model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from napari_muvit.training.loader import Batch


@dataclass(frozen=True)
class StepSeed:
    """Where a step's randomness comes from: nothing else is random in a run."""

    seed: int
    step: int

    def number(self, purpose: int) -> int:
        """A seed for one purpose of this step."""
        sequence = np.random.SeedSequence([self.seed, self.step, purpose])
        return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))

    def generator(self, purpose: int) -> torch.Generator:
        """A CPU generator for one purpose of this step."""
        return torch.Generator().manual_seed(self.number(purpose))


class Task(Protocol):
    """A model with its loss, scores, pictures and way of being saved.

    `modules` holds everything that is trained (helpers such as level heads included);
    `metric` names the validation metric that decides what is best.
    """

    kind: str
    modules: nn.Module
    metric: str
    higher_is_better: bool
    num_scores: int
    base_rate: float
    betas: tuple[float, float]

    @property
    def metric_names(self) -> Sequence[str]:
        """Names of the validation metrics, in the order of the table's columns."""
        ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters to train, each group with its ``rate`` relative to the learning rate."""
        ...

    def train(self) -> None:
        """Put the modules into training mode; frozen parts stay in evaluation mode."""
        ...

    def prepare(self, batch: Batch, seed: StepSeed, whole: int, part: slice) -> Batch:
        """Add what is drawn for the global batch of `whole` samples, of which this is `part`."""
        ...

    def totals(self, batch: Batch) -> Tensor:
        """(T,) float64 divisors of the loss, to be summed over processes."""
        ...

    def loss(self, batch: Batch, totals: Tensor) -> Tensor:
        """This part's share of the loss: parts add up to the loss of the whole batch."""
        ...

    def scores(self, batch: Batch) -> Tensor:
        """(M,) float64 sums of a validation batch, to be summed over batches and processes."""
        ...

    def metrics(self, scores: Tensor) -> dict[str, float]:
        """Validation metrics from the summed scores."""
        ...

    def preview(self, batch: Batch) -> NDArray[np.uint8]:
        """A picture (height, width, 3) of the first sample of a batch."""
        ...

    def place(self, batch: Batch, index: int) -> str:
        """Where sample `index` of a batch comes from, in words."""
        ...

    def save(self, folder: Path, facts: dict[str, Any]) -> None:
        """Write the model, without training helpers."""
        ...
