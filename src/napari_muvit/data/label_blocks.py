"""Large label images block by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

ReadBlock = Callable[[Sequence[int], Sequence[int]], NDArray[Any]]
"""Gives the pixels from a first one on, so many along each axis."""

BLOCK = 2048
"""Side of the blocks that are read or painted at once, px."""


class BlockArray:
    """Labels that are read block by block, as an array to slice.

    Parameters
    ----------
    shape, dtype
        Of what can be sliced.
    read
        ``(start, size)``: a block of as many pixels, along all axes.
    lead
        Place along the axes in front of those that can be sliced.
    """

    def __init__(
        self, shape: Sequence[int], dtype: np.dtype[Any], read: ReadBlock, lead: Sequence[int] = ()
    ) -> None:
        self.shape, self.dtype = tuple(int(n) for n in shape), dtype
        self.ndim = len(self.shape)
        self._read, self._lead = read, tuple(lead)

    def __getitem__(self, cut: tuple[slice, ...]) -> NDArray[Any]:
        size = [part.stop - part.start for part in cut]
        block = self._read((*self._lead, *[part.start for part in cut]),
                           (*[1] * len(self._lead), *size))
        return block.reshape(size)


def iterate_blocks(array: Any, side: int = BLOCK) -> Iterator[tuple[tuple[int, ...], NDArray[Any]]]:
    """Start and content of blocks that cover an array (*S) once; one plane at a time."""
    steps = [1] * (array.ndim - 2) + [side, side]
    grid = [math.ceil(n / step) for n, step in zip(array.shape, steps, strict=True)]
    for place in np.ndindex(*grid):
        start = tuple(p * step for p, step in zip(place, steps, strict=True))
        cut = tuple(
            slice(s, min(s + step, n)) for s, step, n in zip(start, steps, array.shape, strict=True)
        )
        yield start, np.asarray(array[cut])
