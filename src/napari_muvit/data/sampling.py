"""Stage 2 of 7: where crops are drawn. Random nested crops, not centred on each other.

The finest crop lies anywhere in the allowed places; each coarser one lies anywhere that holds
the one before it and, where it can, stays inside the image (MuViT, sections 4 and A.2).
Corners are drawn on the pixel grid of their level, so that nothing moves when they are read.

Axis letters: L levels, A spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from napari_muvit.data.places import PlaceMap
from napari_muvit.errors import InputError
from napari_muvit.geometry import (
    FloatArray,
    nested_corner_range,
    parse_size,
)

if TYPE_CHECKING:
    from napari_muvit.data.pyramid import Pyramid

Split = Literal["all", "train", "val"]
Placing = Literal["centre", "within"]


@dataclass(frozen=True, eq=False)
class LevelGrids:
    """Pixel grids from which each level of one image is read, and the crop's size on them.

    Attributes
    ----------
    factor
        (L, A) side of a pixel, world px.
    lower
        (L, A) lower outer edge of pixel 0, world px.
    size
        (A,) pixels of a crop.
    """

    factor: FloatArray
    lower: FloatArray
    size: tuple[int, ...]

    @property
    def extents(self) -> FloatArray:
        """Field of view of each level's crop, (L, A) world px."""
        extents: FloatArray = self.factor * np.asarray(self.size)
        return extents


def level_grids(
    pyramid: Pyramid, levels: Sequence[float], size: int | Sequence[int],
    scaled_axes: Sequence[int] | None = None,
) -> LevelGrids:
    """The grids that crops of `pyramid` are read on."""
    grids = [pyramid.level_grid(level, scaled_axes) for level in levels]
    factor = np.asarray([grid.factor for grid in grids])
    offset = np.asarray([grid.offset for grid in grids])
    return LevelGrids(factor, offset - factor / 2, parse_size(size, pyramid.ndim))


def draw_corners(
    rng: np.random.Generator, grids: LevelGrids, bounds: FloatArray,
    point: FloatArray | None = None, placing: Placing = "centre",
    block: FloatArray | None = None,
) -> FloatArray:
    """Lower outer edges of a random nested crop, (L, A) world px, on each level's grid.

    Parameters
    ----------
    bounds
        (2, A) outer edges that crops stay inside where they can: the image.
    point
        (A,) world px; the finest crop has it in its middle (``centre``) or anywhere inside
        (``within``), as far as the bounds allow. Without it, all places are alike.
    block
        (2, A) part of the image that the finest crop stays inside; all of it by default.
    """
    extents = grids.extents
    low, high = _bounded_range(extents[0], bounds if block is None else block)
    if point is not None:
        near = point - extents[0] / 2
        below, above = (near, near) if placing == "centre" else (point - extents[0], point)
        low, high = np.clip(below, low, high), np.clip(above, low, high)
    corners = np.empty_like(extents)
    corners[0] = _draw_on_grid(rng, grids, 0, low, high)
    for i in range(1, len(extents)):
        inner = np.stack([corners[i - 1], corners[i - 1] + extents[i - 1]])
        low, high = nested_corner_range(inner, extents[i], bounds)
        corners[i] = _draw_on_grid(rng, grids, i, low, high, (inner[1] - extents[i], inner[0]))
    return corners


