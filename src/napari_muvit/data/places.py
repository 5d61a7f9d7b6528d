"""Where crops may lie: coarse boolean grids in world coordinates.

Tissue, annotated places, places with a foreground class and the halves of a validation split
are all the same thing here: a `PlaceMap`, from which points are drawn.

Axis letters: A spatial axes.
"""

from __future__ import annotations

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

    @cached_property
    def _filled(self) -> NDArray[np.int64]:
        lower, upper = self._cell_boxes(np.flatnonzero(self.mask))
        inside = np.all(upper > lower, axis=1)
        return np.flatnonzero(self.mask)[inside]

    def _cell_boxes(self, flat: NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
        """Lower and upper edges, (n, A) each, of cells by flat index, cut to the bounds."""
        index = np.stack(np.unravel_index(flat, self.mask.shape), axis=-1)
        lower = np.maximum(self.origin + index * self.cell, self.bounds[0])
        upper = np.minimum(self.origin + (index + 1) * self.cell, self.bounds[1])
        return lower, upper

    @cached_property
    def area(self) -> float:
        """World pixels (2D) or voxels (3D) in the filled cells."""
        lower, upper = self._cell_boxes(self._filled)
        return float(np.prod(upper - lower, axis=1).sum())

    @property
    def is_empty(self) -> bool:
        """Whether there is no place at all."""
        return len(self._filled) == 0

    def draw(self, rng: np.random.Generator) -> FloatArray:
        """A random point, (A,) world px, in a random filled cell."""
        pick = self._filled[rng.integers(len(self._filled), size=1)]
        lower, upper = self._cell_boxes(pick)
        point: FloatArray = lower[0] + rng.random(lower.shape[1]) * (upper[0] - lower[0])
        return point

    def holds(self, points: ArrayLike) -> NDArray[np.bool_]:
        """Whether each of the points (..., A) lies in a filled cell."""
        points = np.asarray(points, dtype=np.float64)
        index = np.floor((points - self.origin) / self.cell).astype(np.int64)
        last = np.asarray(self.mask.shape) - 1
        inside = np.all((points >= self.bounds[0]) & (points <= self.bounds[1]), axis=-1)
        clipped = np.clip(index, 0, last)
        held: NDArray[np.bool_] = inside & self.mask[tuple(np.moveaxis(clipped, -1, 0))]
        return held

    def within(self, box: ArrayLike) -> PlaceMap:
        """The same places, cut to `box` (2, A)."""
        box = np.asarray(box, dtype=np.float64)
        lower = np.maximum(self.bounds[0], box[0])
        bounds = np.stack([lower, np.maximum(np.minimum(self.bounds[1], box[1]), lower)])
        return PlaceMap(self.mask, self.cell, bounds, self.origin)

    def also_in(self, other: PlaceMap) -> PlaceMap:
        """The places of this map whose cell touches `other` at its centre or corners."""
        flat = self._filled
        lower, upper = self._cell_boxes(flat)
        keep = np.zeros(len(flat), dtype=bool)
        for share in (0.01, 0.5, 0.99):
            keep |= other.holds(lower + share * (upper - lower))
        mask = np.zeros(self.mask.size, dtype=bool)
        mask[flat[keep]] = True
        return PlaceMap(mask.reshape(self.mask.shape), self.cell, self.bounds, self.origin)

    def profile(self, axis: int) -> tuple[FloatArray, FloatArray]:
        """Edges (n + 1,) of the cells along `axis`, world px, and filled cells between (n,)."""
        others = tuple(i for i in range(self.mask.ndim) if i != axis)
        counts = self.mask.sum(axis=others).astype(np.float64)
        edges = self.origin[axis] + np.arange(len(counts) + 1) * self.cell[axis]
        return edges, counts
