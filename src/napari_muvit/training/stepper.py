"""One optimizer step that happens wholly or not at all. MuViT, supplement A.2 and A.3."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor, nn

from napari_muvit.errors import MuvitError, RunError
from napari_muvit.models.devices import is_out_of_memory, widest_float
from napari_muvit.training.control import Control, StoppedError
from napari_muvit.training.device import Numerics
from napari_muvit.training.loader import Batch, move_batch, split_batch
from napari_muvit.training.parallel import Parallel, meeting_place
from napari_muvit.training.schedule import rate_at
from napari_muvit.training.settings import Settings
from napari_muvit.training.task import StepSeed, Task

FUSED = frozenset({"cpu", "cuda"})
"""Kinds of device on which every torch that we take has AdamW as one kernel."""

DROPOUT = 1
"""Purpose number of the seed for what the modules draw themselves."""


class Outcome(IntEnum):
    """What became of a step; processes agree on the highest."""

    DONE = 0
    STOPPED = 1
    OUT_OF_MEMORY = 2
    FAILED = 3


class Stepper:
    """Takes optimizer steps on a task.

    A step that is stopped, or that runs out of memory, leaves weights, running statistics
    and optimizer as they were.
    """

    def __init__(
        self, task: Task, settings: Settings, numerics: Numerics, parallel: Parallel,
        control: Control,
    ) -> None:
        self.task, self.settings, self.numerics = task, settings, numerics
        self.device = numerics.device
        self.parallel, self.control = parallel, control
        groups = [{**group, "lr": settings.learning_rate * group.get("rate", 1.0)}
                  for group in task.parameter_groups()]
        self.optimizer = torch.optim.AdamW(
            groups, lr=settings.learning_rate, betas=task.betas,
            weight_decay=settings.weight_decay, fused=self.device.type in FUSED,
        )
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

    def load_optimizer(self, state: dict[str, Any]) -> None:
        """Go on from an optimizer's `state`, which may have been saved on another device."""
        is_fused = self.device.type in FUSED
        groups = [{**group, "fused": is_fused} for group in state["param_groups"]]
        self.optimizer.load_state_dict({**state, "param_groups": groups})

    def step(self, batch: Batch, step: int, parts: int) -> tuple[float, Outcome]:
        """The loss of one step taken on the local `batch` in `parts` pieces.

        With `Outcome.OUT_OF_MEMORY` nothing has changed and the caller may try more pieces.

        Raises
        ------
        StoppedError
            If a stop was asked for, here or in another process.
        RunError
            If the loss or its gradient is not finite; the message names the sample.
        """
        before = [buffer.clone() for buffer in self.task.modules.buffers()]
        loss, outcome, error = self._attempt(batch, step, parts)
        agreed = Outcome(self.parallel.highest(outcome, self._meeting))
        if agreed is not Outcome.DONE:
            self._undo(before)
            if agreed is Outcome.STOPPED:
                raise StoppedError
            if agreed is Outcome.OUT_OF_MEMORY:
                return math.nan, agreed
            raise error or RunError("another process of this run failed; its message says why.")
        loss = self.parallel.sum(loss.to(self._meeting))
        self.parallel.sum_gradients(self.parameters)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        # The only place where a step waits for its device.
        total, length = torch.stack([loss.to(norm.device), norm.to(loss.dtype)]).tolist()
        if not (math.isfinite(total) and math.isfinite(length)):
            self._undo(before)
            raise self._not_finite(batch, step, total)
        if length > self.settings.clip:  # where it is not, a product by one is saved
            nn.utils.clip_grads_with_norm_(self.parameters, self.settings.clip, norm)
        self._set_rates(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total, Outcome.DONE

    def sum(self, values: Tensor) -> Tensor:
        """`values` summed over processes, on the CPU."""
        if self.parallel.world == 1:
            return values.cpu()
        return self.parallel.sum(values.to(self._meeting)).cpu()

    @property
    def _meeting(self) -> torch.device:
        return meeting_place(self.device)

    def rate(self, step: int) -> float:
        """The learning rate of step `step`, before each group's own factor."""
        s = self.settings
        return rate_at(step, s.steps, s.learning_rate, s.warmup)

    def _set_rates(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step) * group.get("rate", 1.0)

    def _attempt(
        self, batch: Batch, step: int, parts: int
    ) -> tuple[Tensor, Outcome, Exception | None]:
        exact = widest_float(self.device)
        loss = torch.zeros((), dtype=exact, device=self.device)
        self.optimizer.zero_grad(set_to_none=True)
        totals = self.sum(self.task.totals(batch)).to(exact)
        try:
            with self.control.interruptible(self.task.modules), self._seeded(step):
                for part in split_batch(batch, parts):
                    with self.numerics():
                        share = self.task.loss(move_batch(part, self.device), totals)
                        share.backward()
                    loss += share.detach().to(exact)
        except StoppedError:
            return loss, Outcome.STOPPED, None
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                return loss, Outcome.OUT_OF_MEMORY, None
            if self.control.is_stopping:  # autograd may wrap what a hook raises
                return loss, Outcome.STOPPED, None
            return loss, Outcome.FAILED, error
        except MuvitError as error:
            return loss, Outcome.FAILED, error
        return loss, Outcome.DONE, None

    @contextmanager
    def _seeded(self, step: int) -> Iterator[None]:
        """What modules draw themselves (dropout) derives from the step, and leaks nowhere."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            seed = StepSeed(self.settings.seed, step)
            torch.manual_seed(seed.number(DROPOUT + 100 * self.parallel.rank))
            yield

    def _undo(self, buffers: list[Tensor]) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, value in zip(self.task.modules.buffers(), buffers, strict=True):
                buffer.copy_(value)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _not_finite(self, batch: Batch, step: int, loss: float) -> RunError:
        self.task.modules.eval()  # batch statistics of a single sample do not exist
        places = find_samples(batch, self._is_finite)
        # Every process says it all: the first one, which keeps the records, may not be at fault.
        named = self.parallel.gather([self.task.place(batch, index) for index in places[:3]])
        where = "; ".join(named) if named else "no single sample, but the batch as a whole"
        what = "loss" if not math.isfinite(loss) else "gradient"
        return RunError(
            f"the {what} of step {step + 1} is not finite. It comes from: {where}. Look at the "
            "image there (nan or infinite values?), or lower the learning rate or take precision "
            "fp32, and resume; the last checkpoint is whole."
        )

    @torch.no_grad()
    def _is_finite(self, part: Batch) -> bool:
        totals = self.task.totals(part).to(widest_float(self.device))
        with self.numerics():
            return bool(torch.isfinite(self.task.loss(move_batch(part, self.device), totals)))


def find_samples(batch: Batch, is_fine: Callable[[Batch], bool]) -> list[int]:
    """Numbers of the samples in a batch that are not fine on their own."""
    size = len(next(iter(batch.values())))
    parts = split_batch(batch, size)
    return [index for index, part in enumerate(parts) if not is_fine(part)]
