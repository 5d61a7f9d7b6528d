"""Attention to a masked sequence without looking at every masked token.

When a masked sequence enters a decoder, all masked tokens of a level are one vector: their
values are equal and their keys differ by their rotary angle alone. Angles belong to axes, and
so do the channels that they turn, hence the score of a query against the masked token at row i
and column j of a level is ``a[i] + b[j]``, and what all of them together contribute to the
softmax is ``exp(a) @ is_masked @ exp(b)``. Each level's masked tokens thus act as one key whose
score is the logarithm of that sum. Exact, for any number of axes, at about a hundredth of the
cost.

Axis letters: B batch, H heads, N queries, Nv visible tokens, L levels, A spatial axes, n_a
patches along axis a, E head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from napari_muvit.models import kernels
from napari_muvit.models.rope import rotate

NEVER = -1e3
"""Score of a level without masked tokens."""
MOST_QUERIES = 1024
"""Queries at a time where there are more than two axes, to bound memory."""


@dataclass(frozen=True)
class MaskedKeys:
    """Keys and values of a masked sequence.

    ``keys`` (turned) and ``values`` (B, H, Nv, E) of the visible tokens; ``level_keys``
    (not turned) and ``level_values`` (B, H, L, E) of the masked ones; ``angles`` of the masked
    keys along every axis, (B, L, n_a, E_a/2) each, or None; ``is_masked`` (B, L, *grid) bool.
    """

    keys: Tensor
    values: Tensor
    level_keys: Tensor
    level_values: Tensor
    angles: tuple[Tensor, ...] | None
    is_masked: Tensor

    def attend(self, q: Tensor) -> Tensor:
        """Attention of turned queries (B, H, N, E), (B, H, N, E)."""
        width = q.shape[-1]
        q, keys, values = self._widen(q, self._level_scores(q) * width**0.5)
        return kernels.attention(q, keys, values, scale=width**-0.5)[..., :width]

    def _widen(self, q: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values with channels whose products are `scores` (B, H, N, L)."""
        first = scores.to(q.dtype)
        parts = [first]
        if first.dtype != scores.dtype:
            parts.append((scores - first).to(q.dtype))  # what half precision lost
        added = len(parts) * scores.shape[-1]
        added_even = -(-added // 8) * 8  # kernels like widths that are multiples of eight
        picks = torch.eye(scores.shape[-1], dtype=q.dtype, device=q.device).repeat(1, len(parts))
        picks = functional.pad(picks, (self.keys.shape[-1], added_even - added))
        picks = picks.expand(*q.shape[:2], -1, -1)
        keys = functional.pad(self.keys, (0, added_even))
        values = torch.cat([self.values, self.level_values], dim=2)
        q = functional.pad(torch.cat([q, *parts], dim=-1), (0, added_even - added))
        return q, torch.cat([keys, picks], dim=2), functional.pad(values, (0, added_even))

    def _level_scores(self, q: Tensor) -> Tensor:
        """What the masked tokens of each level add to the softmax, as a score (B, H, N, L)."""
        wide = torch.promote_types(q.dtype, torch.float32)
        with torch.autocast(q.device.type, enabled=False):
            keys = self.level_keys.to(wide)
            is_masked = self.is_masked.to(wide)
            q = q.to(wide) * q.shape[-1] ** -0.5
            if self.angles is None:
                count = is_masked.flatten(2).sum(dim=-1)[:, None, None]
                return _log(q @ keys.transpose(-1, -2), count, is_masked)
            if len(self.angles) <= 2:
                return _sum_masked(q, keys, is_masked, self.angles)
            parts: list[Any] = [
                checkpoint(
                    _sum_masked, part, keys, is_masked, self.angles, use_reentrant=False,
                    preserve_rng_state=False,
                )
                for part in q.split(MOST_QUERIES, dim=2)
            ]
            return torch.cat(parts, dim=2)


def _log(offset: Tensor, total: Tensor, is_masked: Tensor) -> Tensor:
    """``offset + log(total)``, a score that nobody looks at where a level has no masked token.

    Where every masked token lies so far below the largest score that `total` is 0 (87 in single
    precision), the smallest number stands for it.
    """
    tiny = torch.finfo(total.dtype).tiny
    score = offset + total.clamp(min=tiny).log()
    return torch.where(is_masked.flatten(2).any(dim=-1)[:, None, None], score, NEVER)


def _sum_masked(
    q: Tensor, keys: Tensor, is_masked: Tensor, angles: tuple[Tensor, ...]
) -> Tensor:
    """Logarithm of the summed exponentials of all masked tokens' scores, (B, H, N, L).

    `q` (B, H, N, E) carries the softmax's scale; `keys` (B, H, L, E) are not turned.
    """
    heads, num_queries = q.shape[1:3]
    weights, offset = [], q.new_zeros(())
    first = 0
    for angle in angles:
        share = slice(first, first + 2 * angle.shape[-1])
        scores = _axis_scores(q[..., share], keys[..., share], angle)
        largest = scores.detach().amax(dim=-1)
        weights.append((scores - largest[..., None]).exp())
        offset, first = offset + largest, share.stop
    totals = [
        _contract(is_masked[:, level], [weight[:, :, :, level] for weight in weights])
        for level in range(keys.shape[2])
    ]
    total = torch.stack(totals, dim=-1).unflatten(1, (heads, num_queries))
    return _log(offset, total, is_masked)


def _contract(is_masked: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Sum over a level's grid of `is_masked` (B, *grid) times `weights` (B, H, N, n_a) of all axes.

    Axis after axis is summed up; returns (B, H * N).
    """
    first = weights[0].flatten(1, 2)
    total = first @ is_masked.flatten(2)
    for axis, weight in enumerate(weights[1:], start=2):
        rest = math.prod(is_masked.shape[axis + 1 :])
        total = total.unflatten(-1, (weight.shape[-1], rest))
        total = (total * weight.flatten(1, 2)[..., None]).sum(dim=-2)
    return total[..., 0]


def _axis_scores(q: Tensor, keys: Tensor, angles: Tensor) -> Tensor:
    """Scores (B, H, N, L, n) along one axis, of the channels that it turns."""
    num_levels, count = angles.shape[1:3]
    turned = keys[:, :, :, None].expand(-1, -1, -1, count, -1).flatten(2, 3)
    table = angles.flatten(1, 2)[:, None]
    turned = rotate(turned, (table.cos(), table.sin()))
    scores = q @ turned.transpose(-1, -2)
    return scores.reshape(*scores.shape[:-1], num_levels, count)
