"""Several processes as one: ranks, sums and shared decisions.

Process groups come from accelerate's launcher or torchrun, set up by accelerate. Losses are
divided by global totals before the backward pass, so gradients are *summed* over processes;
`torch`'s DistributedDataParallel averages and forbids unused parameters (a frozen encoder, a
level head), which is why the sum is done here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from napari_muvit.errors import RunError

BUCKET = 16_000_000
"""Gradient values summed in one message (64 MB)."""


class Parallel:
    """This process's place among `world` processes; alone, every method does nothing."""

    def __init__(self, rank: int = 0, world: int = 1, local_rank: int = 0) -> None:
        self.rank, self.world, self.local_rank = rank, world, local_rank

    @classmethod
    def from_environment(cls, *, cpu: bool) -> Parallel:
        """Join the process group that the launcher's environment describes, if any.

        Parameters
        ----------
        cpu
            Processes meet on the CPU, because none of them computes on a CUDA device.

        Raises
        ------
        RunError
            If the group is not the one that the launcher announced.
        """
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world <= 1:
            return cls()
        from accelerate import PartialState

        state = PartialState(cpu=cpu, timeout=timedelta(hours=6))
        if state.num_processes != world:
            raise RunError(
                f"the launcher announced {world} processes, but {state.num_processes} found one "
                "another. Start them with torchrun or accelerate launch, and pass --device cpu "
                "where there is no GPU for each."
            )
        return cls(state.process_index, state.num_processes, state.local_process_index)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's part of `count` samples; parts differ by one at most."""
        return slice(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over all processes."""
        if self.world == 1:
            return values
        with self._alive():
            total = values.clone()
            dist.all_reduce(total)
        return total

    def highest(self, value: int, device: torch.device) -> int:
        """The highest `value` of all processes: how they agree on what comes next."""
        if self.world == 1:
            return value
        shared = torch.tensor(value, device=device)
        with self._alive():
            dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return int(shared)

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by its sum over processes; missing ones count as zero."""
        if self.world == 1:
            return
        for bucket in _buckets(list(parameters)):
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = torch.cat([g.flatten() for g in gradients])
            with self._alive():
                dist.all_reduce(flat)
            parts = torch.split(flat, [g.numel() for g in gradients])
            for parameter, part in zip(bucket, parts, strict=True):
                parameter.grad = part.view_as(parameter)

    def gather(self, texts: list[str]) -> list[str]:
        """The texts of all processes, in their order."""
        if self.world == 1:
            return texts
        found: list[Any] = [None] * self.world
        with self._alive():
            dist.all_gather_object(found, texts)
        return [text for part in found for text in part]

    @contextmanager
    def _alive(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise RunError(
                f"another of the {self.world} processes of this run died ({str(error)[:200]}). "
                "The last checkpoint is whole; resume, with any number of processes."
            ) from error


def meeting_place(device: torch.device) -> torch.device:
    """Where processes that compute on `device` meet: NCCL sums on its GPU, gloo on the CPU."""
    return device if device.type == "cuda" else torch.device("cpu")


def _buckets(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for parameter in parameters:
        bucket.append(parameter)
        size += parameter.numel()
        if size >= BUCKET:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket
