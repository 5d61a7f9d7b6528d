"""What a run looks at without learning from it: validation crops and preview pictures."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import torch

from napari_muvit.training.clock import RunClock
from napari_muvit.training.device import Numerics
from napari_muvit.training.gate import Gate
from napari_muvit.training.loader import Batch, BatchSource, move_batch
from napari_muvit.training.png import Picture
from napari_muvit.training.settings import Settings
from napari_muvit.training.stepper import Stepper
from napari_muvit.training.task import StepSeed, Task

VALIDATION_STEP = 1 << 40
"""Validation draws its masks as if of steps that no run reaches: the same every time."""


@dataclass(frozen=True)
class Evaluation:
    """Looks at a task's model as it is now.

    Parameters
    ----------
    source, num_batches
        Validation batches, the same each time; None does not validate.
    pictures
        Where previews come from.
    clock
        Told how long each validation batch took.
    """

    task: Task
    settings: Settings
    numerics: Numerics
    stepper: Stepper
    gate: Gate
    source: BatchSource | None
    num_batches: int
    pictures: BatchSource
    clock: RunClock

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """Validation metrics by name, of all processes.

        Raises
        ------
        StoppedError
            If a stop is asked for meanwhile.
        """
        self.task.modules.eval()
        total = torch.zeros(self.task.num_scores, dtype=torch.float64)
        batches = iter(()) if self.source is None else self.source.batches(0, self.num_batches)
        with ExitStack() as stack:
            self._make_interruptible(stack)
            for index in range(self.num_batches):
                with self.clock.measure("validation batch"):
                    batch = self.gate.fetch(batches)
                    if batch is None:  # the last batch may be too small for every process
                        continue
                    prepared = self._prepare(batch, index)
                    with self.numerics():
                        total += self.task.scores(
                            move_batch(prepared, self.numerics.device)).cpu()
        return self.task.metrics(self.stepper.sum(total))

    @torch.no_grad()
    def picture(self) -> Picture:
        """What the model makes of one sample, the same each time.

        Raises
        ------
        StoppedError
            If a stop is asked for meanwhile.
        """
        batch = next(iter(self.pictures.batches(0, 1)))
        first = {name: value[:1] for name, value in batch.items()}
        self.task.modules.eval()
        with ExitStack() as stack:
            self._make_interruptible(stack)
            with self.numerics():
                return self.task.preview(
                    move_batch(self._prepare(first, 0), self.numerics.device))

    def _make_interruptible(self, stack: ExitStack) -> None:
        """Alone, a stop ends a forward pass at its next layer; others would wait for us."""
        if self.gate.parallel.world == 1:
            stack.enter_context(self.gate.control.interruptible(self.task.modules))

    def _prepare(self, batch: Batch, index: int) -> Batch:
        """The batch with what is drawn for it, the same in every validation."""
        seed = StepSeed(self.settings.seed, VALIDATION_STEP + index)
        size = self.settings.batch_size
        return self.task.prepare(batch, seed, size, self.gate.parallel.share(size))
