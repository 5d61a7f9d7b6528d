"""Stage 4 of 7: tokens become features.

The multi-resolution encoder (MuViT, sections 3.1 and 3.2): the tokens of all levels meet in
one transformer, positions are rotary over world coordinates.

Axis letters: B batch, L levels, C channels, S spatial extent, A spatial axes, n patches of a
level, N = L * n tokens, D width, H heads, E head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from napari_muvit.errors import InputError
from napari_muvit.geometry import TokenCoordinates, parse_size
from napari_muvit.models.coarse_to_fine import (
    Context,
    check_mode,
    encode_context,
    encode_fine,
)
from napari_muvit.models.embedding import CropEmbedding, Number, check_choice, level_rows
from napari_muvit.models.layers import (
    ATTENTION_MODES,
    AttentionMode,
    Pattern,
    TransformerLayer,
    attention_weights,
    level_groups,
    level_mask,
    take,
)
from napari_muvit.models.masking import Mask, MaskingMode, MaskRule, draw_mask
from napari_muvit.models.rope import (
    ROTARY_MODES,
    RopeFrequencies,
    RotaryMode,
    base_frequencies,
    build_frequencies,
    scale_frequencies,
    split_head,
    wavelength_range,
)
from napari_muvit.models.tokens import Patches, patch_grid


class Encoder(CropEmbedding):
    """Multi-resolution vision transformer over nested crops of any number of axes.

    Parameters
    ----------
    in_channels, levels, patch_size, num_layers, dim, heads
        Sizes; `patch_size` is one number or one for every axis, in pixels.
    attention_mode
        ``all``; ``causal`` and ``same`` (official: own and finer levels, own level only);
        ``random`` (one random key for each query); ``coarse_to_fine``: own and coarser levels.
    use_level_embed
        Whether each level adds a learned vector to its tokens.
    rotary_mode, rotary_base
        Trainable frequencies ``per_layer`` or ``shared``, ``fixed`` ones, or ``none``.
    input_space
        Only ``real``, as in the official code.
    dropout
        Of attention weights and inside the feed-forward parts.
    ndim
        Number of spatial axes A; a subclass may fix it.
    token_coordinates
        ``span`` (the paper's formula) or ``centre`` (true patch centres).
    rope_frequencies
        Where frequencies start: ``base`` (powers of `rotary_base`) or ``scales`` (wavelengths
        from two patches of the finest level to twice the coarsest view; needs `crop_size`).
    crop_size
        Pixels of a crop along each axis.
    scaled_axes
        Axes that a level downsamples; all by default, as in the official code.

    Attributes
    ----------
    checkpoint_activations
        Recompute activations in the backward pass to save memory.
    """

    ndim: int = 2

    def __init__(
        self, in_channels: int, levels: Sequence[Number], patch_size: int | Sequence[int],
        num_layers: int = 6, dim: int = 320, heads: int = 4,
        attention_mode: AttentionMode = "all", use_level_embed: bool = True,
        rotary_mode: RotaryMode = "per_layer", rotary_base: int = 10000,
        input_space: str = "real", dropout: float = 0.0, *, ndim: int | None = None,
        token_coordinates: TokenCoordinates = "span", rope_frequencies: RopeFrequencies = "base",
        crop_size: int | Sequence[int] | None = None, scaled_axes: Sequence[int] | None = None,
    ) -> None:
        num_axes = type(self).ndim if ndim is None else ndim
        super().__init__(
            in_channels, levels, patch_size, dim, use_level_embed, num_axes=num_axes,
            token_coordinates=token_coordinates, scaled_axes=scaled_axes,
        )
        check_choice("attention_mode", attention_mode, ATTENTION_MODES)
        check_choice("input_space", input_space, ("real",))
        self.heads, self.num_layers = heads, num_layers
        self.attention_mode, self.input_space = attention_mode, input_space
        self.crop_size = None if crop_size is None else parse_size(crop_size, num_axes)
        self.checkpoint_activations = False
        self._config: dict[str, Any] = {
            "in_channels": in_channels, "levels": self.levels, "patch_size": patch_size,
            "num_layers": num_layers, "dim": dim, "heads": heads,
            "attention_mode": attention_mode, "use_level_embed": use_level_embed,
            "rotary_mode": rotary_mode, "rotary_base": rotary_base, "dropout": dropout,
            "input_space": input_space, "ndim": num_axes,
        }
        self._policies: dict[str, Any] = {
            "token_coordinates": token_coordinates, "rope_frequencies": rope_frequencies,
            "crop_size": self.crop_size, "scaled_axes": self.scaled_axes,
        }
        initial = self._initial_frequencies(rope_frequencies, rotary_base)
        shared, make_own = choose_frequencies(rotary_mode, initial)
        if shared is not None:
            self.rotary_pos_embs = shared
        self.layers = nn.ModuleList(
            TransformerLayer(dim, heads, dropout, make_own()) for _ in range(num_layers)
        )

    def _initial_frequencies(self, policy: str, base: float) -> list[Tensor]:
        check_choice("rope_frequencies", policy, ("base", "scales"))
        shares = split_head(self.dim // self.heads, self.ndim)
        if policy == "base":
            return [base_frequencies(share, base) for share in shares]
        if self.crop_size is None:
            raise InputError(
                "rope_frequencies='scales' was given without crop_size; the longest wavelength "
                "follows from the crop's field of view. Pass crop_size, e.g. 256."
            )
        ranges = wavelength_range(self.patch_size, self.crop_size, self.scales)
        return [scale_frequencies(share, *ends) for share, ends in zip(shares, ranges, strict=True)]

    def config(self) -> dict[str, Any]:
        """All constructor arguments."""
        return {**self._config, **self._policies}

    @property
    def blocks(self) -> list[TransformerLayer]:
        """The layers, by type."""
        return [cast(TransformerLayer, layer) for layer in self.layers]

    def pattern(self, num_patches: int) -> Pattern:
        """Who may look at whom when all tokens of all levels are there."""
        groups = level_groups(self.attention_mode, self.ranks, num_patches)
        if groups is not None or self.attention_mode == "all":
            return groups
        idx = torch.arange(len(self.levels), device=self.weight.device)
        return self.mask(idx.repeat_interleave(num_patches)[None])

    def mask(self, level_idx: Tensor) -> Tensor | None:
        """Who may look at whom, (B, 1, N, N), for tokens of levels (B, N); None for everybody."""
        if self.attention_mode == "all":
            return None
        return level_mask(self.attention_mode, level_idx, self.ranks)

    def run_layers(
        self, x: Tensor, coords: Tensor, pattern: Callable[[], Pattern], keep: Sequence[int] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        """Features of tokens (B, N, D); also the outputs after the layers in `keep`, ascending."""
        kept = []
        for i, layer in enumerate(self.layers):
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = cast(Tensor, checkpoint(layer, x, coords, pattern(), use_reentrant=False))
            else:
                x = layer(x, coords, pattern())
            if i in keep:
                kept.append(x)
        return x, kept

    def forward(
        self, x: Tensor, bbox: Tensor | None = None,
        return_intermediate_idxs: Sequence[int] | None = None,
    ) -> tuple[Any, ...]:
        """Features (B, N, D), world coordinates (B, N, A) and level positions (B, N).

        Parameters
        ----------
        x, bbox
            See `tokenize`.
        return_intermediate_idxs
            Layers whose outputs are appended as a tuple.
        """
        tokens = self.tokenize(x, bbox)
        keep = () if return_intermediate_idxs is None else tuple(return_intermediate_idxs)
        features, kept = self.run_layers(
            tokens.x, tokens.coords, lambda: self.pattern(math.prod(tokens.grid)), keep
        )
        level_idx = tokens.level_idx.repeat(x.shape[0], 1)
        if return_intermediate_idxs is None:
            return features, tokens.absolute, level_idx
        return features, tokens.absolute, level_idx, tuple(kept)

    def forward_layers(
        self, x: Tensor, bbox: Tensor | None = None, layers: Sequence[int] = (0, 5, 11)
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Outputs (B, N, D) after each of `layers`, world coordinates, level positions (B, N)."""
        _, coords, level_idx, kept = self(x, bbox, return_intermediate_idxs=layers)
        return list(kept), coords, level_idx

    def compute_features(self, x: Tensor, bbox: Tensor | None = None) -> Tensor:
        """Features as maps, (B, L, D, *grid)."""
        features: Tensor = self(x, bbox)[0]
        grid = patch_grid(x.shape[3:], self.patch_size)
        return features.reshape(x.shape[0], len(self.levels), *grid, self.dim).movedim(-1, 2)

    def attention_map(
        self, x: Tensor, bbox: Tensor | None = None, layer: int = -1,
        queries: Tensor | None = None,
    ) -> Tensor:
        """How much patches looked at every place of every level, (B, H, Q, L, *grid).

        Each row sums to 1 over levels and places.

        Parameters
        ----------
        x, bbox
            See `tokenize`.
        layer
            Which layer's attention.
        queries
            (Q,) positions of the tokens that look, e.g. ``level_idx * n + patch``; all by default.
        """
        tokens = self.tokenize(x, bbox)
        num_patches = math.prod(tokens.grid)
        before = range(self.num_layers)[layer]
        state = tokens.x
        for earlier in self.blocks[:before]:
            state = earlier(state, tokens.coords, self.pattern(num_patches))
        block = self.blocks[before]
        table = block.table(tokens.coords)
        normed = block.norm1(state)
        q, k = block.attn.queries(normed, table), block.attn.keys_values(normed, table)[0]
        mask = self.mask(tokens.level_idx.expand(x.shape[0], -1))
        if queries is not None:
            q = q[:, :, queries]
            mask = None if mask is None else mask[..., queries, :]
        weights = attention_weights(q, k, mask)
        return weights.reshape(*weights.shape[:3], len(self.levels), *tokens.grid)

    def encode_visible(self, cut: Patches, visible: Tensor) -> Tensor:
        """Features (B, Nv, D) of the visible patches (B, Nv) alone."""
        x, coords = self.embed_some(cut, visible), take(cut.coords, visible)
        level_idx = cut.level_idx[visible]
        return self.run_layers(x, coords, lambda: self.mask(level_idx))[0]

    def draw_mask(
        self, rule: MaskRule, batch: int, num_patches: int,
        generator: torch.Generator | None = None,
    ) -> Mask:
        """A mask for `batch` samples, `num_patches` patches per level, on the encoder's device."""
        mask = draw_mask(rule, batch, self.levels, num_patches, generator)
        return mask.to(self.weight.device)

    def forward_masked(
        self, x: Tensor, bbox: Tensor | None = None, masking_ratio: float = 0.75,
        masking_mode: MaskingMode = "dirichlet", consistent_levels: bool = False,
        generator: torch.Generator | None = None, masking_mode_is_ratio: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Features of a drawn share of the tokens.

        Returns features (B, Nv, D), coordinates (B, N, A), patches (B, N, P), the batch index
        (B, 1), and the positions of visible (B, Nv) and masked (B, Nm) tokens.
        """
        cut = self.cut(x, bbox)
        rule = MaskRule(masking_ratio, masking_mode, masking_mode_is_ratio, consistent_levels)
        mask = self.draw_mask(rule, x.shape[0], math.prod(cut.grid), generator)
        features = self.encode_visible(cut, mask.visible)
        batch_range = torch.arange(x.shape[0], device=x.device)[:, None]
        return features, cut.absolute, cut.patches, batch_range, mask.visible, mask.masked

    def encode_context(self, x_coarse: Tensor, bbox_coarse: Tensor) -> Context:
        """What `encode_fine` needs of the coarse levels, computed once for many fine tiles.

        Parameters
        ----------
        x_coarse
            (B, Lc, C, *S) crops of the last Lc levels.
        bbox_coarse
            (B, Lc, 2, A) their boxes.

        Raises
        ------
        InputError
            If ``attention_mode`` is not ``coarse_to_fine``: only there is the result exact.
        """
        check_mode(self, self.attention_mode)
        return encode_context(self, self.blocks, x_coarse, bbox_coarse)

    def encode_fine(
        self, x_fine: Tensor, bbox_fine: Tensor, context: Context,
        layers: Sequence[int] | None = None,
    ) -> tuple[Any, ...]:
        """As `forward`, computing the fine levels only; coarse ones come from `context`.

        Parameters
        ----------
        x_fine
            (B, Lf, C, *S) crops of the levels that the context lacks.
        bbox_fine
            (B, Lf, 2, A) their boxes.
        context
            Of the same samples, or of one sample for all of them.
        layers
            Layers whose outputs of all tokens are appended as a tuple.

        Returns
        -------
        Features (B, Nf, D) of the fine tokens, their coordinates (B, Nf, A) and level positions
        (B, Nf); with `layers` also their outputs (B, N, D) for fine and coarse tokens.
        """
        check_mode(self, self.attention_mode)
        return encode_fine(self, self.blocks, x_fine, bbox_fine, context, layers)

    def extract_levels(self, levels: Sequence[Number], copy: bool = True) -> Self:
        """An encoder with some of the levels, in the given order.

        Parameters
        ----------
        copy
            If False and nothing changes, the encoder itself is returned.

        Raises
        ------
        InputError
            If the encoder lacks one of the levels.
        """
        wanted = tuple(levels)
        if not copy and wanted == self.levels:
            return self
        rows = level_rows(self.levels, wanted)
        taken = type(self)(**{**self.config(), "levels": wanted})
        state = {k: v for k, v in self.state_dict().items() if not k.startswith("proj.")}
        for new, old in enumerate(rows):
            for key, value in self.proj[old].state_dict().items():
                state[f"proj.{new}.{key}"] = value
        if self.level_embed is not None:
            state["level_embed"] = self.level_embed.detach()[rows]
        taken.load_state_dict(state)
        return taken.to(self.weight).train(self.training)


def choose_frequencies(
    mode: str, initial: list[Tensor]
) -> tuple[nn.ModuleList | None, Callable[[], nn.ModuleList | None]]:
    """Frequencies that all layers share (or None), and what gives each layer its own or these.

    Raises
    ------
    InputError
        If the mode is unknown.
    """
    check_choice("rotary_mode", mode, ROTARY_MODES)
    if mode == "per_layer":
        return None, lambda: build_frequencies(initial, is_trainable=True)
    if mode == "none":
        return None, lambda: None
    shared = build_frequencies(initial, is_trainable=mode == "shared")
    return shared, lambda: shared
