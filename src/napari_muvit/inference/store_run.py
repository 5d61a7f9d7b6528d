"""Stage 7 of 7: one run of filling a prediction store: what is done, what is left, what failed."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_muvit.data.output import Journal, PredictionStore, read_facts
from napari_muvit.errors import RunError
from napari_muvit.inference.blocks import BlockRecord, BlockWriter, Unit
from napari_muvit.inference.events import (
    FinishedEvent,
    PredictionEvent,
    TileEvent,
    WarningEvent,
)
from napari_muvit.inference.job import Job
from napari_muvit.inference.layout import area_table
from napari_muvit.inference.tiles import BoolArray

HOPELESS = 4
"""So many tiles in which a model returned no numbers, and none in which it did, end a run."""


def disk_error(error: OSError, path: Path) -> RunError:
    """A failed write in a sentence: disk full, or what else."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return RunError(
            f"the disk is full, so {path} cannot be written. Free some space and run again; what "
            "is finished is kept."
        )
    return RunError(f"{path} cannot be written ({error}). Check the path and its permissions.")


@dataclass
class StoreRun:
    """One call of `predict_to_zarr`: what is done, what is left, how fast it goes.

    Parameters
    ----------
    writer
        Computes and writes blocks.
    output
        The label store.
    part
        (i, n) as in `predict_to_zarr`.
    """

    writer: BlockWriter
    output: Path
    part: tuple[int, int] = (1, 1)
    records: dict[Unit, BlockRecord] = field(default_factory=dict)
    failed: int = 0
    seen: int = 0
    was_complete: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        number, total = self.part
        self.journal = Journal(self.output, f"{number}of{total}" if total > 1 else "")
        self.is_complete = bool((read_facts(self.output) or {}).get("complete"))
        self.was_complete = self.is_complete
        self.image = self.writer.jobs[0].pyramid.name
        self.left_out = float(np.mean([job.left_out for job in self.writer.jobs]))
        for line in self.journal.records():
            record = BlockRecord.from_line(line)
            self.records[record.plane, record.block] = record

    def before(self, unit: Unit) -> BoolArray | None:
        """Cells of a block that are done; None where none are."""
        record = self.records.get(unit)
        return None if record is None else record.done

    def units(self) -> list[Unit]:
        """Every block with a wanted cell, in the order of computation."""
        units: list[Unit] = []
        for plane, job in enumerate(self.writer.jobs):
            band = band_width(job)
            units += [
                (plane, index) for index in job.plan.block_order(band)
                if job.cells[job.plan.block_cells(index)].any()
            ]
        return units

    def is_done(self, unit: Unit) -> bool:
        """Whether every wanted cell of a block is done."""
        plane, index = unit
        job = self.writer.jobs[plane]
        before = self.before(unit)
        wanted = job.cells[job.plan.block_cells(index)]
        return before is not None and bool((before | ~wanted).all())

    def own_units(self) -> list[Unit]:
        """The unfinished blocks of this part: a stretch of neighbours, as many tiles as others'."""
        number, total = self.part
        units = self.units()
        shares = share_out([self.weight(unit) for unit in units], total)
        return [unit for unit, share in zip(units, shares, strict=True)
                if share == number - 1 and not self.is_done(unit)]

    def weight(self, unit: Unit) -> int:
        """Wanted cells of a block: a measure of its work."""
        plane, index = unit
        job = self.writer.jobs[plane]
        return int(job.cells[job.plan.block_cells(index)].sum())

    def count_tiles(self, units: list[Unit] | None = None) -> int:
        """Tiles that blocks (all by default) need, each counted once."""
        total = 0
        for plane, job in enumerate(self.writer.jobs):
            cells = job.cells
            if units is not None:
                cells = np.zeros_like(cells)
                for _, index in (unit for unit in units if unit[0] == plane):
                    part = job.plan.block_cells(index)
                    cells[part] = job.cells[part]
            total += int(job.plan.tiles_needed(cells).sum())
        return total

    def events(self) -> Iterator[PredictionEvent]:
        """Do the work, block by block."""
        begin = time.monotonic()
        if not self.is_complete:
            yield from self.warn_empty()
            yield from self._predict(begin)
            yield from self.finish()
        yield self.finished(time.monotonic() - begin)

    def warn_empty(self) -> Iterator[PredictionEvent]:
        """Say so if there is nothing to predict at all."""
        if not any(job.cells.any() for job in self.writer.jobs):
            yield WarningEvent(
                "nothing is predicted: no tissue was found in the image, or in the region asked "
                "for. Pass tissue none to predict everything.", self.image
            )

    def progress(self, done: int, total: int, remaining: float | None) -> TileEvent:
        """How far this image is."""
        return TileEvent(done, total, remaining, self.image, self.left_out)

    def _predict(self, begin: float) -> Iterator[PredictionEvent]:
        units = self.own_units()
        left = self.count_tiles(units)
        total = self.count_tiles() if self.part[1] == 1 else left
        computed = 0
        yield self.progress(total - left, total, None)
        for unit in units:
            steps = self.writer.steps(unit, self.before(unit))
            while True:
                try:
                    ran = next(steps)
                except StopIteration as stop:
                    yield from self.settle(stop.value)
                    break
                except OSError as error:
                    raise disk_error(error, self.output) from error
                computed += ran
                if ran:
                    done = min(total - left + computed, total)
                    pace = (time.monotonic() - begin) / computed
                    yield self.progress(done, total, pace * (total - done))
        if left:
            yield self.progress(total, total, 0.0)

    def settle(self, record: BlockRecord) -> Iterator[PredictionEvent]:
        """Note a block that was computed, and tell of the tiles that could not be."""
        try:
            self.journal.append(record.to_line())
        except OSError as error:
            raise disk_error(error, self.output) from error
        self.records[record.plane, record.block] = record
        self.seen += len(record.entropies)
        for failure in record.failures:
            self.failed += 1
            if failure.is_model and self.failed >= HOPELESS and not self.seen:
                raise RunError(
                    f"{failure.message} in the first {self.failed} tiles. Check that the model was "
                    "trained to the end and that the image's values are as in training; with "
                    "precision bf16, try fp32."
                )
            yield WarningEvent(
                f"tile {failure.index} is left unfinished: {failure.message}", self.image
            )

    def finish(self) -> Iterator[PredictionEvent]:
        """Make the coarser arrays when every block of every part is done."""
        for line in self.journal.records():  # other parts may have finished meanwhile
            record = BlockRecord.from_line(line)
            self.records[record.plane, record.block] = record
        if not all(self.is_done(unit) for unit in self.units()):
            return
        areas = area_table(self.writer.jobs[0], self._tally())
        labels = PredictionStore(self.output)
        labels.put_tiles("uncertainty", self._uncertainty())
        for path in reversed(self.writer.paths.values()):
            store = PredictionStore(path)
            for _ in store.coarsen():
                pass
            store.set_facts(complete=True, areas=areas)
        self.journal.remove()
        self.is_complete = True
        yield from ()

    def _tally(self) -> dict[int, int]:
        tally: dict[int, int] = {}
        for record in self.records.values():
            for value, count in record.counts.items():
                tally[value] = tally.get(value, 0) + count
        return tally

    def _uncertainty(self) -> NDArray[np.float32]:
        """Mean entropy of every tile, (planes, *tiles); NaN where none was needed."""
        jobs = self.writer.jobs
        values = np.full((len(jobs), *jobs[0].plan.num_tiles), np.nan, np.float32)
        for record in self.records.values():
            for index, entropy in record.entropies.items():
                values[(record.plane, *index)] = entropy
        return values

    def finished(self, seconds: float) -> FinishedEvent:
        """The event that ends the run."""
        facts = read_facts(self.output) or {}
        return FinishedEvent(
            self.output, complete=self.is_complete, failed=self.failed, seconds=seconds,
            areas=list(facts.get("areas") or ()) if self.is_complete else [],
            part_complete=self.is_complete or not self.own_units(),
            was_complete=self.was_complete, left_out=self.left_out,
        )


def band_width(job: Job, memory: int = 128 * 2**20) -> int:
    """Blocks along x in a band, so that the tiles shared with the next row stay in memory."""
    plan = job.plan
    tile = 4 * len(job.spec.class_table) * int(np.prod(plan.size))
    shared = max(1, plan.block[-1] // plan.step[-1])
    return max(1, memory // (tile * shared))


def share_out(weights: Sequence[int], total: int) -> list[int]:
    """Which of `total` stretches of about equal work each block belongs to, from 0."""
    ends = np.cumsum(weights)
    if not len(ends):
        return []
    middles = ends - np.asarray(weights) / 2
    return (middles * total // ends[-1]).astype(int).tolist()  # type: ignore[no-any-return]
