"""Stage 2 of 7: places in a Pyramid become nested crops.

A crop is read at several levels around one place (MuViT, section 3.1). Every level has a grid:
that of the array which has this resolution, or the one that averaging the nearest finer array
from its lower edge would give. Crops are snapped to the grid, so a crop of a missing level
equals the same crop of a pyramid that has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from napari_muvit.data.resample import average, choose_labels, source_span
from napari_muvit.errors import InputError
from napari_muvit.geometry import FloatArray, default_scaled_axes, parse_levels

SAME = 0.02
"""Relative difference up to which an array serves a level with its own true extent."""

MOST_READS = 16
"""How many times more pixels may be read so that a level's pixels hold whole ones."""

LARGEST_LEVEL = 4 * 2**30
"""Bytes of a level beyond which it is not held in memory."""

STRIP = 8 * 2**20
"""Bytes of source pixels that are averaged at once."""


@dataclass(frozen=True)
class NestedCrop:
    """The same place at L levels, every field of view inside the next.

    Attributes
    ----------
    image
        (L, C, *S) in the source's dtype.
    bbox
        (L, 2, A) float64, outer edges in world px: what was really read.
    valid
        (L, *S) bool, False on padding.
    levels
        Downsampling factors that were asked for.
    """

    image: NDArray[Any]
    bbox: NDArray[np.float64]
    valid: NDArray[np.bool_]
    levels: tuple[int | float, ...]


@dataclass(frozen=True)
class LevelGrid:
    """Where the pixels of a level lie, and which array they are read from.

    Attributes
    ----------
    array_index
        The array that serves the level.
    steps
        Pixels of that array in one pixel of the level, per axis; 1 where it serves directly.
    factor, offset
        World px of one pixel, and world position of pixel 0's centre, per axis.
    shape
        Pixels of the whole level, per axis.
    """

    array_index: int
    steps: tuple[float, ...]
    factor: tuple[float, ...]
    offset: tuple[float, ...]
    shape: tuple[int, ...]

    @property
    def is_direct(self) -> bool:
        return all(step == 1 for step in self.steps)


class Arrays(Protocol):
    """What reading a level needs of a pyramid."""

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]: ...
    @property
    def factors(self) -> tuple[tuple[float, ...], ...]: ...
    @property
    def offsets(self) -> tuple[tuple[float, ...], ...]: ...
    @property
    def num_channels(self) -> int: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def is_labels(self) -> bool: ...
    def read(
        self, array_index: int, start: Sequence[int], size: Sequence[int]
    ) -> NDArray[Any]: ...
    def kept_level(self, grid: LevelGrid) -> NDArray[Any] | None:
        """The whole averaged level (C, *S), where it is kept in memory."""
        ...


def plan_level(
    arrays: Arrays, level: float, scaled_axes: Sequence[int] | None = None
) -> LevelGrid:
    """The grid of a level: the array of that resolution, or the nearest finer one averaged.

    Raises
    ------
    InputError
        If no array is fine enough along an axis that the level does not scale.
    """
    num_axes = len(arrays.factors[0])
    scaled = default_scaled_axes(num_axes) if scaled_axes is None else tuple(scaled_axes)
    wanted = np.ones(num_axes)
    wanted[list(scaled)] = float(level)
    factors = np.asarray(arrays.factors)
    ratios = wanted / factors
    same = np.all(np.abs(ratios - 1) <= SAME, axis=1)
    if same.any():
        index = int(np.argmin(np.abs(np.log(ratios)).sum(axis=1)))
        return _grid(arrays, index, np.ones(num_axes))
    finer = np.flatnonzero(np.all(ratios >= 1 - SAME, axis=1))
    index = _finer_array(factors, ratios, finer) if finer.size else 0
    return _grid(arrays, index, np.where(_is_whole(ratios[index]), _whole(ratios[index]),
                                         ratios[index]))


def _whole(ratios: FloatArray) -> FloatArray:
    rounded: FloatArray = np.maximum(np.rint(ratios), 1)
    return rounded


def _is_whole(ratios: FloatArray) -> NDArray[np.bool_]:
    near: NDArray[np.bool_] = np.abs(ratios / _whole(ratios) - 1) <= SAME
    return near


def _finer_array(
    factors: FloatArray, ratios: FloatArray, finer: NDArray[np.intp]
) -> int:
    """The coarsest of the finer arrays, or a finer one whose pixels the level's hold whole.

    Averaging 1.5 pixels blurs, so level 3 is read from level 1 rather than from level 2 as long
    as this does not read more than `MOST_READS` times as much.
    """
    volumes = factors[finer].prod(axis=1)
    nearest = int(finer[np.argmax(volumes)])
    whole = finer[np.all(_is_whole(ratios[finer]), axis=1)]
    if whole.size:
        best = int(whole[np.argmax(factors[whole].prod(axis=1))])
        if volumes.max() / factors[best].prod() <= MOST_READS:
            return best
    return nearest


