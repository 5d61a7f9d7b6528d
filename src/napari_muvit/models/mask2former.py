"""Stage 5 of 7: features become logits, by a Mask2Former head (MuViT, sections 3.4 and B.2).

Learned queries look at one another and at the tokens of every level, then each becomes a mask
by its dot product with the features of every pixel; a last convolution turns the masks into
classes. Follows Mask2Former (Cheng et al., CVPR 2022) as far as the paper does: no masked
attention, no matching, one prediction.

Keys are rotated by the patches' places relative to the finest crop's centre, queries are not:
in the words of RoPE, every query sits in the middle of the finest crop, so shifting all boxes
changes nothing.

Axis letters: B batch, L levels, S spatial extent, G patch grid, A spatial axes, N tokens,
D encoder width, W head width, H heads, E width of a head, Q queries, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from napari_muvit.models.layers import Attention, FeedForward, project
from napari_muvit.models.pixel_decoder import Norm, PixelDecoder, convolution
from napari_muvit.models.rope import (
    RotaryTable,
    build_frequencies,
    rotary_table,
    scale_frequencies,
    split_head,
)
from napari_muvit.models.tokens import place_patches

HEAD_WIDTH = 32
"""Width of one attention head of the query layers: 8 heads at the paper's 256."""


class QueryLayer(nn.Module):
    """Self-attention of the queries, cross-attention to the tokens, feed-forward; pre-norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.self_attn = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.cross_attn = nn.LayerNorm(width), Attention(width, heads)
        self.norm3, self.ff = nn.LayerNorm(width), FeedForward(width)

    def forward(self, x: Tensor, context: Tensor, table: RotaryTable | None) -> Tensor:
        """Queries (B, Q, W) after looking at one another and at the context (B, N, W)."""
        normed = self.norm1(x)
        mine, other = self.self_attn, self.cross_attn
        x = x + mine(mine.queries(normed, None), mine.keys_values(normed, None))
        x = x + other(other.queries(self.norm2(x), None), other.keys_values(context, table))
        return cast(Tensor, x + self.ff(self.norm3(x)))


class Mask2Former(nn.Module):
    """Pixel decoder, query layers, masks by dot product, classes by a 3x3 convolution.

    Parameters
    ----------
    dim, num_levels, in_channels, patch_size
        Of the encoder.
    num_classes
        Channels of the logits.
    wavelengths
        Shortest and longest wavelength of the keys' rotation along each axis, world px.
    head_dim
        Width of convolutions and queries; 256 in the paper.
    num_queries
        At least `num_classes`; by default 16, or the number of classes if there are more.
    num_layers
        Query layers.
    """

    def __init__(
        self, dim: int, num_levels: int, in_channels: int, patch_size: Sequence[int],
        num_classes: int, wavelengths: Sequence[tuple[float, float]], head_dim: int = 256,
        norm: Norm = "batch", num_queries: int | None = None, num_layers: int = 2,
    ) -> None:
        super().__init__()
        ndim = len(patch_size)
        queries = max(16, num_classes) if num_queries is None else num_queries
        heads = _count_heads(head_dim)
        self.decoder = PixelDecoder(dim, num_levels, in_channels, patch_size, head_dim, norm)
        self.context = nn.Linear(dim, head_dim, bias=False)
        self.level_embed = nn.Parameter(torch.randn(num_levels, head_dim) * 0.02)
        self.queries = nn.Parameter(torch.randn(queries, head_dim))
        self.layers = nn.ModuleList(QueryLayer(head_dim, heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(head_dim)
        self.mask_mlp = nn.ModuleList(nn.Linear(head_dim, head_dim) for _ in range(3))
        self.classify = convolution(queries, num_classes, 3, ndim, bias=True)
        shares = split_head(head_dim // heads, ndim)
        initial = [scale_frequencies(n, *r) for n, r in zip(shares, wavelengths, strict=True)]
        self.frequencies = build_frequencies(initial, is_trainable=False)

    def forward(self, layers: Sequence[Tensor], image: Tensor, bbox: Tensor) -> Tensor:
        """Logits (B, K, *S); for what goes in see `PixelDecoder.forward`."""
        pixels = self.decoder(layers, image, bbox)
        masks = torch.einsum("bqw,bw...->bq...", self._mask_embeddings(layers[-1], bbox), pixels)
        logits: Tensor = self.classify(masks)
        return logits

    def _mask_embeddings(self, tokens: Tensor, bbox: Tensor) -> Tensor:
        """One embedding for each query, (B, Q, W), scaled for the dot product."""
        normed = functional.layer_norm(tokens, tokens.shape[-1:])
        context = project(self.context, normed).flatten(2, -2)
        context = (context + self.level_embed[:, None]).flatten(1, 2)
        table = self._table(bbox, tokens.shape[2:-1])
        x: Tensor = self.queries.expand(tokens.shape[0], -1, -1)
        for layer in self.layers:
            x = layer(x, context, table)
        x = self.norm(x)
        for i, step in enumerate(self.mask_mlp):
            x = project(cast(nn.Linear, step), functional.relu(x) if i else x)
        return cast(Tensor, x * x.shape[-1] ** -0.5)

    def _table(self, bbox: Tensor, grid: Sequence[int]) -> RotaryTable | None:
        """Cosine and sine for every key, around the finest crop's centre."""
        dtype = next(self.frequencies.buffers()).dtype
        places = place_patches(
            bbox, grid, "centre", coarsest=0, device=self.queries.device, dtype=dtype
        )
        return rotary_table(places.coords, self.frequencies)


def _count_heads(width: int) -> int:
    """Heads of at least `HEAD_WIDTH` channels that divide `width`."""
    return max(count for count in range(1, max(1, width // HEAD_WIDTH) + 1) if width % count == 0)
