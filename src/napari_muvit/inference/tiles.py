"""Stage 6 of 7: the output is cut into tiles, each with its nested crop.

The output lies on the pixel grid of ``levels[0]``, which begins at the image's lower outer
edge. Tiles of ``size`` output pixels begin every ``step`` pixels; those that would leave the
image are shifted back into it. With ``blend``, overlapping tiles have smooth weights that sum
to one. Without, each tile is kept in its middle ``step`` pixels alone, so that one model call
gives a finished piece of the output. Everything is a function of the image's shape, never of
what is asked for, so any part of the output equals the same part of the whole.

The coarser crops of a tile hold the next finer one, as in training (MuViT, section 3.1), and
lie on a grid of their own so that many neighbouring tiles share them.

Three grids cover the output: tiles (overlapping, one model call each), cells (``step`` pixels,
the unit that is done or not done) and blocks (several cells, the unit that is computed and
written together).

Axis letters: L levels, A spatial axes, T tiles along one axis, S extent of a tile.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from napari_muvit.errors import InputError
from napari_muvit.geometry import FloatArray, nested_corner_range

Index = tuple[int, ...]
Region = tuple[slice, ...]
BoolArray = NDArray[np.bool_]

TRIM_SHARE = 8
"""One part in this many of the overlap gets weight zero: the rim sees too little context."""


@dataclass(frozen=True)
class Tile:
    """Where to read, what it is part of, where it lies.

    Attributes
    ----------
    index
        Place in the grid of tiles.
    start
        First output pixel of the tile; it may read beyond the end of the output.
    corners
        (L, A) lower outer edges of its nested crop, world px.
    context
        Pixel index of each coarser crop's corner in its own level, (L - 1) x (A,). Tiles with
        equal contexts share all coarser crops.
    """

    index: Index
    start: Index
    corners: FloatArray
    context: tuple[Index, ...]


@dataclass(frozen=True)
class TilePlan:
    """Tiles, cells and blocks of one output grid.

    Attributes
    ----------
    levels
        Downsampling factors to read, finest first.
    scales, lowers
        (L, A) world px: pixel size and lower outer edge of pixel 0 of every level's grid.
    extent
        (2, A) world px: outer edges of the image.
    shape
        Output pixels along each axis.
    size, step
        Pixels of a tile, and from one tile to the next, along each axis.
    block
        Output pixels of a block, a multiple of `step` along each axis.
    blend
        Smooth weights in the overlap; or tile and cell of equal index belong together.
    is_soft
        Smooth weights without `blend`, too: a tile then reaches beyond its own cell.
    """

    levels: tuple[float, ...]
    scales: tuple[tuple[float, ...], ...]
    lowers: tuple[tuple[float, ...], ...]
    extent: tuple[tuple[float, ...], tuple[float, ...]]
    shape: Index
    size: Index
    step: Index
    block: Index
    blend: bool = True
    is_soft: bool = field(default=False, repr=False)

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.shape)

    # ------------------------------------------------------------------ tiles
    @cached_property
    def starts(self) -> tuple[NDArray[np.int64], ...]:
        """First output pixel of every tile along each axis, A x (T,)."""
        axes = zip(self.shape, self.size, self.step, strict=True)
        return tuple(_starts(total, size, step, self.blend) for total, size, step in axes)

    @property
    def num_tiles(self) -> Index:
        """Tiles along each axis."""
        return tuple(len(starts) for starts in self.starts)

    @cached_property
    def weights(self) -> tuple[NDArray[np.float32], ...]:
        """Blending weights of every tile along each axis, A x (T, S).

        A tile's weights are the product over the axes; over all tiles they sum to one at
        every output pixel.
        """
        axes = zip(self.starts, self.shape, self.size, self.step, strict=True)
        return tuple(
            _axis_weights(starts, total, size, size - step)
            if self.blend or self.is_soft else _cell_weights(starts, total, size, step)
            for starts, total, size, step in axes
        )

    @cached_property
    def _reach(self) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]], ...]:
        """First output pixel, and one past the last, that each tile has weight on."""
        reach = []
        for weights, starts in zip(self.weights, self.starts, strict=True):
            some = weights > 0
            first = starts + some.argmax(axis=1)
            past = starts + weights.shape[1] - some[:, ::-1].argmax(axis=1)
            reach.append((first, past))
        return tuple(reach)

    def tile(self, index: Index) -> Tile:
        """The tile at a place in the grid of tiles."""
        start = tuple(int(s[i]) for s, i in zip(self.starts, index, strict=True))
        corner = np.asarray(self.lowers[0]) + np.asarray(self.scales[0]) * start
        corners, context = [corner], []
        box = np.stack([corner, corner + np.asarray(self.scales[0]) * self.size])
        image = np.asarray(self.extent)
        for scale, lower in zip(self.scales[1:], self.lowers[1:], strict=True):
            first = context_pixel(box, np.asarray(scale), np.asarray(lower), self.size, image)
            corner = np.asarray(lower) + np.asarray(scale) * first
            box = np.stack([corner, corner + np.asarray(scale) * self.size])
            corners.append(corner)
            context.append(tuple(int(k) for k in first))
        return Tile(tuple(index), start, np.stack(corners), tuple(context))

    def reach(self, index: Index) -> Region:
        """The output pixels that tile `index` has weight on."""
        axes = zip(self._reach, index, strict=True)
        return tuple(slice(int(first[i]), int(past[i])) for (first, past), i in axes)

    def tiles_in(self, region: Region) -> list[Index]:
        """Every tile that has weight on `region`, in raster order."""
        axes = []
        for (first, past), part in zip(self._reach, region, strict=True):
            axes.append(np.flatnonzero((first < part.stop) & (past > part.start)).tolist())
        return list(itertools.product(*axes))

    def overlap(
        self, index: Index, region: Region
    ) -> tuple[Region, Region, list[NDArray[np.float32]]]:
        """Where tile `index` and `region` meet.

        Returns
        -------
        target
            The common part, relative to `region`.
        source
            The common part, relative to the tile.
        weights
            The tile's weights there, one array per axis.
        """
        target, source, weights = [], [], []
        for axis, (i, part) in enumerate(zip(index, region, strict=True)):
            first, past = self._reach[axis]
            start = int(self.starts[axis][i])
            low = max(int(first[i]), part.start)
            high = min(int(past[i]), part.stop)
            target.append(slice(low - part.start, high - part.start))
            source.append(slice(low - start, high - start))
            weights.append(self.weights[axis][i, low - start:high - start])
        return tuple(target), tuple(source), weights

    def core(self, index: Index) -> Region:
        """The output pixels that lie nearest to tile `index`: written once, never twice."""
        if not self.blend:
            return self.cell_region(index)
        region = []
        for axis, i in enumerate(index):
            first, past = core_bounds(self.starts[axis], self.shape[axis], self.size[axis])
            region.append(slice(int(first[i]), int(past[i])))
        return tuple(region)

    # ------------------------------------------------------------------ cells and blocks
    @property
    def num_cells(self) -> Index:
        """Cells along each axis."""
        return tuple(-(-n // s) for n, s in zip(self.shape, self.step, strict=True))

    def cell_region(self, index: Index) -> Region:
        """Output pixels of a cell."""
        return _grid_region(index, self.step, self.shape)

    @property
    def num_blocks(self) -> Index:
        """Blocks along each axis."""
        return tuple(-(-n // b) for n, b in zip(self.shape, self.block, strict=True))

    def block_region(self, index: Index) -> Region:
        """Output pixels of a block."""
        return _grid_region(index, self.block, self.shape)

    def block_cells(self, index: Index) -> Region:
        """Cells of a block, as a part of the grid of cells."""
        per_block = tuple(b // s for b, s in zip(self.block, self.step, strict=True))
        return _grid_region(index, per_block, self.num_cells)

    def block_order(self, band: int) -> Iterator[Index]:
        """Every block once, in bands `band` blocks wide along the last axis.

        Inside a band blocks follow in raster order, so the tiles that a block shares with the
        one before it and with the row above it are few, and can be kept.
        """
        *outer, last = self.num_blocks
        for first in range(0, last, band):
            columns = range(first, min(first + band, last))
            yield from itertools.product(*(range(n) for n in outer), columns)

    def tiles_needed(self, cells: BoolArray) -> BoolArray:
        """Which tiles have weight on any of the `cells` (of the grid of cells) wanted."""
        needed = cells
        for axis, (first, past) in enumerate(self._reach):
            counts = np.cumsum(needed, axis=axis, dtype=np.int32)
            counts = np.insert(counts, 0, 0, axis=axis)
            step = self.step[axis]
            low, high = first // step, -(-past // step)
            needed = np.take(counts, high, axis=axis) > np.take(counts, low, axis=axis)
        return needed


def _starts(total: int, size: int, step: int, blend: bool) -> NDArray[np.int64]:
    last = max(0, total - size)
    if blend:
        count = 1 + max(0, math.ceil((total - size) / step))
        return np.minimum(np.arange(count) * step, last).astype(np.int64)
    first = np.arange(-(-total // step)) * step - (size - step) // 2
    return np.clip(first, 0, last).astype(np.int64)


def _grid_region(index: Index, unit: Index, shape: Index) -> Region:
    axes = zip(index, unit, shape, strict=True)
    return tuple(slice(i * u, min((i + 1) * u, n)) for i, u, n in axes)


def core_bounds(
    starts: NDArray[np.int64], total: int, size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First pixel, and one past the last, of every tile's core along one axis: (T,), (T,).

    Neighbouring cores meet in the middle of the tiles' overlap.
    """
    cuts = (starts[1:] + starts[:-1] + size) // 2
    return np.concatenate([[0], cuts]), np.concatenate([cuts, [total]])


