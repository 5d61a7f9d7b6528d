"""What a run looks at without learning from it: validation crops and preview pictures."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from napari_muvit.models.devices import is_out_of_memory
from napari_muvit.training.clock import RunClock
from napari_muvit.training.device import Numerics
from napari_muvit.training.gate import Gate
from napari_muvit.training.loader import Batch, BatchSource, more_parts, move_batch, split_batch
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
    def metrics(self, parts: int = 1) -> dict[str, float]:
        """Validation metrics by name, of all processes.

        Parameters
        ----------
        parts
            Pieces in which each batch is computed; more where memory runs out.

        Raises
        ------
        StoppedError
            If a stop is asked for meanwhile.
        RunError
            If memory runs out with one sample at a time.
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
                    scores, parts = self._scores(self._prepare(batch, index), parts)
                    total += scores
        return self.task.metrics(self.stepper.sum(total))

    def _scores(self, batch: Batch, parts: int) -> tuple[Tensor, int]:
        """Scores of a batch, and in how many pieces it fitted into memory.

        Each process finds that out for itself: they meet for batches and for the sum alone.
        """
        while True:
            try:
                return self._add_scores(split_batch(batch, parts)), parts
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Not before the error is gone, which holds what the pass had made.
            if self.numerics.device.type == "cuda":
                torch.cuda.empty_cache()
            parts = more_parts(len(next(iter(batch.values()))), parts)

    def _add_scores(self, pieces: list[Batch]) -> Tensor:
        total = torch.zeros(self.task.num_scores, dtype=torch.float64)
        for piece in pieces:
            with self.numerics():
                total += self.task.scores(move_batch(piece, self.numerics.device)).cpu()
        return total

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
