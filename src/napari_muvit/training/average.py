"""An exponential moving average of the weights, validated and saved in their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Averages of a module's parameters; buffers (running statistics) are not averaged.

    Early on the decay is ``(1 + n) / (10 + n)`` where that is smaller, so that the average
    forgets the untrained weights.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take in the weights after optimizer step `step` (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in module.named_parameters():
            self.values[name].lerp_(parameter.detach(), 1 - decay)

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Within, `module` holds the averages; afterwards its own weights again, bit for bit."""
        own = {name: p.detach().clone() for name, p in module.named_parameters()}
        _fill(module, self.values)
        try:
            yield
        finally:
            _fill(module, own)

    def load(self, values: dict[str, Tensor]) -> None:
        """Take `values` from a checkpoint, keeping each on its device."""
        for name, value in values.items():
            self.values[name].copy_(value)


@torch.no_grad()
def _fill(module: nn.Module, values: dict[str, Tensor]) -> None:
    for name, parameter in module.named_parameters():
        parameter.copy_(values[name])
