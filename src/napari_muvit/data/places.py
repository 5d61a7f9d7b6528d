"""Where crops may lie: coarse boolean grids in world coordinates.

Tissue, annotated places, places with a foreground class and the halves of a validation split
are all the same thing here: a `PlaceMap`, from which points are drawn.

Axis letters: A spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_muvit.geometry import FloatArray


@dataclass(frozen=True, eq=False)
class PlaceMap:
    """Cells of an image where something is.

    Parameters
    ----------
    mask
        bool, one value for each cell, axes (z)yx.
    cell
        (A,) side of a cell, world px.
    bounds
        (2, A) outer edges, world px. Cell 0 begins at ``origin``; points outside the bounds
        are never drawn.
    origin
        (A,) lower outer edge of cell 0, world px; by default the lower edge of `bounds`.
    """

    mask: NDArray[np.bool_]
    cell: FloatArray
    bounds: FloatArray
    origin: FloatArray

    @classmethod
    def everywhere(cls, bounds: ArrayLike) -> PlaceMap:
        """One cell that fills `bounds`, (2, A)."""
        box = np.asarray(bounds, dtype=np.float64)
        mask = np.ones((1,) * box.shape[1], dtype=bool)
        return cls(mask, box[1] - box[0], box, box[0])

    @classmethod
    def over(cls, mask: NDArray[Any], bounds: ArrayLike) -> PlaceMap:
        """Cells of equal size that fill `bounds`, (2, A)."""
        box = np.asarray(bounds, dtype=np.float64)
        cell = (box[1] - box[0]) / np.asarray(mask.shape)
        return cls(np.asarray(mask, dtype=bool), cell, box, box[0])

    def __post_init__(self) -> None:
        """Cut off the cells that lie outside the bounds altogether."""
        first = np.floor((self.bounds[0] - self.origin) / self.cell + 1e-9).astype(np.int64)
        last = np.ceil((self.bounds[1] - self.origin) / self.cell - 1e-9).astype(np.int64)
        first, last = (np.clip(edge, 0, self.mask.shape) for edge in (first, last))
        cut = tuple(slice(int(f), max(int(f), int(n))) for f, n in zip(first, last, strict=True))
        object.__setattr__(self, "mask", self.mask[cut])
        object.__setattr__(self, "origin", self.origin + first * self.cell)

    def _edges(self, index: NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
        """Lower and upper edges, (..., A) each, of cells, cut to the bounds."""
        lower = np.maximum(self.origin + index * self.cell, self.bounds[0])
        upper = np.minimum(self.origin + (index + 1) * self.cell, self.bounds[1])
        return lower, upper

    @cached_property
    def _rows(self) -> NDArray[np.int64]:
        """Filled cells up to the end of each row along the last axis; small even for many."""
        counts = np.count_nonzero(self.mask, axis=-1).ravel()
        rows: NDArray[np.int64] = np.cumsum(counts, dtype=np.int64)
        return rows

    @cached_property
    def area(self) -> float:
        """World pixels (2D) or voxels (3D) in the filled cells."""
        held: NDArray[Any] = self.mask
        for axis in reversed(range(self.mask.ndim)):
            cells = np.zeros((self.mask.shape[axis], self.mask.ndim), dtype=np.int64)
            cells[:, axis] = np.arange(self.mask.shape[axis])
            lower, upper = self._edges(cells)
            held = held @ (upper - lower)[:, axis]
        return float(held)

    @property
    def is_empty(self) -> bool:
        """Whether there is no place at all."""
        return not self._rows.size or self._rows[-1] == 0

    def draw(self, rng: np.random.Generator) -> FloatArray:
        """A random point, (A,) world px, in a random filled cell."""
        number = int(rng.integers(self._rows[-1]))
        row = int(np.searchsorted(self._rows, number, side="right"))
        before = int(self._rows[row - 1]) if row else 0
        place = np.unravel_index(row, self.mask.shape[:-1]) if self.mask.ndim > 1 else ()
        column = np.flatnonzero(self.mask[place])[number - before]
        lower, upper = self._edges(np.asarray([*place, column], dtype=np.int64))
        point: FloatArray = lower + rng.random(len(lower)) * (upper - lower)
        return point

    def holds(self, points: ArrayLike) -> NDArray[np.bool_]:
        """Whether each of the points (..., A) lies in a filled cell."""
        points = np.asarray(points, dtype=np.float64)
        if not self.mask.size:
            return np.zeros(points.shape[:-1], dtype=bool)
        index = np.floor((points - self.origin) / self.cell).astype(np.int64)
        last = np.asarray(self.mask.shape) - 1
        inside = np.all((points >= self.bounds[0]) & (points <= self.bounds[1]), axis=-1)
        clipped = np.clip(index, 0, last)
        held: NDArray[np.bool_] = inside & self.mask[tuple(np.moveaxis(clipped, -1, 0))]
        return held

    def holds_grid(self, points: Sequence[FloatArray]) -> NDArray[np.bool_]:
        """Whether each point of a grid, given by its coordinates along each axis, is held.

        Upper edges are outside, so that boxes side by side share no point.
        """
        held: NDArray[np.bool_] = self.mask
        for axis, values in enumerate(points):
            inside = (values >= self.bounds[0, axis]) & (values < self.bounds[1, axis])
            index = np.floor((values - self.origin[axis]) / self.cell[axis]).astype(np.int64)
            if not held.shape[axis]:
                return np.zeros([len(v) for v in points], dtype=bool)
            held = held.take(np.clip(index, 0, held.shape[axis] - 1), axis)
            held = held & inside.reshape([-1 if a == axis else 1 for a in range(held.ndim)])
        return held

    def within(self, box: ArrayLike) -> PlaceMap:
        """The same places, cut to `box` (2, A)."""
        box = np.asarray(box, dtype=np.float64)
        lower = np.maximum(self.bounds[0], box[0])
        bounds = np.stack([lower, np.maximum(np.minimum(self.bounds[1], box[1]), lower)])
        return PlaceMap(self.mask, self.cell, bounds, self.origin)

    def also_in(self, other: PlaceMap) -> PlaceMap:
        """The places of this map whose cell touches `other` at its centre or corners."""
        index = np.argwhere(self.mask)
        lower, upper = self._edges(index)
        keep = np.zeros(len(index), dtype=bool)
        for share in (0.01, 0.5, 0.99):
            keep |= other.holds(lower + share * (upper - lower))
        mask = np.zeros(self.mask.shape, dtype=bool)
        mask[tuple(index[keep].T)] = True
        return PlaceMap(mask, self.cell, self.bounds, self.origin)

    def profile(self, axis: int) -> tuple[FloatArray, FloatArray]:
        """Edges (n + 1,) of the cells along `axis`, world px, and filled cells between (n,)."""
        others = tuple(i for i in range(self.mask.ndim) if i != axis)
        counts = self.mask.sum(axis=others).astype(np.float64)
        edges = self.origin[axis] + np.arange(len(counts) + 1) * self.cell[axis]
        return edges, counts


def mark_cells(
    mask: NDArray[np.bool_], found: NDArray[np.bool_], start: Sequence[int], step: Sequence[int]
) -> None:
    """Set the cells of `mask` in which a block that begins at `start` has any True pixel."""
    if not found.any():
        return
    for axis, (s, k) in enumerate(zip(start, step, strict=True)):
        cuts = np.arange(s // k * k, s + found.shape[axis], k) - s
        found = np.logical_or.reduceat(found, np.maximum(cuts, 0), axis=axis)
    low = [s // k for s, k in zip(start, step, strict=True)]
    target = tuple(slice(a, a + n) for a, n in zip(low, found.shape, strict=True))
    mask[target] |= found
