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
from typing import Any

import torch
from torch import Tensor

from napari_muvit.errors import InputError
from napari_muvit.models.embedding import CropEmbedding
from napari_muvit.models.layers import KeysValues, TransformerLayer, level_groups


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


def encode_context(
    embedding: CropEmbedding, blocks: Sequence[TransformerLayer], x_coarse: Tensor,
    bbox_coarse: Tensor | None,
) -> Context:
    """See `Encoder.encode_context`."""
    num_levels = x_coarse.shape[1]
    rows = slice(len(embedding.levels) - num_levels, None)
    tokens = embedding.tokenize(x_coarse, bbox_coarse, rows=rows)
    pattern = level_groups("coarse_to_fine", range(num_levels), math.prod(tokens.grid))
    x, keys_values, outputs = tokens.x, [], []
    for layer in blocks:
        own = layer.keys_values(x, layer.table(tokens.coords))
        x = layer(x, tokens.coords, pattern, own)
        keys_values.append(own)
        outputs.append(x)
    return Context(tuple(keys_values), tuple(outputs), tokens.origin, tokens.absolute, num_levels)


def encode_fine(
    embedding: CropEmbedding, blocks: Sequence[TransformerLayer], x_fine: Tensor,
    bbox_fine: Tensor | None, context: Context, keep: Sequence[int] | None,
) -> tuple[Any, ...]:
    """See `Encoder.encode_fine`."""
    batch, num_fine = x_fine.shape[0], len(embedding.levels) - context.num_levels
    origin = context.origin.expand(batch, -1)
    tokens = embedding.tokenize(x_fine, bbox_fine, rows=slice(0, num_fine), origin=origin)
    num_patches, num_coarse = math.prod(tokens.grid), context.absolute.shape[1]
    total = num_fine * num_patches + num_coarse
    pattern = tuple(
        (slice(i * num_patches, (i + 1) * num_patches), slice(i * num_patches, total))
        for i in range(num_fine)
    )
    x, kept = tokens.x, []
    for i, (layer, cached) in enumerate(zip(blocks, context.keys_values, strict=True)):
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


def check_mode(embedding: CropEmbedding, attention_mode: str) -> None:
    """Refuse models whose coarse tokens look at finer ones.

    Raises
    ------
    InputError
        If the mode is another, or levels do not ascend.
    """
    is_ordered = list(embedding.ranks) == sorted(embedding.ranks)
    if attention_mode != "coarse_to_fine" or not is_ordered:
        raise InputError(
            f"attention_mode is {attention_mode!r} with levels {embedding.levels}; coarse levels "
            "can be encoded once for many fine tiles only with 'coarse_to_fine' and ascending "
            "levels. Call the encoder itself."
        )
