"""Making a coarser level from a finer array: area averages of pixels, majorities of labels.

Everything works on (C, *S) blocks whose first pixel lies on an output pixel's lower edge.
Output pixels at the image's upper border average what is there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MODE_VALUES = 64
"""Number of different values up to which majorities are counted value by value."""


def average(
    block: NDArray[Any], steps: Sequence[float], size: Sequence[int], phase: Sequence[float]
) -> NDArray[Any]:
    """Area average of `block` (C, *S) to (C, *size), in the type of the block.

    Parameters
    ----------
    steps
        Block pixels in one output pixel, per spatial axis; need not be whole.
    phase
        Place of the first output pixel's lower edge in the block, in block pixels, in [0, 1).
    """
    result: NDArray[Any] = block
    weight: NDArray[np.float64] | None = None
    for axis, (step, count, start) in enumerate(zip(steps, size, phase, strict=True), start=1):
        if step == 1 and start == 0:
            result = np.take(result, range(count), axis) if result.shape[axis] != count else result
        elif float(step).is_integer() and start == 0:
            result, share = _sum_blocks(result, int(step), count, axis)
            weight = share if weight is None else weight * share
        else:
            result = _weigh(result, step, count, start, axis)
    if weight is not None:
        result = result / weight
    return cast_like(result, block.dtype)


def cast_like(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """`values` in `dtype`; integers by rounding half to even."""
    if values.dtype == dtype:
        return values
    cast: NDArray[Any] = (np.rint(values) if dtype.kind in "iu" else values).astype(dtype)
    return cast


def _sum_blocks(
    values: NDArray[Any], step: int, count: int, axis: int
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Sums over groups of `step` pixels along `axis`, and the number of pixels in each."""
    length = values.shape[axis]
    wide = _wide(values, step)
    total = np.zeros(values.shape[:axis] + (count,) + values.shape[axis + 1:], wide)
    for k in range(min(step, length)):
        part = values[(slice(None),) * axis + (slice(k, None, step),)]
        total[(slice(None),) * axis + (slice(0, min(count, part.shape[axis])),)] += part[
            (slice(None),) * axis + (slice(0, count),)]
    held = np.clip(length - np.arange(count) * step, 1, step).astype(np.float64)
    return total, held.reshape((count,) + (1,) * (values.ndim - axis - 1))


def _wide(values: NDArray[Any], step: int) -> np.dtype[Any]:
    """A type in which `step` values of this kind can be summed exactly."""
    if values.dtype.kind == "f":
        return np.dtype(np.float64)
    if values.dtype.itemsize >= 4:
        return np.dtype(np.float64) if values.dtype.itemsize > 4 or step > 2**20 else np.dtype(
            np.int64 if values.dtype.kind == "i" else np.uint64)
    limit = 2 ** (32 - 8 * values.dtype.itemsize - 1)
    if step < limit:
        return np.dtype(np.int32 if values.dtype.kind == "i" else np.uint32)
    return np.dtype(np.int64)


def _weigh(
    values: NDArray[Any], step: float, count: int, start: float, axis: int
) -> NDArray[Any]:
    """Averages over intervals of `step` pixels that need not be whole, along `axis`."""
    length = values.shape[axis]
    lower = start + step * np.arange(count)
    first = np.floor(lower).astype(np.int64)
    shape = (count,) + (1,) * (values.ndim - axis - 1)
    total = np.zeros(values.shape[:axis] + (count,) + values.shape[axis + 1:])
    covered = np.zeros(count)
    # one pixel of every interval after the other: a table of all weights would be as large as
    # the square of the side
    for k in range(math.ceil(step) + 1):
        pixel = first + k
        overlap = np.clip(np.minimum(lower + step, pixel + 1) - np.maximum(lower, pixel), 0.0, 1.0)
        overlap[pixel >= length] = 0.0
        total += values.take(np.minimum(pixel, length - 1), axis) * overlap.reshape(shape)
        covered += overlap
    averages: NDArray[Any] = total / np.where(covered > 0, covered, 1.0).reshape(shape)
    return averages


def choose_labels(
    block: NDArray[Any], steps: Sequence[float], size: Sequence[int], phase: Sequence[float]
) -> NDArray[Any]:
    """The most frequent label of each output pixel, (C, *size); ties go to the lowest value.

    Where steps are not whole numbers the label at the output pixel's centre is taken.
    """
    whole = all(float(s).is_integer() and p == 0 for s, p in zip(steps, phase, strict=True))
    values = np.unique(block) if whole else np.empty(0)
    if whole and values.size == 1:
        return np.full((block.shape[0], *size), values[0], block.dtype)
    if not whole or values.size > MODE_VALUES:
        return _nearest(block, steps, size, phase)
    best = np.zeros((block.shape[0], *size), block.dtype)
    most = np.zeros((block.shape[0], *size), np.int64)
    for value in values:
        count: NDArray[Any] = (block == value).astype(np.uint8)
        for axis, (step, number) in enumerate(zip(steps, size, strict=True), start=1):
            count = _sum_blocks(count, int(step), number, axis)[0]
        better = count > most
        best[better] = value
        most[better] = count[better]
    return best


def _nearest(
    block: NDArray[Any], steps: Sequence[float], size: Sequence[int], phase: Sequence[float]
) -> NDArray[Any]:
    result = block
    for axis, (step, count, start) in enumerate(zip(steps, size, phase, strict=True), start=1):
        index = np.floor(start + step * (np.arange(count) + 0.5)).astype(np.int64)
        result = np.take(result, np.minimum(index, block.shape[axis] - 1), axis)
    return result


def source_span(start: int, size: int, step: float, length: int) -> tuple[int, int, float]:
    """Pixels of a finer array that `size` output pixels from `start` cover.

    Returns
    -------
    first, stop, phase
        Index range in the finer array, and where in its first pixel the outputs begin.
    """
    lower = start * step
    first = min(math.floor(lower + 1e-9), length - 1)
    stop = min(math.ceil((start + size) * step - 1e-9), length)
    phase = max(0.0, lower - first)
    return first, max(stop, first + 1), 0.0 if phase < 1e-9 else phase
