"""Stage 4 of 7, cached: coarse crops are encoded once, fine tiles look at them.

With ``attention_mode="coarse_to_fine"`` coarse tokens never look at finer ones, so their keys
and values are the same for every fine tile inside one coarse crop.

Axis letters: B batch, Lc and Lf coarse and fine levels, Nc and Nf their tokens, N = Nf + Nc,
D width, A spatial axes, H heads, E head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from napari_muvit.errors import InputError
from napari_muvit.models.layers import KeysValues, level_groups

if TYPE_CHECKING:
    from napari_muvit.models.encoder import Encoder


@dataclass(frozen=True)
class Context:
    """What fine tiles need of the coarse levels.

    ``keys_values`` (B, H, Nc, E) and ``outputs`` (B, Nc, D) of every layer, ``origin`` (B, A)
    and ``absolute`` coordinates (B, Nc, A) in world px, ``num_levels`` Lc.
    """

    keys_values: tuple[KeysValues, ...]
    outputs: tuple[Tensor, ...]
    origin: Tensor
    absolute: Tensor
    num_levels: int


def encode_context(encoder: Encoder, x_coarse: Tensor, bbox_coarse: Tensor) -> Context:
    """See `Encoder.encode_context`."""
    _check_mode(encoder)
    num_levels = x_coarse.shape[1]
    rows = slice(len(encoder.levels) - num_levels, None)
    tokens = encoder.tokenize(x_coarse, bbox_coarse, rows=rows)
    pattern = level_groups("coarse_to_fine", range(num_levels), math.prod(tokens.grid))
    x, keys_values, outputs = tokens.x, [], []
    for layer in encoder.blocks:
        own = layer.keys_values(x, layer.table(tokens.coords))
        x = layer(x, tokens.coords, pattern, own)
        keys_values.append(own)
        outputs.append(x)
    return Context(tuple(keys_values), tuple(outputs), tokens.origin, tokens.absolute, num_levels)


def encode_fine(
    encoder: Encoder, x_fine: Tensor, bbox_fine: Tensor, context: Context,
    keep: Sequence[int] | None,
) -> tuple[Any, ...]:
    """See `Encoder.encode_fine`."""
    _check_mode(encoder)
    batch, num_fine = x_fine.shape[0], len(encoder.levels) - context.num_levels
    origin = context.origin.expand(batch, -1)
    tokens = encoder.tokenize(x_fine, bbox_fine, rows=slice(0, num_fine), origin=origin)
    num_patches, num_coarse = math.prod(tokens.grid), context.absolute.shape[1]
    total = num_fine * num_patches + num_coarse
    pattern = tuple(
        (slice(i * num_patches, (i + 1) * num_patches), slice(i * num_patches, total))
        for i in range(num_fine)
    )
    x, kept = tokens.x, []
    for i, (layer, cached) in enumerate(zip(encoder.blocks, context.keys_values, strict=True)):
        own = layer.keys_values(x, layer.table(tokens.coords))
        both = tuple(
            torch.cat([mine, theirs.expand(batch, -1, -1, -1)], dim=2)
            for mine, theirs in zip(own, cached, strict=True)
        )
        x = layer(x, tokens.coords, pattern, both)
        if keep is not None and i in keep:
            kept.append(torch.cat([x, context.outputs[i].expand(batch, -1, -1)], dim=1))
    level_idx = tokens.level_idx.repeat(batch, 1)
    if keep is None:
        return x, tokens.absolute, level_idx
    return x, tokens.absolute, level_idx, tuple(kept)


def _check_mode(encoder: Encoder) -> None:
    is_ordered = list(encoder.ranks) == sorted(encoder.ranks)
    if encoder.attention_mode != "coarse_to_fine" or not is_ordered:
        raise InputError(
            f"attention_mode is {encoder.attention_mode!r} with levels {encoder.levels}; coarse "
            "levels can be encoded once for many fine tiles only with 'coarse_to_fine' and "
            "ascending levels. Call the encoder itself."
        )
