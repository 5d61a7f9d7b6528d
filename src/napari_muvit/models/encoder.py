"""Stage 4 of 7: tokens become features.

The multi-resolution encoder (MuViT, sections 3.1 and 3.2): every level has its own patch
embedding, all tokens meet in one transformer, positions are rotary over world coordinates.

Axis letters: B batch, L levels, C channels, S spatial extent, A spatial axes, n patches of a
level, N = L * n tokens, D width, H heads, E head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from napari_muvit.errors import InputError
from napari_muvit.geometry import TokenCoordinates, level_scales, parse_size
from napari_muvit.models.layers import (
    ATTENTION_MODES,
    AttentionMode,
    KeysValues,
    Pattern,
    TransformerLayer,
    attention_weights,
    level_groups,
    level_mask,
    project,
)
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
from napari_muvit.models.tokens import (
    Places,
    Tokens,
    check_boxes,
    check_image,
    naive_boxes,
    patch_grid,
    patchify,
    place_patches,
)

Number = int | float


@dataclass(frozen=True)
class Context:
    """What fine tiles need of the coarse levels: cached by `Encoder.encode_context`.

    ``keys_values`` of every layer, ``outputs`` (B, Nc, D) of every layer, ``origin`` (B, A),
    ``absolute`` coordinates (B, Nc, A), and the number of coarse levels.
    """

    keys_values: tuple[KeysValues, ...]
    outputs: tuple[Tensor, ...]
    origin: Tensor
    absolute: Tensor
    num_levels: int


def plain_levels(levels: Sequence[Number]) -> tuple[Number, ...]:
    """Levels as a tuple of Python numbers, in the given order.

    Raises
    ------
    InputError
        If there is none, or one is not a finite positive number, or one stands twice.
    """
    given = tuple(getattr(level, "item", lambda level=level: level)() for level in levels)
    fine = all(isinstance(v, (int, float)) and math.isfinite(v) and v > 0 for v in given)
    if not given or not fine or len(set(given)) < len(given):
        raise InputError(
            f"levels are {levels!r}; they must be different positive downsampling factors. Pass "
            "for example (1, 8, 32)."
        )
    return given


def check_choice(name: str, value: object, known: Sequence[str]) -> None:
    """Refuse a value that is none of the known names.

    Raises
    ------
    InputError
        Naming the option and its choices.
    """
    if value not in known:
        raise InputError(f"Invalid {name}: {value!r}. It must be one of {', '.join(known)}.")


class Encoder(nn.Module):
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
        super().__init__()
        self.ndim = type(self).ndim if ndim is None else ndim
        check_choice("attention_mode", attention_mode, ATTENTION_MODES)
        check_choice("input_space", input_space, ("real",))
        check_choice("token_coordinates", token_coordinates, ("span", "centre"))
        self.levels = plain_levels(levels)
        self.patch_size = parse_size(patch_size, self.ndim)
        self.in_channels, self.dim, self.heads = in_channels, dim, heads
        self.num_layers = num_layers
        self.attention_mode, self.input_space = attention_mode, input_space
        self.token_coordinates = token_coordinates
        self.crop_size = None if crop_size is None else parse_size(crop_size, self.ndim)
        self.scaled_axes = tuple(range(self.ndim) if scaled_axes is None else scaled_axes)
        self.checkpoint_activations = False
        self._config: dict[str, Any] = {
            "in_channels": in_channels, "levels": self.levels, "patch_size": patch_size,
            "num_layers": num_layers, "dim": dim, "heads": heads,
            "attention_mode": attention_mode, "use_level_embed": use_level_embed,
            "rotary_mode": rotary_mode, "rotary_base": rotary_base, "dropout": dropout,
            "input_space": input_space, "ndim": self.ndim,
        }
        self.extra_config: dict[str, Any] = {
            "token_coordinates": token_coordinates, "rope_frequencies": rope_frequencies,
            "crop_size": self.crop_size, "scaled_axes": self.scaled_axes,
        }
        patch_dim = in_channels * math.prod(self.patch_size)
        self.proj = nn.ModuleList(
            nn.Sequential(nn.Linear(patch_dim, dim), nn.LayerNorm(dim)) for _ in self.levels
        )
        self.level_embed = (
            nn.Parameter(torch.randn(len(self.levels), 1, 1, dim)) if use_level_embed else None
        )
        initial = self._initial_frequencies(rope_frequencies, rotary_base)
        self.rotary_pos_embs, own = choose_frequencies(rotary_mode, initial)
        self.layers = nn.ModuleList(
            TransformerLayer(dim, heads, dropout, own() if own else self.rotary_pos_embs)
            for _ in range(num_layers)
        )

    @property
    def scales(self) -> tuple[tuple[float, ...], ...]:
        """Downsampling factor of every level along every axis, (L, A)."""
        rows = level_scales(self.levels, self.ndim, self.scaled_axes).tolist()
        return tuple(tuple(row) for row in rows)

    @property
    def ranks(self) -> tuple[int, ...]:
        """Rank of each level, 0 for the finest."""
        order = sorted(self.levels)
        return tuple(order.index(level) for level in self.levels)

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

    def patchify(self, x: Tensor) -> Tensor:
        """Images (B, C, *S) as patches (B, n, P), channel last inside a patch."""
        return patchify(x, self.patch_size)

    def patch_space_transform(self, patches: Tensor, inverse: bool = False) -> Tensor:
        """Patches unchanged: ``real`` is the only input space."""
        return patches

    def _place(
        self, size: Sequence[int], bbox: Tensor | None, batch: int, device: torch.device,
        rows: slice = slice(None), origin: Tensor | None = None,
    ) -> Places:
        """Places of the patches of levels `rows`, for crops of `size` px."""
        grid = patch_grid(size, self.patch_size)
        levels = self.levels[rows]
        if bbox is None:
            bbox = naive_boxes(self.scales[rows], size, self.token_coordinates)
            bbox = bbox.to(device).expand(batch, -1, -1, -1)
        check_boxes(bbox, batch, levels, self.ndim)
        frequency = next((p for n, p in self.named_parameters() if n.endswith("inv_freq")), None)
        is_wide = frequency is not None and frequency.dtype == torch.float64
        return place_patches(
            bbox, grid, self.token_coordinates, coarsest=levels.index(max(levels)),
            device=device, dtype=torch.float64 if is_wide else torch.float32, origin=origin,
        )

    def tokenize(self, x: Tensor, bbox: Tensor | None = None) -> Tokens:
        """Embedded patches of nested crops with their world coordinates.

        Parameters
        ----------
        x
            (B, L, C, *S) normalised pixels, floating point.
        bbox
            (B, L, 2, A) outer edges in world px, float32 or float64; concentric by default.

        Raises
        ------
        InputError
            If a shape does not fit, or pixels are integers. Values are never looked at.
        ChannelError
            If the number of channels is wrong.
        """
        return self._tokenize(x, bbox)

    def _tokenize(
        self, x: Tensor, bbox: Tensor | None, rows: slice = slice(None),
        origin: Tensor | None = None,
    ) -> Tokens:
        num_levels = len(self.levels[rows])
        check_image(x, num_levels, self.in_channels, self.ndim)
        size = x.shape[3:]
        places = self._place(size, bbox, x.shape[0], x.device, rows, origin)
        patches = patchify(x, self.patch_size)
        num_patches = patches.shape[2]
        level_idx = torch.arange(len(self.levels), device=x.device)[rows]
        return Tokens(
            x=self._embed(patches, rows), coords=places.coords, absolute=places.absolute,
            origin=places.origin, level_idx=level_idx.repeat_interleave(num_patches),
            patches=patches.flatten(1, 2), grid=patch_grid(size, self.patch_size),
        )

    def _embed(self, patches: Tensor, rows: slice) -> Tensor:
        """Patches (B, L, n, P) as tokens (B, L * n, D), each level by its own embedding."""
        embeddings = list(self.proj)[rows]
        weight = cast(nn.Linear, cast(nn.Sequential, embeddings[0])[0]).weight
        if not torch.is_autocast_enabled(patches.device.type):
            patches = patches.to(weight.dtype)
        tokens = []
        for i, embedding in enumerate(embeddings):
            linear, norm = cast(nn.Sequential, embedding)
            x = norm(project(linear, patches[:, i]))
            if self.level_embed is not None:
                x = x + self.level_embed[rows][i]
            tokens.append(x)
        return torch.cat(tokens, dim=1)

    def patch_embed(
        self, x: Tensor, bbox: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, N, D), their patches (B, N, P) and world coordinates (B, N, A)."""
        tokens = self.tokenize(x, bbox)
        return tokens.x, tokens.patches, tokens.absolute

    def get_patch_coords(self, B: int, L: int, *shape: int, bbox: Tensor | None = None) -> Tensor:
        """World coordinates (B, N, A) of the patches of crops of `shape` px."""
        device = torch.device("cpu") if bbox is None else bbox.device
        return self._place(shape, bbox, B, device).absolute

    def _pattern(self, num_patches: int) -> Pattern:
        """Who may look at whom when all tokens are there."""
        if self.attention_mode == "all":
            return None
        groups = level_groups(self.attention_mode, self.ranks, num_patches)
        if groups is not None:
            return groups
        idx = torch.arange(len(self.levels), device=self._device).repeat_interleave(num_patches)
        return self._mask(idx[None])

    def _mask(self, level_idx: Tensor) -> Tensor | None:
        """The mask (B, 1, N, N) for tokens of the given levels (B, N); None for ``all``."""
        if self.attention_mode == "all":
            return None
        ranks = torch.tensor(self.ranks, device=level_idx.device)
        return level_mask(self.attention_mode, level_idx, ranks)

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device

    def _run(
        self, x: Tensor, coords: Tensor, pattern: Callable[[], Pattern],
        keep: Sequence[int] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        """The layers; also the outputs after the layers in `keep`, in the order of the layers."""
        kept = []
        for i, layer in enumerate(self.layers):
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = checkpoint(layer, x, coords, pattern(), use_reentrant=False)
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
        features, kept = self._run(
            tokens.x, tokens.coords, lambda: self._pattern(math.prod(tokens.grid)), keep
        )
        level_idx = tokens.level_idx.expand(x.shape[0], -1)
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
        grid = patch_grid(x.shape[3:], self.patch_size)
        features = self(x, bbox)[0].unflatten(1, (len(self.levels), *grid))
        return cast(Tensor, features.movedim(-1, 2))

    def config(self) -> dict[str, Any]:
        """All constructor arguments."""
        return {**self._config, **self.extra_config}

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
        state = self.state_dict()
        for key in [k for k in state if k.startswith("proj.")]:
            del state[key]
        for new, old in enumerate(rows):
            for key, value in self.proj[old].state_dict().items():
                state[f"proj.{new}.{key}"] = value
        if self.level_embed is not None:
            state["level_embed"] = self.level_embed.detach()[rows]
        taken.load_state_dict(state)
        return taken.to(self._device).train(self.training)


def level_rows(known: Sequence[Number], wanted: Sequence[Number]) -> list[int]:
    """Positions of the wanted levels among the known.

    Raises
    ------
    InputError
        Naming the first level that is not there.
    """
    for level in wanted:
        if level not in known:
            raise InputError(
                f"Level {level} not found in encoder; its levels are {tuple(known)}. "
                "Choose among these."
            )
    return [known.index(level) for level in wanted]


def choose_frequencies(
    mode: str, initial: list[Tensor]
) -> tuple[nn.ModuleList | None, Callable[[], nn.ModuleList] | None]:
    """Frequencies that all layers share (or None), and a maker of a layer's own (or None).

    Raises
    ------
    InputError
        If the mode is unknown.
    """
    check_choice("rotary_mode", mode, ROTARY_MODES)
    if mode == "per_layer":
        return None, lambda: build_frequencies(initial, is_trainable=True)
    if mode == "none":
        return None, None
    return build_frequencies(initial, is_trainable=mode == "shared"), None
