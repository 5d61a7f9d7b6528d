"""Stage 7 of 7, live: a tile shows at once, and is blended with its neighbours as they come.

The last tiles' probabilities stay in memory. A cell is drawn from its own tile and from those
of its neighbours that are at hand, with the same smooth weights as on disk, and once more when
no neighbour in view is still to come. Beside tiles that were forgotten, or that an earlier
session left as labels alone, it ends at its own border.

Axis letters: A spatial axes, K classes, S extent of a tile.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Set
from dataclasses import replace
from functools import reduce
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from napari_muvit.data.live_cache import DONE, LiveCache
from napari_muvit.inference.cache import ByteCache
from napari_muvit.inference.engine import PredictedTile
from napari_muvit.inference.job import Job
from napari_muvit.inference.tiles import Index, Region, TilePlan

BLEND_BYTES = 256 * 2**20
"""Memory for the probabilities of the last tiles."""

Place: TypeAlias = tuple[Index, Index]
"""A plane, and a tile (and its cell) in it."""


class LiveCanvas:
    """Draws finished tiles into a live cache.

    Parameters
    ----------
    cache
        Where to draw.
    plan
        Tiles without blending: one for each cell.
    memory
        Bytes for the probabilities of the last tiles; 0 never blends.
    """

    def __init__(self, cache: LiveCache, plan: TilePlan, memory: int = BLEND_BYTES) -> None:
        self._cache, self._plan = cache, replace(plan, is_soft=True)
        self._tiles: ByteCache[NDArray[np.float16]] = ByteCache(memory)
        self._unsettled: dict[Place, Job] = {}

    def clear(self) -> None:
        """Forget the probabilities: they are of another model."""
        self._tiles.clear()
        self._unsettled.clear()

    def add(self, plane: Index, tile: PredictedTile, job: Job) -> Region:
        """Draw a new tile's cell; those of its neighbours wait for `settle`."""
        own = tile.probabilities.astype(np.float16)
        self._tiles.put((plane, tile.index), own, own.nbytes)
        for cell in self._cells_under(tile.index):
            if (plane, cell) in self._tiles:
                self._unsettled[plane, cell] = job
        if all((plane, other) in self._tiles for other in self._around(tile.index)):
            self._unsettled.pop((plane, tile.index), None)
        return self._draw((plane, tile.index), job, own, tile.entropy or 0.0)

    def settle(self, pending: Set[Place]) -> None:
        """Draw again the cells that have new neighbours, of which none is still `pending`."""
        for place in list(self._unsettled):
            plane, index = place
            if any((plane, other) in pending for other in self._around(index)):
                continue
            job = self._unsettled.pop(place)
            own = self._tiles.get(place)
            whole = (*plane, *index)
            if own is not None and self._cache.states[whole] == DONE:
                self._draw(place, job, own, float(self._cache.entropies[whole]))

    def _around(self, index: Index) -> Iterator[Index]:
        """Other tiles that have weight on the cell of tile `index`."""
        tiles = self._plan.tiles_in(self._plan.cell_region(index))
        return (other for other in tiles if other != index)

    def _cells_under(self, index: Index) -> Iterator[Index]:
        """Cells that tile `index` has weight on, its own among them."""
        parts = zip(self._plan.reach(index), self._plan.step, strict=True)
        return itertools.product(
            *(range(part.start // step, -(-part.stop // step)) for part, step in parts))

    def _draw(self, place: Place, job: Job, own: NDArray[np.float16], entropy: float) -> Region:
        """Write one cell as it is known by now."""
        plane, index = place
        region = self._plan.cell_region(index)
        size = [part.stop - part.start for part in region]
        blended = np.zeros((len(own), *size), np.float32)
        for tile in self._plan.tiles_in(region):
            values = own if tile == index else self._tiles.get((plane, tile))
            if values is None:
                continue
            target, source, weights = self._plan.overlap(tile, region)
            share = reduce(np.multiply.outer, weights)
            blended[(slice(None), *target)] += values[(slice(None), *source)] * share
        total = blended.sum(axis=0)
        inside = job.pixels_inside(region)
        table, best = job.spec.class_table, blended.argmax(axis=0)
        confidence = blended.max(axis=0) / np.where(total > 0, total, 1)
        if inside is not None:
            best, confidence = np.where(inside, best, -1), confidence * inside
        self._cache.write(
            (*plane, *index), region, table.to_values(best), entropy=entropy,
            confidence=np.rint(255 * confidence).astype(np.uint8),
        )
        return region
