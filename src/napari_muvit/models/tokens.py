"""Stage 3 of 7: crops become tokens.

Cuts nested crops into patches and gives every patch its place in the world (MuViT, section
3.1). Tokens are ordered by level, then in raster order; inside a patch the channel is last.

Axis letters: B batch, L levels, C channels, S spatial extent, A spatial axes, n patches of a
level, N = L * n tokens, P values of a patch, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from napari_muvit.errors import ChannelError, InputError
from napari_muvit.geometry import TokenCoordinates
from napari_muvit.models.devices import copy_to, widest_float


@dataclass(frozen=True)
class Places:
    """Where the patches lie.

    ``coords`` (B, N, A) are relative to ``origin`` (B, A), float32 (float64 in a float64
    model); ``absolute`` (B, N, A) are world px in the dtype of the boxes.
    """

    coords: Tensor
    absolute: Tensor
    origin: Tensor


@dataclass(frozen=True)
class Patches:
    """Patches of nested crops with their places and levels.

    ``coords`` (B, N, A) centred world px, ``absolute`` (B, N, A) world px, ``origin`` (B, A),
    ``level_idx`` (N,) int64, ``patches`` (B, N, P) pixel values, ``grid`` patches per axis.
    """

    coords: Tensor
    absolute: Tensor
    origin: Tensor
    level_idx: Tensor
    patches: Tensor
    grid: tuple[int, ...]


@dataclass(frozen=True)
class Tokens(Patches):
    """Patches together with their embeddings ``x`` (B, N, D)."""

    x: Tensor


def patchify(x: Tensor, patch_size: Sequence[int]) -> Tensor:
    """Images (..., C, *S) as patches (..., n, P), channel last inside a patch."""
    axes = len(patch_size)
    lead = x.shape[: -axes - 1]
    sizes = [v for s, p in zip(x.shape[-axes:], patch_size, strict=True) for v in (s // p, p)]
    x = x.reshape(*lead, x.shape[-axes - 1], *sizes)
    first = len(lead)
    grid = [first + 1 + 2 * i for i in range(axes)]
    inner = [first + 2 + 2 * i for i in range(axes)]
    num_values = math.prod(patch_size) * x.shape[first]
    num_patches = math.prod([x.shape[i] for i in grid])
    x = x.permute(*range(first), *grid, *inner, first)
    return x.reshape(*lead, num_patches, num_values)


def unpatchify(
    patches: Tensor, patch_size: Sequence[int], num_channels: int, size: Sequence[int]
) -> Tensor:
    """Patches (..., n, P) as images (..., C, *S); undoes `patchify`."""
    axes = len(patch_size)
    lead = patches.shape[:-2]
    grid = [s // p for s, p in zip(size, patch_size, strict=True)]
    x = patches.reshape(*lead, *grid, *patch_size, num_channels)
    first = len(lead)
    order = [first + 2 * axes]
    for i in range(axes):
        order += [first + i, first + axes + i]
    return x.permute(*range(first), *order).reshape(*lead, num_channels, *size)


def patch_grid(size: Sequence[int], patch_size: Sequence[int]) -> tuple[int, ...]:
    """Number of patches along each axis.

    Raises
    ------
    InputError
        If a patch does not divide the crop.
    """
    if any(s % p or s == 0 for s, p in zip(size, patch_size, strict=True)):
        nearest = tuple(max(p, round(s / p) * p) for s, p in zip(size, patch_size, strict=True))
        raise InputError(
            f"the crop is {tuple(size)} px and a patch is {tuple(patch_size)} px; the patch must "
            f"divide the crop along every axis. Pass crops of {nearest} px, for example."
        )
    return tuple(s // p for s, p in zip(size, patch_size, strict=True))


def check_image(x: Tensor, num_levels: int, in_channels: int, num_axes: int) -> None:
    """Refuse images of the wrong form; looks at shape and dtype only, never at values.

    Raises
    ------
    InputError
        If the number of axes or levels is wrong, or the pixels are integers.
    ChannelError
        If the number of channels is wrong.
    """
    shape = tuple(x.shape)
    if x.ndim != num_axes + 3:
        raise InputError(
            f"the image has shape {shape}; a {num_axes}D model needs {num_axes + 3} axes: batch, "
            f"level, channel and {num_axes} spatial ones. Add or drop axes, e.g. image[None]."
        )
    if x.shape[1] != num_levels:
        raise InputError(
            f"the image has shape {shape}, that is {x.shape[1]} levels; the model has "
            f"{num_levels}. Pass one crop per level, in the order of model.levels."
        )
    if x.shape[2] != in_channels:
        raise ChannelError(
            f"the image has shape {shape}, that is {x.shape[2]} channels; the model has "
            f"{in_channels}. Choose channels of the image, or a model trained on such images."
        )
    if not x.is_floating_point():
        raise InputError(
            f"the image is {x.dtype}; the model needs normalised floating-point pixels. Convert "
            "it, e.g. image.float() / 255, in the way the model was trained."
        )


def check_boxes(bbox: Tensor, batch: int, levels: Sequence[float], num_axes: int) -> None:
    """Refuse boxes of the wrong shape; values are not looked at.

    Raises
    ------
    InputError
        If the shape is not (B, L, 2, A).
    """
    shape, needed = tuple(bbox.shape), (batch, len(levels), 2, num_axes)
    if bbox.ndim != 4 or shape[1:] != needed[1:] or bbox.shape[0] != batch:
        raise InputError(
            f"bbox has shape {shape}; a batch of {batch} with levels {tuple(levels)} needs "
            f"{needed}. Pass one box per level, e.g. crop.bbox[None]."
        )


def naive_boxes(
    scales: Sequence[Sequence[float]], size: Sequence[int], policy: TokenCoordinates
) -> Tensor:
    """Concentric boxes around 0, (1, L, 2, A) float32: the paper's "naive" boxes.

    ``span`` takes the official default, +-l*(H/2 - 0.5); ``centre`` takes +-l*H/2.
    """
    inset = 0.5 if policy == "span" else 0.0
    half = [[f * (s / 2 - inset) for f, s in zip(row, size, strict=True)] for row in scales]
    upper = torch.tensor(half)
    return torch.stack([-upper, upper], dim=1)[None]


OFFICIAL_RANGE = 8192.0
"""World px within which float32 boxes keep the official arithmetic; see `place_patches`."""


def place_patches(
    bbox: Tensor, grid: Sequence[int], policy: TokenCoordinates, *, coarsest: int,
    device: torch.device, dtype: torch.dtype, origin: Tensor | None = None,
) -> Places:
    """World position of every patch; `geometry.patch_centres` in torch, around an origin.

    Rotary angles see differences only, so an origin changes nothing in exact arithmetic; it
    is what keeps float32 angles exact far from the image's corner. float32 boxes with ``span``
    coordinates keep origin 0 and the official float32 arithmetic, and so reproduce official
    outputs to rounding, as long as that arithmetic is good enough: within `OFFICIAL_RANGE`.

    Parameters
    ----------
    bbox
        (B, L, 2, A) world px, any dtype, on any device.
    coarsest
        Which level's box gives the origin: its centre.
    device, dtype
        Where and how the result is needed; `dtype` is that of the centred coordinates.
    origin
        (B, A) to be used instead.
    """
    wide = widest_float(bbox.device)
    given = bbox.dtype if bbox.is_floating_point() else torch.float32
    if given == torch.float64:
        given = widest_float(device)
    is_official = given == torch.float32 and policy == "span"
    if origin is None:
        far = bbox[:, coarsest]
        origin = far.to(wide).mean(dim=1)
        if is_official:
            is_near = far.abs().amax(dim=(1, 2)) <= OFFICIAL_RANGE
            origin = origin.masked_fill(is_near[:, None], 0.0)
    origin = origin.to(bbox.device, wide)
    absolute = _positions(bbox.to(given), grid, policy)
    coords = _positions(bbox.to(wide) - origin[:, None, None], grid, policy).to(dtype)
    if is_official:
        is_near = (origin == 0).all(dim=1)[:, None, None]
        coords = torch.where(is_near, absolute.to(dtype), coords)
    return Places(
        coords=copy_to(coords, device),
        absolute=copy_to(absolute, device),
        origin=origin,
    )


def _positions(bbox: Tensor, grid: Sequence[int], policy: TokenCoordinates) -> Tensor:
    """Position of every patch of boxes (B, L, 2, A), (B, N, A), in the dtype of the boxes."""
    axes = [_fractions(n, policy, bbox) for n in grid]
    mesh = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)
    lower, upper = bbox[:, :, 0, None], bbox[:, :, 1, None]
    return (lower + mesh * (upper - lower)).flatten(1, 2)


def _fractions(num_patches: int, policy: TokenCoordinates, like: Tensor) -> Tensor:
    if policy == "span":
        return torch.linspace(0, 1, num_patches, dtype=like.dtype, device=like.device)
    return (torch.arange(num_patches, dtype=like.dtype, device=like.device) + 0.5) / num_patches


@dataclass(frozen=True)
class Spread:
    """Puts a table of visible tokens and one vector per level into sequence order.

    ``visible`` (B, Nv) int64 are the positions of the visible tokens among N = L * n, n the
    patches of ``grid``.
    """

    visible: Tensor
    num_levels: int
    grid: tuple[int, ...]

    @property
    def num_patches(self) -> int:
        """Patches of a level, n."""
        return math.prod(self.grid)

    @property
    def is_masked(self) -> Tensor:
        """Which patches of every level are masked, (B, L, *grid) bool."""
        batch, num_tokens = len(self.visible), self.num_levels * self.num_patches
        masked = self.visible.new_ones(batch, num_tokens, dtype=torch.bool)
        return masked.scatter(1, self.visible, False).reshape(batch, self.num_levels, *self.grid)

    def along_axes(self, coords: Tensor) -> tuple[Tensor, ...]:
        """Coordinates (B, N, A) of the grids as one (B, L, n_a) for every axis."""
        grid = coords.reshape(len(coords), self.num_levels, *self.grid, coords.shape[-1])
        places = []
        for axis in range(len(self.grid)):
            row = grid[..., axis].movedim(2 + axis, 2)
            places.append(row.flatten(3)[..., 0] if row.ndim > 3 else row)
        return tuple(places)

    def __call__(self, table: Tensor, rows: slice = slice(None)) -> Tensor:
        """(B, Nv + L, D) as (B, N, D), or `rows` of it: masked tokens get their level's vector."""
        batch, num_rows, width = table.shape
        places = torch.arange(num_rows, device=table.device)
        seen, unseen = places.split([self.visible.shape[1], self.num_levels])
        order = unseen.repeat_interleave(self.num_patches).expand(batch, -1)
        order = order.scatter(1, self.visible, seen.expand_as(self.visible))
        first = torch.arange(batch, device=table.device)[:, None] * num_rows
        # Not gather, whose gradient adds up atomically on a GPU.
        return functional.embedding((order + first)[:, rows], table.reshape(-1, width))
