"""Transformer layers: pre-norm attention with rotary positions, then a feed-forward part.

Names of the parameters are those of the official checkpoints
(``attn.to_q``, ``norm1``, ``ff.ff.0.0``, ``rotary_pos_embs.0.inv_freq``).

Axis letters: B batch, N tokens, M context tokens, H heads, E head width, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from napari_muvit.models import kernels
from napari_muvit.models.masked_keys import MaskedKeys
from napari_muvit.models.rope import RotaryTable, rotary_table, rotate

AttentionMode = Literal["all", "causal", "same", "random", "coarse_to_fine"]
ATTENTION_MODES: tuple[str, ...] = ("all", "causal", "same", "random", "coarse_to_fine")

Groups = tuple[tuple[slice, slice], ...]
"""Blocks of queries, in order and complete, each with the block of keys that it may look at."""

Pattern = Tensor | Groups | None
"""Who may look at whom: everybody (None), a boolean mask, or blocks of levels."""

KeysValues = tuple[Tensor, Tensor]
"""Turned keys and values, each (B, H, M, E)."""

Context = KeysValues | MaskedKeys
"""What queries may look at."""


def project(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer`, an `nn.Linear`, applied through the chosen kernel."""
    linear = cast(nn.Linear, layer)
    return kernels.linear(x, linear.weight, linear.bias)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Tokens (B, K, D) of x (B, N, D) at positions (B, K)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def attend(
    q: Tensor, keys_values: Context, pattern: Pattern = None, dropout: float = 0.0
) -> Tensor:
    """Attention of q (B, H, N, E) to keys and values under a pattern, (B, H, N, E)."""
    if isinstance(keys_values, MaskedKeys):
        return keys_values.attend(q)
    k, v = keys_values
    if isinstance(pattern, tuple):
        blocks = [
            attend(q[:, :, rows], (k[:, :, cols], v[:, :, cols]), None, dropout)
            for rows, cols in pattern
        ]
        return torch.cat(blocks, dim=2)
    if dropout:
        # Dropout of attention weights is rare here and no kernel of ours has it.
        return functional.scaled_dot_product_attention(q, k, v, pattern, dropout_p=dropout)
    return kernels.attention(q, k, v, pattern)


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """How much each query looks at each key, (B, H, N, M), rows sum to 1, float32 or better."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(dtype) @ k.to(dtype).transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return cast(Tensor, scores.softmax(dim=-1))


class Attention(nn.Module):
    """Multi-head attention without biases; keys and values may come from elsewhere."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        inner = dim // heads * heads
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_k = nn.Linear(dim, inner, bias=False)
        self.to_v = nn.Linear(dim, inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def split(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) as heads, (B, H, N, E)."""
        batch, num_tokens, width = x_BND.shape
        return x_BND.reshape(batch, num_tokens, self.heads, width // self.heads).transpose(1, 2)

    def queries(self, x_BND: Tensor, table: RotaryTable | None) -> Tensor:
        """Turned queries (B, H, N, E)."""
        return rotate(self.split(project(self.to_q, x_BND)), table)

    def keys_values(self, x_BMD: Tensor, table: RotaryTable | None) -> KeysValues:
        """Turned keys and unturned values of the tokens to look at."""
        keys = rotate(self.split(project(self.to_k, x_BMD)), table)
        return keys, self.split(project(self.to_v, x_BMD))

    def forward(self, q: Tensor, keys_values: Context, pattern: Pattern = None) -> Tensor:
        """Output (B, N, D) of queries (B, H, N, E)."""
        out = attend(q, keys_values, pattern, self.dropout if self.training else 0.0)
        return project(self.to_out, out.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with an exact GELU between them, twice as wide inside."""

    def __init__(self, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        widen = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU())
        self.ff = nn.Sequential(widen, nn.Dropout(dropout), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        widen, dropout, narrow = self.ff
        hidden = functional.gelu(project(cast(nn.Sequential, widen)[0], x))
        return project(narrow, dropout(hidden))


class TransformerLayer(nn.Module):
    """One pre-norm block; ``rotary_pos_embs`` is shared with others or its own."""

    def __init__(
        self, dim: int, heads: int, dropout: float, rotary_pos_embs: nn.ModuleList | None
    ) -> None:
        super().__init__()
        self.attn = Attention(dim, heads, dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim, dropout)
        self.rotary_pos_embs = rotary_pos_embs

    def table(self, coords: Tensor | None) -> RotaryTable | None:
        """This layer's angles for centred coordinates (B, N, A)."""
        return rotary_table(coords, self.rotary_pos_embs)

    def keys_values(self, x: Tensor, table: RotaryTable | None) -> KeysValues:
        """Keys and values of self-attention for tokens (B, N, D)."""
        return self.attn.keys_values(kernels.product_input(self.norm1(x)), table)

    def forward(
        self, x: Tensor, coords: Tensor | None, pattern: Pattern = None,
        context: Context | None = None, wanted: Tensor | None = None,
    ) -> Tensor:
        """(B, N, D) to (B, N, D), or (B, K, D) of the wanted tokens.

        Parameters
        ----------
        coords
            Centred world coordinates (B, N, A), or None for no positions.
        context
            Keys and values to look at instead of the tokens' own.
        wanted
            (B, K) positions of the tokens whose output is needed.
        """
        table = self.table(coords)
        normed = kernels.product_input(self.norm1(x))
        keys_values = self.attn.keys_values(normed, table) if context is None else context
        if wanted is not None:
            x, normed = take(x, wanted), take(normed, wanted)
            table = self.table(None if coords is None else take(coords, wanted))
        x = x + self.attn(self.attn.queries(normed, table), keys_values, pattern)
        return x + cast(Tensor, self.ff(kernels.product_input(self.norm2(x))))


def level_groups(mode: str, ranks: Sequence[int], num_patches: int) -> Groups | None:
    """Blocks for tokens ordered by level, or None where levels are no contiguous blocks of keys.

    Parameters
    ----------
    ranks
        Rank of each level, 0 for the finest.
    num_patches
        Tokens of one level.
    """
    count = len(ranks)
    blocks = [slice(i * num_patches, (i + 1) * num_patches) for i in range(count)]
    if mode == "same":
        return tuple((block, block) for block in blocks)
    if mode == "causal":
        return tuple((block, slice(0, block.stop)) for block in blocks)
    if mode == "coarse_to_fine" and list(ranks) == sorted(ranks):
        return tuple((block, slice(block.start, count * num_patches)) for block in blocks)
    return None


def level_mask(mode: str, level_idx: Tensor, ranks: Sequence[int]) -> Tensor:
    """Boolean mask (B, 1, N, N) from each token's level, True where a query may look at a key.

    Parameters
    ----------
    level_idx
        (B, N) position of each token's level in ``levels``.
    ranks
        Rank of each level, 0 for the finest.
    """
    if mode == "random":
        num = level_idx.shape[1]
        return torch.argsort(torch.rand(num, num, device=level_idx.device), dim=1) == 0
    if mode == "coarse_to_fine" and list(ranks) != sorted(ranks):
        # In arithmetic, since a table of ranks would have to be sent to the device each time.
        parts = [(level_idx == row) * rank for row, rank in enumerate(ranks)]
        level_idx = torch.stack(parts).sum(dim=0)
    rows, cols = level_idx[:, None, :, None], level_idx[:, None, None, :]
    if mode == "same":
        return rows == cols
    return rows <= cols if mode == "coarse_to_fine" else rows >= cols