def taper(size: int, overlap: int, *, rise: bool, fall: bool) -> FloatArray:
    """Raw weights of one tile along one axis, (S,): sin^2 ramps that add up to one.

    The outermost eighth of the overlap gets zero, the rest of it the ramp. A side that lies
    on the image's border (not `rise`, not `fall`) keeps weight one.
    """
    trim = overlap // TRIM_SHARE
    width = overlap - 2 * trim
    place = np.clip((np.arange(size) - trim + 0.5) / width, 0, 1) if width else np.ones(size)
    ramp = np.sin(0.5 * np.pi * place) ** 2
    weights: FloatArray = np.ones(size)
    if rise and overlap:
        weights = weights * ramp
    if fall and overlap:
        weights = weights * ramp[::-1]
    return weights


def _cell_weights(
    starts: NDArray[np.int64], total: int, size: int, step: int
) -> NDArray[np.float32]:
    """1 in each tile's own cell, 0 elsewhere, (T, S)."""
    first = np.arange(len(starts))[:, None] * step
    pixels = starts[:, None] + np.arange(size)
    inside = (pixels >= first) & (pixels < np.minimum(first + step, total))
    return inside.astype(np.float32)


def _axis_weights(
    starts: NDArray[np.int64], total: int, size: int, overlap: int
) -> NDArray[np.float32]:
    count = len(starts)
    pixels = starts[:, None] + np.arange(size)
    raw = np.stack([
        taper(size, overlap, rise=i > 0, fall=i < count - 1) for i in range(count)
    ])
    raw[pixels >= total] = 0  # an image smaller than a tile
    sums = np.zeros(max(total, int(starts[-1]) + size))
    np.add.at(sums, pixels, raw)
    shares: NDArray[np.float32] = (raw / np.where(sums > 0, sums, 1)[pixels]).astype(np.float32)
    return shares


