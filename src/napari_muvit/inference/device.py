"""Where and how a model runs: its device, its precision and the kernels of its products."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16"]
Kernels = tuple[str, str, str]
"""Names of the linear kernel, the attention kernel and the products' precision on a CPU."""

PLAIN: Kernels = ("torch", "torch", "fp32")

SMALL_TILE = 50_000
"""Tokens times width of a nested crop, below which several in one call are faster on a CPU."""


def choose_device(name: str) -> torch.device:
    """The device that `name` means here; see `models.devices.choose_device`."""
    from napari_muvit.models.devices import choose_device as choose

    return choose(name)


@dataclass(frozen=True)
class Computing:
    """How forward passes are computed."""

    device: torch.device
    precision: Precision = "fp32"
    kernels: Kernels = PLAIN

    def __call__(self) -> AbstractContextManager[Any]:
        """The context of one forward pass."""
        from napari_muvit.models.devices import pass_context
        from napari_muvit.models.kernels import KernelChoice

        names = ("linear", "attention", "precision")
        choice = KernelChoice.from_dict(dict(zip(names, self.kernels, strict=True)))
        return pass_context(self.device, self.precision, choice)


def measure_kernels(encoder: Any, device: str, precision: Precision) -> Kernels:
    """The fastest kernels for an encoder on this machine's CPU; plain ones elsewhere.

    Small models are not worth a measurement.
    """
    from napari_muvit.models.kernels import SMALL_PRODUCT

    if choose_device(device).type != "cpu":
        return PLAIN
    tokens = count_tokens(encoder, encoder.crop_size or ())
    if precision == "fp32" and tokens * encoder.dim < SMALL_PRODUCT:
        return PLAIN
    return _measured(precision, encoder.dim, encoder.heads, tokens)


def is_small(encoder: Any, crop_size: Sequence[int]) -> bool:
    """Whether a nested crop is so little work that a call costs about as much as its products."""
    return count_tokens(encoder, crop_size) * int(encoder.dim) < SMALL_TILE


def count_tokens(encoder: Any, crop_size: Sequence[int]) -> int:
    """Tokens of a nested crop."""
    grid = [n // p for n, p in zip(crop_size, encoder.patch_size, strict=False)]
    patches: int = math.prod(grid)
    return patches * len(encoder.levels)


@functools.cache
def _measured(precision: Precision, dim: int, heads: int, tokens: int) -> Kernels:
    """Measured once in a process: timing noise must not give two jobs different bits."""
    from napari_muvit.models.kernels import choose_kernels

    choice = choose_kernels(precision, dim=dim, heads=heads, tokens=tokens)
    return choice.linear, choice.attention, choice.precision
