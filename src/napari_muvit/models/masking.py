"""Which patches the encoder sees and which it must reconstruct (MuViT, sections 3.3 and A.2).

Masks are drawn on the CPU from a passed generator, so that a seed means the same mask on every
device. Without a generator, torch's global one is used in the official code's order of draws.

Axis letters: B batch, L levels, n patches of a level, N = L * n tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from napari_muvit.errors import InputError

MaskingMode = Literal["dirichlet", "random"] | Sequence[float]
MASKING_MODES: tuple[str, ...] = ("dirichlet", "random")
CONCENTRATION = 0.5
"""Of the Dirichlet distribution over levels (official value)."""


@dataclass(frozen=True)
class Mask:
    """Positions of the visible (B, Nv) and the masked tokens (B, Nm), int64."""

    visible: Tensor
    masked: Tensor

    def to(self, device: torch.device) -> Mask:
        """The same on another device, without waiting for it."""
        if device.type == "cuda" and self.visible.device.type == "cpu":
            pinned = (self.visible.pin_memory(), self.masked.pin_memory())
            return Mask(*(idx.to(device, non_blocking=True) for idx in pinned))
        return Mask(self.visible.to(device), self.masked.to(device))


@dataclass(frozen=True)
class MaskRule:
    """How masks are drawn.

    ``ratio`` of tokens is masked. ``mode`` weighs the levels of *visible* tokens: ``dirichlet``
    draws the weights, ``random`` weighs all alike, numbers are the weights themselves. With
    `is_ratio` the numbers are each level's own masking ratio. `consistent` masks each level
    by itself, so that models with other levels mask the levels they share alike. With
    `per_sample`, Dirichlet weights are drawn for each sample instead of each batch.
    """

    ratio: float
    mode: MaskingMode = "dirichlet"
    is_ratio: bool = False
    consistent: bool = False
    per_sample: bool = False


def mask_from_visible(visible: Tensor, num_tokens: int) -> Mask:
    """The mask with the given visible tokens (B, Nv); the others ascend.

    Raises
    ------
    InputError
        If the shape is not (B, Nv) with Nv at most N, or the dtype is no integer.
    """
    fits = visible.ndim == 2 and visible.shape[1] <= num_tokens
    if not fits or visible.is_floating_point() or visible.dtype == torch.bool:
        raise InputError(
            f"visible_idx has shape {tuple(visible.shape)} and dtype {visible.dtype}; it must hold "
            f"whole numbers below {num_tokens}, one row per sample. Pass positions of tokens."
        )
    visible = visible.long()
    is_masked = torch.ones(visible.shape[0], num_tokens, dtype=torch.uint8, device=visible.device)
    is_masked = is_masked.scatter(1, visible, 0)
    order = torch.argsort(is_masked, dim=1, descending=True, stable=True)
    return Mask(visible, order[:, : num_tokens - visible.shape[1]])


def masked_by_level(
    mask: Mask, num_levels: int, num_patches: int
) -> list[tuple[Tensor, Tensor]]:
    """Of each level, which patches are masked: positions (B, K) in the level, and which count.

    K is the largest number in the batch, at least 1; rows with fewer are filled up with
    positions that do not count. Waits for the device.
    """
    batch = len(mask.masked)
    shape = (batch, num_levels * num_patches)
    is_masked = torch.zeros(shape, dtype=torch.uint8, device=mask.masked.device)
    is_masked = is_masked.scatter(1, mask.masked, 1).reshape(batch, num_levels, num_patches)
    order = is_masked.argsort(dim=-1, descending=True, stable=True)
    is_real = is_masked.gather(-1, order).bool()
    counts = is_real.sum(dim=-1).amax(dim=0).clamp(min=1).tolist()
    return [(order[:, i, :count], is_real[:, i, :count]) for i, count in enumerate(counts)]


def draw_mask(
    rule: MaskRule, batch: int, levels: Sequence[float], num_patches: int,
    generator: torch.Generator | None = None,
) -> Mask:
    """A mask of `batch` samples, drawn on the generator's device (the CPU by default).

    Raises
    ------
    InputError
        If the mode is unknown, or its numbers are not one per level.
    """
    num_tokens = len(levels) * num_patches
    weights = level_numbers(rule.mode, len(levels), is_ratio=rule.is_ratio)
    if rule.is_ratio and weights is not None:
        return _draw_ratios(weights, batch, num_patches, generator)
    num_visible = int(num_tokens * (1 - rule.ratio))
    if rule.consistent:
        if rule.mode == "dirichlet" and generator is None:
            _dirichlet(len(levels), None)  # keeps the official order of global draws
        order = consistent_order(batch, levels, num_patches, rule.ratio, generator)
    else:
        order = _weighted_order(rule, weights, batch, len(levels), num_patches, generator)
    return Mask(order[:, :num_visible], order[:, num_visible:])


def level_numbers(
    mode: MaskingMode, num_levels: int, *, is_ratio: bool = False
) -> tuple[float, ...] | None:
    """The mode's number for each level; None for a named mode.

    Raises
    ------
    InputError
        If the name is unknown, or the numbers are not one per level or out of range.
    """
    if isinstance(mode, str) and mode in MASKING_MODES:
        return None
    values: tuple[float, ...] = ()
    if not isinstance(mode, str):
        values = tuple(float(v) for v in np.asarray(mode, dtype=np.float64).ravel())
    fits = len(values) == num_levels and min(values) >= 0
    if not fits or (max(values) > 1 if is_ratio else sum(values) <= 0):
        rule = "masking ratios between 0 and 1" if is_ratio else "weights, none of them negative"
        raise InputError(
            f"Invalid masking_mode: {mode!r}. It must be 'dirichlet', 'random' or {num_levels} "
            f"numbers, one for each level: {rule}."
        )
    return values


def _device(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device


def _dirichlet(num_levels: int, generator: torch.Generator | None) -> Tensor:
    """One draw of level weights, (L,)."""
    if generator is None:
        return torch.distributions.Dirichlet(torch.full((num_levels,), CONCENTRATION)).sample()
    # Squares of normals are Gamma(1/2); normalised they are Dirichlet(1/2), by public calls only.
    squares = torch.randn(num_levels, generator=generator, device=generator.device).square()
    return squares / squares.sum()


def _weighted_order(
    rule: MaskRule, weights: Sequence[float] | None, batch: int, num_levels: int,
    num_patches: int, generator: torch.Generator | None,
) -> Tensor:
    """All tokens of each sample in the order in which they are drawn, (B, N)."""

    def draw_weights() -> Tensor:
        if weights is not None:
            return torch.tensor(weights, device=_device(generator))
        if rule.mode == "dirichlet":
            return _dirichlet(num_levels, generator)
        return torch.ones(num_levels, device=_device(generator))

    common = None if rule.per_sample else draw_weights()
    rows = []
    for _ in range(batch):
        level_weights = draw_weights() if common is None else common
        chances = level_weights.repeat_interleave(num_patches)
        rows.append(torch.multinomial(chances, len(chances), generator=generator))
    if not rows:
        return torch.empty(0, num_levels * num_patches, dtype=torch.long)
    return torch.stack(rows)


def consistent_order(
    batch: int, levels: Sequence[float], num_patches: int, ratio: float,
    generator: torch.Generator | None,
) -> Tensor:
    """Kept tokens of every level first, then the others ascending, (B, N).

    A level's kept tokens depend on the generator, the sample and the level's value only.
    """
    draw = torch.randint(0, 2**31 - 1, (1,), generator=generator, device=_device(generator))
    seed = int(draw.item())
    num_kept = max(1, round(num_patches * (1.0 - ratio)))
    rows = []
    for sample in range(batch):
        kept = []
        for row, level in enumerate(levels):
            own = torch.Generator()
            own.manual_seed(seed + sample * 424242 + (hash(level) & 0x7FFFFFFF))
            kept.append(torch.randperm(num_patches, generator=own)[:num_kept] + row * num_patches)
        rows.append(torch.cat(kept))
    if not rows:
        return torch.empty(0, len(levels) * num_patches, dtype=torch.long)
    mask = mask_from_visible(torch.stack(rows), len(levels) * num_patches)
    return torch.cat([mask.visible, mask.masked], dim=1)


def _draw_ratios(
    ratios: Sequence[float], batch: int, num_patches: int, generator: torch.Generator | None
) -> Mask:
    """A mask with a ratio of its own for every level."""
    device = _device(generator)
    counts = [int(num_patches * (1 - ratio)) for ratio in ratios]
    rows = []
    for _ in range(batch):
        kept = [
            torch.randperm(num_patches, generator=generator, device=device)[:count]
            + row * num_patches
            for row, count in enumerate(counts)
            if count > 0
        ]
        rows.append(torch.cat(kept) if kept else torch.empty(0, dtype=torch.long, device=device))
    visible = torch.stack(rows) if rows else torch.empty(0, sum(counts), dtype=torch.long)
    return mask_from_visible(visible, len(ratios) * num_patches)