def _bounded_range(extent: FloatArray, bounds: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Lowest and highest corner inside `bounds`; its centre where the box is the larger one."""
    low, high = bounds[0], bounds[1] - extent
    middle = (low + high) / 2
    return np.where(low <= high, low, middle), np.where(low <= high, high, middle)


def _draw_on_grid(
    rng: np.random.Generator, grids: LevelGrids, level: int, low: FloatArray, high: FloatArray,
    must: tuple[FloatArray, FloatArray] | None = None,
) -> FloatArray:
    """A random pixel edge between `low` and `high`; else the nearest one inside `must`."""
    factor, lower = grids.factor[level], grids.lower[level]
    slack = 1e-6
    first = np.ceil((low - lower) / factor - slack)
    last = np.floor((high - lower) / factor + slack)
    nearest = np.round((low + high) / 2 / factor - lower / factor)
    if must is not None:
        least = np.ceil((must[0] - lower) / factor - slack)
        most = np.floor((must[1] - lower) / factor + slack)
        nearest = np.where(least <= most, np.clip(nearest, least, most), nearest)
    is_empty = first > last
    first, last = np.where(is_empty, nearest, first), np.where(is_empty, nearest, last)
    steps = first + np.floor(rng.random(len(first)) * (last - first + 1))
    corner: FloatArray = lower + np.minimum(steps, last) * factor
    return corner


def image_weights(
    areas: Sequence[float], weighting: Literal["area", "equal"]
) -> FloatArray:
    """Chance of each image, (n,), from the areas of its places; empty images get none."""
    given = np.asarray(areas, dtype=np.float64)
    weights = given if weighting == "area" else (given > 0).astype(np.float64)
    total = weights.sum()
    if total <= 0:
        raise InputError(
            "there is no place to draw crops from: no image has tissue, or annotations. "
            "Annotate something, or set tissue to none."
        )
    chances: FloatArray = weights / total
    return chances


def sample_rng(seed: int, stream: int, index: int) -> np.random.Generator:
    """The generator of one sample: it depends on nothing but these three numbers."""
    return np.random.default_rng([seed, stream, index])


def is_due(index: int, share: float) -> bool:
    """Whether sample `index` is one of the `share` that must hold a foreground class.

    Of the first n samples at least ``share * n`` rounded down are due, without any chance.
    """
    return int((index + 1) * share + 1e-9) > int(index * share + 1e-9)


@dataclass(frozen=True)
class Blocks:
    """The parts of one image for training and validation, (2, A) world px each."""

    train: FloatArray
    val: FloatArray


def split_blocks(
    places: PlaceMap, fraction: float, gap: FloatArray, least: FloatArray, at_end: bool = True
) -> Blocks | None:
    """Cut an image into two blocks that no nested crop of the one can bridge to the other.

    The image is cut across its longest axis so that about `fraction` of the places lie in the
    validation block. A gap as wide as the coarsest crop stays unused, so that no training crop
    at any level sees a pixel on which validation is scored.

    Parameters
    ----------
    gap
        (A,) field of view of the coarsest crop, world px.
    least
        (A,) field of view of the finest crop: the smallest useful block.
    at_end
        Whether validation takes the upper end of the axis, or the lower.

    Returns
    -------
    Blocks or None
        None where the image is too small for both blocks and the gap.
    """
    bounds = places.bounds
    axis = int((bounds[1] - bounds[0]).argmax())
    cut = _quantile(places, axis, 1 - fraction if at_end else fraction)
    train, val = bounds.copy(), bounds.copy()
    if at_end:
        cut = min(cut, bounds[1, axis] - least[axis])
        val[0, axis], train[1, axis] = cut, cut - gap[axis]
    else:
        cut = max(cut, bounds[0, axis] + least[axis])
        val[1, axis], train[0, axis] = cut, cut + gap[axis]
    too_small = train[1, axis] - train[0, axis] < least[axis]
    if too_small or places.within(train).is_empty or places.within(val).is_empty:
        return None
    return Blocks(train, val)


def _quantile(places: PlaceMap, axis: int, share: float) -> float:
    """Position along `axis` below which `share` of the places lie, world px."""
    edges, counts = places.profile(axis)
    inside = np.clip(edges, places.bounds[0, axis], places.bounds[1, axis])
    width = np.diff(inside) / np.diff(edges)
    total = np.concatenate([[0.0], np.cumsum(counts * width)])
    return float(np.interp(share * total[-1], total, inside))