def _grid(arrays: Arrays, index: int, steps: FloatArray) -> LevelGrid:
    factor = np.asarray(arrays.factors[index])
    lower = np.asarray(arrays.offsets[index]) - factor / 2
    shape = np.ceil(np.asarray(arrays.shapes[index]) / steps - 1e-9)
    return LevelGrid(
        array_index=index, steps=tuple(steps.tolist()), factor=tuple((factor * steps).tolist()),
        offset=tuple((lower + factor * steps / 2).tolist()),
        shape=tuple(int(n) for n in np.maximum(shape, 1)),
    )


def read_region(
    arrays: Arrays, grid: LevelGrid, start: Sequence[int], size: Sequence[int]
) -> NDArray[Any]:
    """Pixels (C, *size) of a level, inside its bounds, averaged where that is needed."""
    if grid.is_direct:
        return arrays.read(grid.array_index, start, size)
    whole = arrays.kept_level(grid)
    if whole is not None:
        place = tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))
        return whole[(slice(None), *place)].copy()
    return reduce_region(arrays, grid, start, size)


def reduce_region(
    arrays: Arrays, grid: LevelGrid, start: Sequence[int], size: Sequence[int]
) -> NDArray[Any]:
    """Pixels (C, *size) of a level that is averaged, or whose labels are chosen, right now."""
    length = arrays.shapes[grid.array_index]
    spans = [source_span(s, n, step, full)
             for s, n, step, full in zip(start, size, grid.steps, length, strict=True)]
    pixels = float(np.prod([stop - first for first, stop, _ in spans]))
    axis = len(size) - 2
    if pixels * arrays.num_channels * arrays.dtype.itemsize > STRIP and size[axis] > 1:
        return _read_in_strips(arrays, grid, start, size, axis)
    block = arrays.read(grid.array_index, [s[0] for s in spans], [s[1] - s[0] for s in spans])
    reduce = choose_labels if arrays.is_labels else average
    return reduce(block, grid.steps, size, [s[2] for s in spans])


def _read_in_strips(
    arrays: Arrays, grid: LevelGrid, start: Sequence[int], size: Sequence[int], axis: int
) -> NDArray[Any]:
    """The same in two halves along `axis`, so that memory stays bounded."""
    half = size[axis] // 2
    first_size, rest_start, rest_size = list(size), list(start), list(size)
    first_size[axis], rest_size[axis] = half, size[axis] - half
    rest_start[axis] += half
    parts = [reduce_region(arrays, grid, start, first_size),
             reduce_region(arrays, grid, rest_start, rest_size)]
    return np.concatenate(parts, axis=axis + 1)


def read_padded(
    arrays: Arrays, grid: LevelGrid, start: Sequence[int], size: Sequence[int]
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Pixels (C, *size) of a level from anywhere, 0 outside the image, and their validity."""
    first = np.clip(start, 0, grid.shape)
    stop = np.clip(np.asarray(start) + np.asarray(size), 0, grid.shape)
    valid = np.zeros(tuple(size), bool)
    if np.any(stop <= first):
        return np.zeros((arrays.num_channels, *size), arrays.dtype), valid
    pixels = read_region(arrays, grid, first.tolist(), (stop - first).tolist())
    if pixels.shape[1:] == tuple(size):
        return pixels, ~valid
    place = tuple(slice(a, b) for a, b in zip(first - start, stop - start, strict=True))
    padded = np.zeros((pixels.shape[0], *size), pixels.dtype)
    padded[(slice(None), *place)] = pixels
    valid[place] = True
    return padded, valid


def check_level_size(arrays: Arrays, grid: LevelGrid, what: str) -> None:
    """Refuse to hold a level in memory that is larger than `LARGEST_LEVEL`."""
    nbytes = arrays.num_channels * float(np.prod(grid.shape)) * arrays.dtype.itemsize
    if nbytes > LARGEST_LEVEL:
        raise InputError(
            f"{what} has {grid.shape} pixels and {nbytes / 2**30:.1f} GiB; at most "
            f"{LARGEST_LEVEL / 2**30:.0f} GiB are held in memory. Take a coarser level, or read "
            "crops."
        )


def parse_scaled_axes(scaled_axes: Sequence[int | str] | None, axes: str) -> tuple[int, ...]:
    """Positions of the scaled axes, given by letter or position; y and x by default."""
    if scaled_axes is None:
        return default_scaled_axes(len(axes))
    positions = []
    for axis in scaled_axes:
        position = axes.find(axis) if isinstance(axis, str) else int(axis)
        if not 0 <= position < len(axes) or axes[position] == "t":
            if isinstance(axis, str) and axis == "z" and "z" not in axes:
                continue
            raise InputError(
                f"scaled_axes holds {axis!r}; a level can downsample the axes "
                f"{', '.join(a for a in axes if a != 't')} of this image. Name these."
            )
        positions.append(position)
    return tuple(positions)


def parse_positive_levels(levels: Sequence[float] | float) -> tuple[int | float, ...]:
    """Levels as ascending positive numbers; those below 1 magnify (physical matching)."""
    given = np.atleast_1d(np.asarray(levels, dtype=object)).tolist()
    numbers = all(isinstance(v, (int, float)) for v in given)
    below = [v for v in given if numbers and 0 < v < 1]
    if below and list(given) == sorted(set(given)):
        return tuple(given)
    return parse_levels(given)
