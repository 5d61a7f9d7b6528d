"""Levels, boxes and world coordinates: what lies where, in numpy alone.

World coordinates are full-resolution pixels in float64. Pixel ``i`` of full resolution has
its centre at ``i`` and its outer edges at ``i - 0.5`` and ``i + 0.5``. A box is ``(2, A)``,
``[min, max]`` outer edges, axes in (z)yx order. A nested crop has one box per level,
``(L, 2, A)``, and every box lies inside the box of the next coarser level (MuViT, section 3.1).

Axis letters: L levels, A spatial axes, N patches of a level.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_muvit.errors import InputError

TokenCoordinates = Literal["centre", "span"]
"""How patches are placed inside a box: their true centres, or the paper's formula."""

FloatArray = NDArray[np.float64]


def parse_levels(levels: Iterable[float] | float) -> tuple[int | float, ...]:
    """Levels as an ascending tuple of positive factors; whole numbers become int.

    Raises
    ------
    InputError
        If a level is not a finite number >= 1, or the levels do not ascend.
    """
    given = list(levels) if isinstance(levels, Iterable) else [levels]
    try:
        values = [float(level) for level in given]
    except (TypeError, ValueError):
        raise InputError(_levels_message(given)) from None
    finite = all(math.isfinite(v) and v >= 1 for v in values)
    ascending = all(a < b for a, b in itertools.pairwise(values))
    if not values or not finite or not ascending:
        raise InputError(_levels_message(given))
    return tuple(int(v) if v.is_integer() else v for v in values)


def _levels_message(given: Sequence[object]) -> str:
    shown = ", ".join(f"{level:g}" if isinstance(level, float) else str(level) for level in given)
    return (
        f"levels are ({shown}); they must be ascending downsampling factors of at least 1, "
        "each different from the next. Pass for example (1, 8, 32)."
    )


def parse_size(size: int | Sequence[int], num_axes: int) -> tuple[int, ...]:
    """Crop size in pixels, one value per spatial axis.

    Raises
    ------
    InputError
        If the number of values is neither 1 nor `num_axes`, or a value is not positive.
    """
    try:
        given = np.asarray(size).astype(np.float64, casting="same_kind")
    except (TypeError, ValueError):
        given = np.empty(0)
    values = given if given.ndim else np.full(num_axes, given)
    if values.shape != (num_axes,) or not all(v.is_integer() and v > 0 for v in values.tolist()):
        raise InputError(
            f"size is {size!r}; it must be one positive number of pixels, or one for each of "
            f"the {num_axes} spatial axes. Pass for example 256."
        )
    return tuple(int(v) for v in values)


def default_scaled_axes(num_axes: int) -> tuple[int, ...]:
    """The axes that a level downsamples unless told otherwise: the last two (y, x)."""
    return tuple(range(max(0, num_axes - 2), num_axes))


def level_scales(
    levels: Sequence[float], num_axes: int, scaled_axes: Sequence[int] | None = None
) -> FloatArray:
    """Downsampling factor of every level along every axis, (L, A)."""
    axes = default_scaled_axes(num_axes) if scaled_axes is None else tuple(scaled_axes)
    scales = np.ones((len(levels), num_axes))
    scales[:, list(axes)] = np.asarray(levels, dtype=np.float64)[:, None]
    return scales


def crop_extents(
    levels: Sequence[float], size: int | Sequence[int], num_axes: int,
    scaled_axes: Sequence[int] | None = None,
) -> FloatArray:
    """Field of view of each level's crop in world px, (L, A)."""
    pixels = np.asarray(parse_size(size, num_axes), dtype=np.float64)
    extents: FloatArray = level_scales(levels, num_axes, scaled_axes) * pixels
    return extents


def place_boxes(
    extents: FloatArray, *, center: ArrayLike | None = None, corner: ArrayLike | None = None
) -> FloatArray:
    """Boxes of a nested crop, (L, 2, A), placed by their centre or lower corner.

    Parameters
    ----------
    extents
        (L, A) field of view per level, world px (see `crop_extents`).
    center, corner
        One of the two, world px. ``(A,)`` places the finest box and centres the coarser
        ones on it; ``(L, A)`` places each box. `corner` is the lower outer edge.

    Raises
    ------
    InputError
        If both or neither are given, or the shape fits neither form.
    """
    if (center is None) == (corner is None):
        raise InputError("center and corner place a crop in two ways; pass exactly one of them.")
    given = np.asarray(center if corner is None else corner, dtype=np.float64)
    num_levels, num_axes = extents.shape
    if given.shape not in {(num_axes,), (num_levels, num_axes)}:
        raise InputError(
            f"the place of the crop has shape {given.shape}; it must be ({num_axes},) for the "
            f"finest crop or ({num_levels}, {num_axes}) for every level. Pass for example (y, x)."
        )
    if given.ndim == 1:
        middle = given if corner is None else given + extents[0] / 2
        lower = middle - extents / 2
    else:
        lower = given - extents / 2 if corner is None else given
    return np.stack([lower, lower + extents], axis=1)


