"""Stage 6 of 7: tiles are predicted and blended into blocks.

One engine in each process computes blocks of one job. A tile that two blocks share is kept
between them while memory lasts and computed again otherwise, with the same result: tiles are
added in one order and batches have a fixed size, so a block's bytes do not depend on what was
computed before it.

Axis letters: B batch, A spatial axes, S extent of a tile, K classes, R extent of a region.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from napari_muvit.errors import MuvitError, RunError
from napari_muvit.inference.cache import ByteCache
from napari_muvit.inference.job import Job
from napari_muvit.inference.model_source import open_predictor
from napari_muvit.inference.predictor import model_lock
from napari_muvit.inference.reader import TileBatch, TileReader
from napari_muvit.inference.tiles import BoolArray, Index, Region

FloatImage = NDArray[np.float32]
ValueT = TypeVar("ValueT")

TILE_BYTES = 256 * 2**20
"""Memory for predicted tiles that lie in more than one block."""


@dataclass(frozen=True)
class TileFailure:
    """A tile that could not be computed, and why, in one sentence."""

    index: Index
    message: str
    is_model: bool = False


@dataclass(frozen=True, eq=False)
class PredictedTile:
    """Probabilities (K, *S) of one tile; `entropy` is None where they were kept from before."""

    index: Index
    probabilities: FloatImage
    entropy: float | None = None


@dataclass
class BlockResult:
    """Probabilities of a region of the output, and how it went.

    Attributes
    ----------
    region
        Output pixels.
    probabilities
        (K, *R) float32; 0 where not `done`.
    done
        Cells of the region that are predicted.
    wanted
        Cells of the region that were to be predicted.
    failures
        Tiles that could not be computed.
    entropies
        Mean entropy of each tile, 0 to 1, of the tiles computed for this region.
    """

    region: Region
    probabilities: FloatImage
    done: BoolArray
    wanted: BoolArray
    failures: list[TileFailure] = field(default_factory=list)
    entropies: dict[Index, float] = field(default_factory=dict)


class Engine:
    """Computes regions of one job's output; several threads may share it.

    Parameters
    ----------
    job
        What to predict.
    tile_bytes
        Memory for predicted tiles that a later block needs again.
    """

    def __init__(self, job: Job, tile_bytes: int = TILE_BYTES) -> None:
        self.job = job
        self.predictor = open_predictor(job.model)
        self.reader = TileReader(job)
        self._shares_context = hasattr(self.predictor, "predict_tiles")
        self._kept: ByteCache[FloatImage] = ByteCache(tile_bytes)

    def compute(self, region: Region, wanted: BoolArray | None = None) -> BlockResult:
        """Probabilities of `region`; see `steps`."""
        return run_through(self.steps(region, wanted))

    def steps(
        self, region: Region, wanted: BoolArray | None = None
    ) -> Generator[int, None, BlockResult]:
        """Compute `region`, yielding after each tile: 1 if the model ran for it, else 0.

        Parameters
        ----------
        region
            Output pixels; begins and ends with cells or with the image.
        wanted
            Cells of the region to predict; by default those the job wants.
        """
        cells = self.region_cells(region)
        wanted = self.job.cells[cells] if wanted is None else wanted & self.job.cells[cells]
        shape = (len(self.job.spec.class_table), *(part.stop - part.start for part in region))
        result = BlockResult(region, np.zeros(shape, np.float32), wanted.copy(), wanted)
        for tile in self.predict(self._needed(region, cells, wanted), region):
            if isinstance(tile, TileFailure):
                result.failures.append(tile)
                result.done[self._cells_of(tile.index, cells)] = False
                yield 0
                continue
            self._add(tile, result)
            if tile.entropy is not None:
                result.entropies[tile.index] = tile.entropy
            yield int(tile.entropy is not None)
        self._clear(cells, result)
        return result

    def region_cells(self, region: Region) -> Region:
        """The cells of a region, as a part of the grid of cells."""
        axes = zip(region, self.job.plan.step, strict=True)
        return tuple(slice(part.start // step, -(-part.stop // step)) for part, step in axes)

    def predict(
        self, indices: Sequence[Index], region: Region | None = None
    ) -> Iterator[PredictedTile | TileFailure]:
        """Tiles in the order given; those that reach beyond `region` are kept for later.

        While the model runs, the next batch is read.
        """
        known = {index: self._kept.get(index) for index in indices}
        missing = [index for index in indices if known[index] is None]
        computed = self._compute(missing)
        for index in indices:
            kept = known[index]
            if kept is not None:
                yield PredictedTile(index, kept)
                continue
            tile = next(computed)
            if isinstance(tile, PredictedTile) and region is not None:
                self._keep(tile, region)
            yield tile

    def _compute(self, indices: Sequence[Index]) -> Iterator[PredictedTile | TileFailure]:
        parts = self._batches(indices)
        if not parts:
            return
        with ThreadPoolExecutor(1, thread_name_prefix="muvit-read") as pool:
            pending = pool.submit(self._read, parts[0])
            for number, part in enumerate(parts):
                batch, failures = pending.result()
                if number + 1 < len(parts):
                    pending = pool.submit(self._read, parts[number + 1])
                found = {tile.index: tile for tile in self._run(batch)} if batch else {}
                yield from (failures.get(index) or found[index] for index in part)

    def _batches(self, indices: Sequence[Index]) -> list[Sequence[Index]]:
        """Tiles of each call of the model; those of one batch share a context if that pays."""
        size = self.job.batch_size
        groups: list[list[Index]] = [list(indices)]
        if self._shares_context:
            groups = [list(g) for _, g in groupby(indices, key=self._context)]
        return [group[i:i + size] for group in groups for i in range(0, len(group), size)]

    def _context(self, index: Index) -> tuple[Index, ...]:
        """The coarser crops of a tile, coarsest first."""
        return self.job.plan.tile(index).context[::-1]

    def _read(self, indices: Sequence[Index]) -> tuple[TileBatch | None, dict[Index, TileFailure]]:
        tiles = [self.job.plan.tile(index) for index in indices]
        try:
            return self.reader.read(tiles), {}
        except (MuvitError, OSError, ValueError, RuntimeError) as error:
            if len(tiles) == 1:
                message = str(error) or type(error).__name__
                return None, {tiles[0].index: TileFailure(tiles[0].index, message)}
        good, failures = [], {}
        for tile in tiles:  # find out which of them cannot be read
            batch, failed = self._read([tile.index])
            failures.update(failed)
            if batch is not None:
                good.append(tile)
        return (self.reader.read(good) if good else None), failures

    def _run(self, batch: TileBatch) -> Iterator[PredictedTile | TileFailure]:
        count = len(batch.tiles)
        padded = batch.padded(self.job.batch_size)
        try:
            with model_lock():
                probabilities = self._call(padded)
        except (RuntimeError, MemoryError) as error:
            raise _model_error(error, len(padded.tiles)) from error
        expected = (len(padded.tiles), len(self.job.spec.class_table), *self.job.plan.size)
        if probabilities.shape != expected:
            raise RunError(
                f"the model returned an array of shape {probabilities.shape} for these tiles; it "
                f"must be {expected}: tiles, classes, pixels. Check the model's class table."
            )
        for tile, values in zip(batch.tiles, probabilities[:count], strict=True):
            if np.isfinite(values).all():
                yield PredictedTile(tile.index, values, self._entropy(tile.index, values))
            else:
                yield TileFailure(tile.index, "the model returned values that are not numbers "
                                  "(NaN or infinity)", is_model=True)

    def _call(self, batch: TileBatch) -> FloatImage:
        predict_tiles = getattr(self.predictor, "predict_tiles", None)
        if predict_tiles is not None:
            shared: FloatImage = predict_tiles(batch)
            return shared
        return self.predictor(batch.x, batch.bbox, batch.valid)

    def _needed(self, region: Region, cells: Region, wanted: BoolArray) -> list[Index]:
        if not wanted.any():
            return []
        indices = self.job.plan.tiles_in(region)
        if not wanted.all():
            indices = [i for i in indices if wanted[self._cells_of(i, cells)].any()]
        if self._shares_context:
            # a global order all the same, so that sums do not depend on the region
            indices.sort(key=lambda index: (self._context(index), index))
        return indices

    def _cells_of(self, index: Index, cells: Region) -> Region:
        """Cells that tile `index` has weight on, relative to `cells`."""
        parts = zip(self.job.plan.reach(index), self.job.plan.step, cells, strict=True)
        return tuple(
            slice(
                max(0, part.start // step - cell.start),
                max(0, -(-part.stop // step) - cell.start),
            )
            for part, step, cell in parts
        )

    def _add(self, tile: PredictedTile, result: BlockResult) -> None:
        target, source, weights = self.job.plan.overlap(tile.index, result.region)
        part = tile.probabilities[(slice(None), *source)]
        ndim = len(weights)
        for axis, weight in enumerate(weights):
            shape = [1] * (ndim + 1)
            shape[axis + 1] = -1
            part = part * weight.reshape(shape)  # not in place: tiles are kept
        result.probabilities[(slice(None), *target)] += part

    def _keep(self, tile: PredictedTile, region: Region) -> None:
        reach = self.job.plan.reach(tile.index)
        pairs = zip(reach, region, strict=True)
        if any(part.start < whole.start or part.stop > whole.stop for part, whole in pairs):
            values = tile.probabilities
            own = values if values.base is None or self.job.batch_size == 1 else values.copy()
            self._kept.put(tile.index, own, own.nbytes)

    def _clear(self, cells: Region, result: BlockResult) -> None:
        """Zero where cells are not done or nothing was asked for, whatever a tile says there."""
        for place in np.argwhere(~result.done):
            index = tuple(int(p) + cell.start for p, cell in zip(place, cells, strict=True))
            pixels = self.job.plan.cell_region(index)
            local = (
                slice(part.start - whole.start, part.stop - whole.start)
                for part, whole in zip(pixels, result.region, strict=True)
            )
            result.probabilities[(slice(None), *local)] = 0
        inside = self.job.pixels_inside(result.region)
        if inside is not None:
            result.probabilities *= inside

    def _entropy(self, index: Index, values: FloatImage) -> float:
        """Mean entropy of a tile's core, as a share of the largest possible."""
        start = [int(s[i]) for s, i in zip(self.job.plan.starts, index, strict=True)]
        core = tuple(
            slice(part.start - first, part.stop - first)
            for part, first in zip(self.job.plan.core(index), start, strict=True)
        )
        kept = values[(slice(None), *core)]
        logs = np.log(np.maximum(kept, 1e-12))
        return float(-(kept * logs).sum(axis=0).mean() / math.log(max(2, len(kept))))


def _model_error(error: Exception, batch_size: int) -> Exception:
    """What a failed call of the model means, with a remedy where there is one."""
    from napari_muvit.models.devices import is_out_of_memory

    if isinstance(error, MuvitError):
        return error
    if is_out_of_memory(error):
        return RunError(
            f"the device has too little memory for {batch_size} tiles at once. Take a smaller "
            "batch_size, precision bf16, or the device cpu; what is finished is kept."
        )
    return error


def run_through(steps: Generator[Any, None, ValueT]) -> ValueT:
    """What a generator returns when all its steps are done."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            value: ValueT = stop.value
            return value


_ENGINE_LOCK = threading.Lock()


def engine_of(job: Job) -> Engine:
    """The one engine of `job` in this process."""
    with _ENGINE_LOCK:
        engine: Engine | None = job.__dict__.get("_engine")
        if engine is None:
            engine = job.__dict__["_engine"] = Engine(job)
        return engine
