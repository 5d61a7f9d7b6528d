"""Stage 5 of 7: features become a reconstruction; the transformer of one decoder.

Axis letters: B batch, N tokens, M context tokens, D width, A spatial axes.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from napari_muvit.models import kernels
from napari_muvit.models.embedding import check_choice
from napari_muvit.models.encoder import choose_frequencies
from napari_muvit.models.layers import (
    ATTENTION_MODES,
    AttentionMode,
    Context,
    TransformerLayer,
    project,
    take,
)
from napari_muvit.models.masked_keys import MaskedKeys
from napari_muvit.models.rope import RotaryMode, base_frequencies, rotate, split_head
from napari_muvit.models.tokens import Spread

DecoderContext = Literal["all", "visible"]


class Decoder(nn.Module):
    """Light transformer; its first layer looks at a context instead of at the tokens themselves.

    Parameters
    ----------
    in_channels
        Width of the incoming tokens.
    dim, num_layers, heads, rotary_mode, rotary_base, dropout
        See `Encoder`.
    attention_mode
        Checked and kept; decoder tokens carry no levels, so all look at all, as officially.
    ndim
        Number of spatial axes A; a subclass may fix it.
    """

    ndim: int = 2

    def __init__(
        self, in_channels: int, dim: int = 320, num_layers: int = 2, heads: int = 4,
        rotary_mode: RotaryMode = "per_layer", rotary_base: int = 10000, dropout: float = 0.0,
        attention_mode: AttentionMode = "all", *, ndim: int | None = None,
    ) -> None:
        super().__init__()
        self.ndim = type(self).ndim if ndim is None else ndim
        check_choice("attention_mode", attention_mode, ATTENTION_MODES)
        self.dim, self.attention_mode = dim, attention_mode
        self._config: dict[str, Any] = {
            "in_channels": in_channels, "dim": dim, "num_layers": num_layers, "heads": heads,
            "rotary_mode": rotary_mode, "rotary_base": rotary_base, "dropout": dropout,
            "attention_mode": attention_mode, "ndim": self.ndim,
        }
        self.proj = nn.Sequential(nn.Linear(in_channels, dim), nn.GELU(), nn.LayerNorm(dim))
        initial = [base_frequencies(s, rotary_base) for s in split_head(dim // heads, self.ndim)]
        shared, make_own = choose_frequencies(rotary_mode, initial)
        if shared is not None:
            self.rotary_pos_embs = shared
        self.layers = nn.ModuleList(
            TransformerLayer(dim, heads, dropout, make_own()) for _ in range(num_layers)
        )

    def config(self) -> dict[str, Any]:
        """All constructor arguments."""
        return dict(self._config)

    def embed(self, x: Tensor) -> Tensor:
        """Tokens (B, N, in_channels) in the decoder's width, (B, N, D)."""
        linear, activation, norm = self.proj
        return cast(Tensor, norm(activation(project(linear, x))))

    def forward(
        self, x: Tensor, coords: Tensor | None = None, context: Tensor | None = None,
        context_coords: Tensor | None = None,
    ) -> Tensor:
        """Decoded tokens (B, N, D).

        Parameters
        ----------
        x
            (B, N, in_channels) tokens.
        coords
            (B, N, A) world px, or None for no positions. float64 is brought to a common origin.
        context, context_coords
            (B, M, in_channels) and (B, M, A): what the first layer looks at.
        """
        dtype = cast(nn.Linear, self.proj[0]).weight.dtype
        coords, context_coords = _centre(coords, context_coords, dtype)
        x = self.embed(x)
        keys_values = None
        if context is not None and len(self.layers):
            first = cast(TransformerLayer, self.layers[0])
            table = first.table(context_coords)
            keys_values = first.attn.keys_values(self.embed(context), table)
        return self._run(x, coords, keys_values)

    def _run(
        self, x: Tensor, coords: Tensor | None, keys_values: Context | None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        for i, layer in enumerate(self.layers):
            is_last = i == len(self.layers) - 1
            context = keys_values if i == 0 else None
            x = layer(x, coords, None, context, wanted if is_last else None)
        return x

    def decode(
        self, spread: Spread, tokens: Tensor, coords: Tensor, rows: slice,
        wanted: Tensor | None = None, context: DecoderContext = "all",
    ) -> Tensor:
        """Decoded tokens `rows` of a masked sequence, with all or what is visible as context.

        All masked tokens of a level are one vector when they come in, so that everything up to
        the first layer's keys and values is computed once for each of them, and together they
        are one key of that layer; see `masked_keys`. Exact.

        Parameters
        ----------
        spread
            Where the rows of `tokens` belong in the sequence.
        tokens
            (B, Nv + L, in_channels): visible tokens, then one mask token for each level.
        coords
            (B, N, A) centred world px of the whole sequence.
        rows
            The tokens to decode; the context is normalised only where they are all of them
            (officially self-attention).
        wanted
            (B, K) positions among `rows` of the tokens to return.
        context
            What the first layer looks at.
        """
        table = self.embed(tokens)
        x = spread(table, rows)
        if not len(self.layers):
            return x if wanted is None else take(x, wanted)
        first = cast(TransformerLayer, self.layers[0])
        source = first.norm1(table) if rows == slice(None) else table
        look = _visible_context if context == "visible" else _masked_context
        seen = look(first, kernels.product_input(source), spread, coords)
        return self._run(x, coords[:, rows], seen, wanted)


def _visible_context(
    layer: TransformerLayer, source: Tensor, spread: Spread, coords: Tensor
) -> Context:
    """The visible ones of a masked sequence of normed tokens (B, Nv + L, D)."""
    visible = source[:, : spread.visible.shape[1]]
    return layer.attn.keys_values(visible, layer.table(take(coords, spread.visible)))


def _masked_context(
    layer: TransformerLayer, source: Tensor, spread: Spread, coords: Tensor
) -> Context:
    """What `layer` looks at in a masked sequence of normed tokens (B, Nv + L, D)."""
    keys = layer.attn.split(project(layer.attn.to_k, source))
    values = layer.attn.split(project(layer.attn.to_v, source))
    if layer.attn.dropout and layer.training:
        # Dropout is drawn for every masked token, so every one is looked at.
        exact = torch.promote_types(keys.dtype, torch.float32)  # for sums of many gradients
        keys, values = (
            spread(t.transpose(1, 2).flatten(2).to(exact)).to(t.dtype) for t in (keys, values))
        return rotate(layer.attn.split(keys), layer.table(coords)), layer.attn.split(values)
    num_visible = spread.visible.shape[1]
    index = spread.visible[..., None].expand(-1, -1, coords.shape[-1])
    angles = None
    if layer.rotary_pos_embs is not None:
        pairs = zip(layer.rotary_pos_embs, spread.along_axes(coords), strict=True)
        angles = tuple(axis(places) for axis, places in pairs)
    return MaskedKeys(
        keys=rotate(keys[:, :, :num_visible], layer.table(coords.gather(1, index))),
        values=values[:, :, :num_visible], level_keys=keys[:, :, num_visible:],
        level_values=values[:, :, num_visible:], angles=angles, is_masked=spread.is_masked,
    )


def _centre(
    coords: Tensor | None, context_coords: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """Both coordinates relative to one origin where they are more exact than the model."""
    given = [c for c in (coords, context_coords) if c is not None]
    if not given or given[0].dtype != torch.float64 or dtype == torch.float64:
        return coords, context_coords
    both = torch.cat(given, dim=1)
    origin = (both.amin(dim=1, keepdim=True) + both.amax(dim=1, keepdim=True)) / 2
    first, second = (
        None if c is None else (c - origin).float() for c in (coords, context_coords)
    )
    return first, second