def patch_centres(
    boxes: ArrayLike, grid: Sequence[int], policy: TokenCoordinates = "centre"
) -> FloatArray:
    """World position of every patch of every box, (..., L, N, A), patches in raster order.

    ``centre`` gives the true centre, ``min + (i + 0.5) / h * (max - min)``. ``span`` is the
    formula of the paper (section 3.1) and of the official code, ``min + i / (h - 1) * ...``,
    which puts the first and last patch on the ends of the box.

    Parameters
    ----------
    boxes
        (..., L, 2, A) world px.
    grid
        Number of patches along each axis, (A,).
    """
    boxes = np.asarray(boxes, dtype=np.float64)
    fractions = [patch_fractions(n, policy) for n in grid]
    mesh = np.stack(np.meshgrid(*fractions, indexing="ij"), axis=-1).reshape(-1, len(grid))
    lower, upper = boxes[..., 0, :], boxes[..., 1, :]
    centres: FloatArray = lower[..., None, :] + mesh * (upper - lower)[..., None, :]
    return centres


def patch_fractions(num_patches: int, policy: TokenCoordinates) -> FloatArray:
    """Position of each patch along a box, 0 at its lower and 1 at its upper end, (h,)."""
    if policy == "span":
        return np.linspace(0.0, 1.0, num_patches) if num_patches > 1 else np.zeros(1)
    return (np.arange(num_patches) + 0.5) / num_patches


def is_nested(boxes: ArrayLike, tolerance: float = 1e-6) -> bool:
    """Whether each box lies inside the next coarser one, within `tolerance` world px."""
    boxes = np.asarray(boxes, dtype=np.float64)
    lower = np.all(boxes[:-1, 0] >= boxes[1:, 0] - tolerance)
    upper = np.all(boxes[:-1, 1] <= boxes[1:, 1] + tolerance)
    return bool(lower and upper)


def nested_corner_range(
    inner: FloatArray, extent: FloatArray, image: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Lowest and highest lower corner of a box that holds `inner`, (A,) each, world px.

    The box has field of view `extent` (A,) and stays inside `image` (2, A) where both are
    possible; where the image is smaller than the box it is centred on the image as far as
    holding `inner` allows, and then low equals high.
    """
    low, high = inner[1] - extent, inner[0]
    inside_low, inside_high = image[0], image[1] - extent
    fits = inside_low <= inside_high
    middle = (image[0] + image[1] - extent) / 2
    low_in = np.where(fits, np.clip(inside_low, low, high), np.clip(middle, low, high))
    high_in = np.where(fits, np.clip(inside_high, low, high), np.clip(middle, low, high))
    return np.minimum(low_in, high_in), np.maximum(low_in, high_in)


def aligned_offset(factor: ArrayLike) -> FloatArray:
    """World position of pixel 0's centre in an array whose outer edge lies on the image's."""
    offset: FloatArray = (np.asarray(factor, dtype=np.float64) - 1) / 2
    return offset


def pixel_to_world(index: ArrayLike, factor: ArrayLike, offset: ArrayLike) -> FloatArray:
    """World position of the centre of array pixel `index`; fractions are places in a pixel."""
    world: FloatArray = np.asarray(offset) + np.asarray(factor) * np.asarray(index, np.float64)
    return world


def world_to_pixel(world: ArrayLike, factor: ArrayLike, offset: ArrayLike) -> FloatArray:
    """Fractional pixel index in an array of the world position `world`."""
    index: FloatArray = (np.asarray(world, np.float64) - np.asarray(offset)) / np.asarray(factor)
    return index


def first_pixel(edge: ArrayLike, factor: ArrayLike, offset: ArrayLike) -> NDArray[np.int64]:
    """Index of the array pixel whose lower edge is nearest to world position `edge`.

    Ties go down, so that the corner ``k`` and the outer edge ``k - 0.5`` both mean pixel
    ``k`` at full resolution.
    """
    position = world_to_pixel(edge, factor, offset) + 0.5
    return np.ceil(np.round(position - 0.5, 9)).astype(np.int64)


def pixel_box(
    start: ArrayLike, size: ArrayLike, factor: ArrayLike, offset: ArrayLike
) -> FloatArray:
    """Outer edges, (2, A) world px, of `size` array pixels that begin at index `start`."""
    start = np.asarray(start, np.float64)
    lower = pixel_to_world(start - 0.5, factor, offset)
    return np.stack([lower, lower + np.asarray(size) * np.asarray(factor)])