def context_pixel(
    inner: FloatArray, scale: FloatArray, lower: FloatArray, size: Index, image: FloatArray
) -> NDArray[np.int64]:
    """First pixel, (A,), of the coarser crop that serves every box near `inner`.

    The crop holds `inner` (2, A), stays inside `image` (2, A) where both are possible, and
    begins at a multiple of half its slack, so that `inner` lies in its middle half and boxes
    within that distance of each other share it.
    """
    extent = scale * np.asarray(size)
    slack = (extent - (inner[1] - inner[0])) / scale
    stride = np.maximum(1, np.floor(slack / 2))
    ideal = (inner.mean(axis=0) - extent / 2 - lower) / scale
    first = np.floor(ideal / stride + 0.5) * stride
    low, high = nested_corner_range(inner, extent, image)
    low_px = np.ceil(np.round((low - lower) / scale, 6))
    high_px = np.floor(np.round((high - lower) / scale, 6))
    between = np.floor((low + high - 2 * lower) / (2 * scale) + 0.5)
    inside = np.clip(first, low_px, np.maximum(low_px, high_px))
    return np.where(low_px <= high_px, inside, between).astype(np.int64)


def tile_step(size: Index, overlap: float, multiple: int = 8) -> Index:
    """Output pixels from one tile to the next for an overlap that is a share of the tile.

    Raises
    ------
    InputError
        If `overlap` is not at least 0 and below 0.9.
    """
    if not 0 <= overlap < 0.9:
        raise InputError(
            f"overlap is {overlap!r}; it is the share of a tile that neighbours have in common, "
            "at least 0 and below 0.9. Pass for example 0.25."
        )
    if overlap == 0:
        return size
    steps = (math.floor(n * (1 - overlap)) for n in size)
    return tuple(max(1, step // multiple * multiple if step > multiple else step) for step in steps)


def choose_block(
    step: Index, shape: Index, bytes_per_pixel: int, *, least: int = 1024,
    memory: int = 192 * 2**20,
) -> Index:
    """Output pixels of a block: `least` or more along y and x, other axes one step.

    The block shrinks step by step, longest side first, until `bytes_per_pixel` of it fit
    `memory`; along an axis shorter than that it covers the image.
    """
    counts = [
        math.ceil(min(least, n) / s) if axis >= len(step) - 2 else 1
        for axis, (s, n) in enumerate(zip(step, shape, strict=True))
    ]
    while max(counts) > 1:
        pixels = math.prod(c * s for c, s in zip(counts, step, strict=True))
        if pixels * bytes_per_pixel <= memory:
            break
        counts[counts.index(max(counts))] -= 1
    return tuple(c * s for c, s in zip(counts, step, strict=True))
