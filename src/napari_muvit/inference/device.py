"""Where and how a model runs: its device, its precision and the kernels of its products."""

from __future__ import annotations

import functools
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from napari_muvit.errors import RunError

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16"]
Kernels = tuple[str, str, str]
"""Names of the linear kernel, the attention kernel and the products' precision on a CPU."""

PLAIN: Kernels = ("torch", "torch", "fp32")
SMALL_PRODUCT = 256 * 512
"""Tokens times width below which measuring kernels costs more than it saves."""


def choose_device(name: str) -> torch.device:
    """The device that `name` means here; ``auto`` takes the fastest kind there is.

    Raises
    ------
    RunError
        If the device cannot be used here.
    """
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    kind = name.split(":")[0]
    index = int(name.split(":")[1]) if ":" in name else 0
    if (kind == "cuda" and (not cuda or index >= torch.cuda.device_count())) or (
        kind == "mps" and not mps
    ):
        raise RunError(
            f"device {name!r} cannot be used here; torch {torch.__version__} finds no such "
            "device. Take device auto, or run napari-muvit doctor to see why."
        )
    return torch.device(name)


@dataclass(frozen=True)
class Computing:
    """How forward passes are computed."""

    device: torch.device
    precision: Precision = "fp32"
    kernels: Kernels = PLAIN

    def __call__(self) -> AbstractContextManager[Any]:
        """The context of one forward pass."""
        import torch

        from napari_muvit.models.kernels import KernelChoice, use_kernels

        if self.device.type == "cpu":
            names = ("linear", "attention", "precision")
            choice = KernelChoice.from_dict(dict(zip(names, self.kernels, strict=True)))
            return use_kernels(choice)
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()


def measure_kernels(encoder: Any, device: str, precision: Precision) -> Kernels:
    """The fastest kernels for an encoder on this machine's CPU; plain ones elsewhere.

    Small models are not worth a measurement.
    """
    if choose_device(device).type != "cpu":
        return PLAIN
    grid = [n // p for n, p in zip(encoder.crop_size or (), encoder.patch_size, strict=False)]
    tokens = math.prod(grid) * len(encoder.levels)
    if precision == "fp32" and tokens * encoder.dim < SMALL_PRODUCT:
        return PLAIN
    return _measured(precision, encoder.dim, encoder.heads, tokens)


@functools.cache
def _measured(precision: Precision, dim: int, heads: int, tokens: int) -> Kernels:
    """Measured once in a process: timing noise must not give two jobs different bits."""
    from napari_muvit.models.kernels import choose_kernels

    choice = choose_kernels(precision, dim=dim, heads=heads, tokens=tokens)
    return choice.linear, choice.attention, choice.precision
