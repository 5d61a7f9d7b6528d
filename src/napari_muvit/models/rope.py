"""Rotary position embedding over world coordinates (MuViT, section 3.2).

The head is split between the spatial axes; pairs of channels are turned by the angle
``coordinate * frequency`` (interleaved pairs, as in GPT-J). Angles are always computed in
float32 or float64, never in half precision.

Axis letters: B batch, N tokens, H heads, E head width, A spatial axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from napari_muvit.errors import InputError

RotaryMode = Literal["none", "fixed", "shared", "per_layer"]
RopeFrequencies = Literal["base", "scales"]
RotaryTable = tuple[Tensor, Tensor]
"""Cosine and sine of every angle, each (B, 1, N, E/2)."""

ROTARY_MODES: tuple[str, ...] = ("none", "fixed", "shared", "per_layer")
MIN_SHARE = 8
"""Each axis needs more channels of a head than this (official rule)."""


def split_head(head_dim: int, num_axes: int) -> tuple[int, ...]:
    """Channels of a head that each axis turns, (A,): even shares, axis 0 takes the rest.

    Raises
    ------
    InputError
        If a share is not larger than 8, or odd.
    """
    share = 2 * (head_dim // num_axes // 2)
    shares = (head_dim - share * (num_axes - 1), *[share] * (num_axes - 1))
    if min(shares) <= MIN_SHARE or shares[0] % 2:
        least = num_axes * (MIN_SHARE + 2)
        raise InputError(
            f"a head has {head_dim} channels, so its {num_axes} axes get {shares}; each axis needs "
            f"an even number above {MIN_SHARE}. Choose dim and heads such that dim / heads is even "
            f"and at least {least}."
        )
    return shares


def base_frequencies(share: int, base: float) -> Tensor:
    """Radians per world px, (share/2,) float32: ``base ** (-2k/share)`` (RoFormer)."""
    return 1.0 / (base ** (torch.arange(0, share, 2).float() / share))


def scale_frequencies(share: int, shortest: float, longest: float) -> Tensor:
    """Radians per world px, (share/2,) float32, of wavelengths log-spaced between two px values."""
    steps = torch.linspace(0.0, 1.0, share // 2, dtype=torch.float64)
    wavelengths = shortest * (longest / shortest) ** steps
    return (2 * math.pi / wavelengths).float()


def wavelength_range(
    patch_size: Sequence[int], crop_size: Sequence[int], scales: Sequence[Sequence[float]]
) -> tuple[tuple[float, float], ...]:
    """Shortest and longest wavelength of each axis in world px, for ``rope_frequencies="scales"``.

    From two patches of the finest level to twice the field of view of the coarsest.

    Parameters
    ----------
    scales
        (L, A) downsampling factor of every level along every axis.
    """
    ranges = []
    for axis, (patch, crop) in enumerate(zip(patch_size, crop_size, strict=True)):
        factors = [row[axis] for row in scales]
        shortest = 2.0 * patch * min(factors)
        ranges.append((shortest, max(2.0 * crop * max(factors), shortest)))
    return tuple(ranges)


class AxisFrequencies(nn.Module):
    """Frequencies of one axis; ``inv_freq`` (share/2,) is a parameter, or a buffer if fixed."""

    inv_freq: Tensor

    def __init__(self, inv_freq: Tensor, *, is_trainable: bool) -> None:
        super().__init__()
        if is_trainable:
            self.inv_freq = nn.Parameter(inv_freq)
        else:
            self.register_buffer("inv_freq", inv_freq)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move to another device or dtype, but never to half precision."""
        exact = self.inv_freq.detach()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.inv_freq.dtype in (torch.float16, torch.bfloat16):
            self.inv_freq.data = exact.to(self.inv_freq.device)
        return self

    def forward(self, coordinate: Tensor) -> Tensor:
        """Angles (B, N, share/2) of world coordinates (B, N) along this axis."""
        return coordinate[..., None] * self.inv_freq


def build_frequencies(initial: Sequence[Tensor], *, is_trainable: bool) -> nn.ModuleList:
    """One `AxisFrequencies` per axis from their initial values."""
    return nn.ModuleList(AxisFrequencies(f.clone(), is_trainable=is_trainable) for f in initial)


def rotary_table(coords: Tensor | None, frequencies: Any) -> RotaryTable | None:
    """Cosines and sines for centred world coordinates (B, N, A); None where either is missing."""
    if coords is None or frequencies is None:
        return None
    parts = [axis(coords[..., i]) for i, axis in enumerate(frequencies)]
    angles = torch.cat(parts, dim=-1)[:, None]
    return angles.cos(), angles.sin()


def rotate(t_BHNE: Tensor, table: RotaryTable | None) -> Tensor:
    """Queries or keys turned by their angles, in the precision of the table."""
    if table is None:
        return t_BHNE
    cos, sin = table
    pairs = t_BHNE.to(cos.dtype).reshape(*t_BHNE.shape[:-1], cos.shape[-1], 2)
    if t_BHNE.device.type == "cpu" and not torch.compiler.is_compiling():
        # The same products in one pass through memory, five times faster on a CPU.
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin))
        return turned.flatten(-2).to(t_BHNE.dtype)
    even, odd = pairs.unbind(-1)
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return turned.flatten(-2).to(t_BHNE.dtype)
