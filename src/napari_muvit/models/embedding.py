"""Stage 3 of 7: crops become tokens; the part of the encoder with weights.

Every level has its own patch embedding (Linear, LayerNorm) and a learned vector that says
which level it is (MuViT, section 3.1). Names of the parameters are the official ones.

Axis letters: B batch, L levels, C channels, S spatial extent, A spatial axes, n patches of a
level, N = L * n tokens, P values of a patch, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from napari_muvit.errors import InputError
from napari_muvit.geometry import TokenCoordinates, level_scales, parse_size
from napari_muvit.models import kernels
from napari_muvit.models.devices import copy_to
from napari_muvit.models.layers import project, take
from napari_muvit.models.tokens import (
    Patches,
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


def plain_levels(levels: Sequence[Number]) -> tuple[Number, ...]:
    """Levels as a tuple of Python numbers, in the given order.

    Raises
    ------
    InputError
        If there is none, or one is not a finite positive number, or one stands twice.
    """
    given = tuple(level.item() if hasattr(level, "item") else level for level in levels)
    fine = all(isinstance(v, (int, float)) and math.isfinite(v) and v > 0 for v in given)
    if not given or not fine or len(set(given)) < len(given):
        raise InputError(
            f"levels are {levels!r}; they must be different positive downsampling factors. Pass "
            "for example (1, 8, 32)."
        )
    return given


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
    return [tuple(known).index(level) for level in wanted]


def check_choice(name: str, value: object, known: Sequence[str]) -> None:
    """Refuse a value that is none of the known names.

    Raises
    ------
    InputError
        Naming the option and its choices.
    """
    if value not in known:
        raise InputError(f"Invalid {name}: {value!r}. It must be one of {', '.join(known)}.")


class CropEmbedding(nn.Module):
    """Patch embeddings of nested crops: pixels and boxes in, `Tokens` out.

    Parameters
    ----------
    in_channels, levels, patch_size, dim, use_level_embed
        See `Encoder`.
    num_axes
        Number of spatial axes A.
    token_coordinates
        ``span`` (the paper's formula) or ``centre`` (true patch centres).
    scaled_axes
        Axes that a level downsamples; all by default, as in the official code.
    """

    def __init__(
        self, in_channels: int, levels: Sequence[Number], patch_size: int | Sequence[int],
        dim: int, use_level_embed: bool, *, num_axes: int, token_coordinates: TokenCoordinates,
        scaled_axes: Sequence[int] | None,
    ) -> None:
        super().__init__()
        check_choice("token_coordinates", token_coordinates, ("span", "centre"))
        self.ndim = num_axes
        self.levels = plain_levels(levels)
        self.patch_size = parse_size(patch_size, num_axes)
        self.in_channels, self.dim = in_channels, dim
        self.token_coordinates = token_coordinates
        self.scaled_axes = tuple(range(num_axes) if scaled_axes is None else scaled_axes)
        patch_dim = in_channels * math.prod(self.patch_size)
        self.proj = nn.ModuleList(
            nn.Sequential(nn.Linear(patch_dim, dim), nn.LayerNorm(dim)) for _ in self.levels
        )
        self.level_embed = (
            nn.Parameter(torch.randn(len(self.levels), 1, 1, dim)) if use_level_embed else None
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

    @property
    def weight(self) -> Tensor:
        """Weight of the first patch embedding, (D, P); it tells device and dtype."""
        return cast(nn.Linear, cast(nn.Sequential, self.proj[0])[0]).weight

    def patchify(self, x: Tensor) -> Tensor:
        """Images (B, C, *S) as patches (B, n, P), channel last inside a patch."""
        return patchify(x, self.patch_size)

    def patch_space_transform(self, patches: Tensor, inverse: bool = False) -> Tensor:
        """Patches unchanged: ``real`` is the only input space."""
        return patches

    def place(
        self, size: Sequence[int], bbox: Tensor | None, batch: int, device: torch.device,
        rows: slice = slice(None), origin: Tensor | None = None,
    ) -> Places:
        """Places of the patches of the levels `rows`, for a batch of crops of `size` px."""
        grid = patch_grid(size, self.patch_size)
        levels = self.levels[rows]
        if bbox is None:
            bbox = naive_boxes(self.scales[rows], size, self.token_coordinates)
            bbox = copy_to(bbox, device).expand(batch, -1, -1, -1)
        check_boxes(bbox, batch, levels, self.ndim)
        is_wide = self.weight.dtype == torch.float64
        return place_patches(
            bbox, grid, self.token_coordinates, coarsest=levels.index(max(levels)),
            device=device, dtype=torch.float64 if is_wide else torch.float32, origin=origin,
        )

    def cut(
        self, x: Tensor, bbox: Tensor | None = None, *, rows: slice = slice(None),
        origin: Tensor | None = None,
    ) -> Patches:
        """Patches of nested crops with their world coordinates.

        Parameters
        ----------
        x
            (B, L, C, *S) normalised pixels, floating point.
        bbox
            (B, L, 2, A) outer edges in world px, float32 or float64; concentric by default.
        rows
            The levels that are given, where they are not all.
        origin
            (B, A) world px that coordinates are relative to; by default the centre of the
            coarsest box.

        Raises
        ------
        InputError
            If a shape does not fit, or pixels are integers. Values are never looked at.
        ChannelError
            If the number of channels is wrong.
        """
        check_image(x, len(self.levels[rows]), self.in_channels, self.ndim)
        size = x.shape[3:]
        places = self.place(size, bbox, x.shape[0], x.device, rows, origin)
        patches = patchify(x, self.patch_size)
        level_idx = torch.arange(len(self.levels), device=x.device)[rows]
        return Patches(
            coords=places.coords, absolute=places.absolute, origin=places.origin,
            level_idx=level_idx.repeat_interleave(patches.shape[2]),
            patches=patches.flatten(1, 2), grid=patch_grid(size, self.patch_size),
        )

    def tokenize(
        self, x: Tensor, bbox: Tensor | None = None, *, rows: slice = slice(None),
        origin: Tensor | None = None,
    ) -> Tokens:
        """Embedded patches of nested crops with their world coordinates; see `cut`."""
        cut = self.cut(x, bbox, rows=rows, origin=origin)
        patches = cut.patches.unflatten(1, (x.shape[1], -1))
        return Tokens(**vars(cut), x=self._embed(patches, rows))

    def embed_some(self, cut: Patches, index: Tensor) -> Tensor:
        """Embeddings (B, K, D) of the patches at positions (B, K) alone.

        One product does for all levels: a patch stands in the columns of its level, the other
        columns are zero.
        """
        layers = [cast(nn.Sequential, level) for level in self.proj]
        patches = take(cut.patches, index)
        if not torch.is_autocast_enabled(patches.device.type):
            patches = patches.to(self.weight.dtype)
        level_idx = cut.level_idx[index]
        is_level = functional.one_hot(level_idx, len(layers)).to(patches.dtype)
        wide = (is_level[..., None] * patches[:, :, None]).flatten(2)
        linears = [cast(nn.Linear, linear) for linear, _ in layers]
        norms = [cast(nn.LayerNorm, norm) for _, norm in layers]

        def of_level(rows: list[Tensor]) -> Tensor:
            return functional.embedding(level_idx, torch.stack(rows))

        x = kernels.linear(wide, torch.cat([linear.weight for linear in linears], dim=1))
        x = x + of_level([linear.bias for linear in linears])
        x = functional.layer_norm(x, x.shape[-1:], eps=norms[0].eps)
        x = x * of_level([norm.weight for norm in norms]) + of_level([n.bias for n in norms])
        if self.level_embed is None:
            return x
        return x + functional.embedding(level_idx, self.level_embed.flatten(1))

    def _embed(self, patches: Tensor, rows: slice) -> Tensor:
        """Patches (B, L, n, P) as tokens (B, L * n, D), each level by its own embedding."""
        if not torch.is_autocast_enabled(patches.device.type):
            patches = patches.to(self.weight.dtype)
        tokens = []
        for i, embedding in enumerate(list(self.proj)[rows]):
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
        """World coordinates (B, N, A) of the patches of `L` crops of `shape` px."""
        device = torch.device("cpu") if bbox is None else bbox.device
        return self.place(shape, bbox, B, device).absolute
