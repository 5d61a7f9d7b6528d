"""Stage 7 of 7: the whole image to OME-Zarr, resumable.

A block that is done is never computed again; one that was half written is. What could not be
read is reported, left unlabelled and tried again the next time.
"""

from __future__ import annotations

import errno
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_muvit.data.output import Journal, PredictionStore, read_facts
from napari_muvit.errors import InputError, RunError, RunExistsError
from napari_muvit.inference.blocks import BlockRecord, BlockWriter, Unit
from napari_muvit.inference.events import (
    FinishedEvent,
    PredictionEvent,
    TileEvent,
    WarningEvent,
)
from napari_muvit.inference.job import Job, plan_job
from napari_muvit.inference.layout import area_table, make_layout
from napari_muvit.inference.lazy import Output
from napari_muvit.inference.planes import Planes, open_planes
from napari_muvit.inference.predictor import parse_model
from napari_muvit.inference.tiles import BoolArray

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from napari_muvit.inference.device import Precision
    from napari_muvit.inference.predictor import KernelOption

HOPELESS = 4
"""So many tiles in which a model returned no numbers, and none in which it did, end a run."""


def predict_to_zarr(
    source: Any, model: Any, output: str | Path, *, overlap: float = 0.25,
    probabilities: bool = False, confidence: bool = False, channels: Any = None,
    t: int | None = None, z: int | None = None, image: str | int | None = None,
    tissue: str = "auto", roi: ArrayLike | None = None, batch_size: int | None = None,
    device: str = "auto", precision: Precision = "fp32", threads: int | None = None,
    average: int = 1, kernels: KernelOption = "auto", fmt: str = "0.5", shard: bool = False,
    part: tuple[int, int] | str | None = None, cluster: str | None = None,
) -> Iterator[PredictionEvent]:
    """Predict an image to an OME-Zarr label pyramid; iterate over the result to do the work.

    Arguments are checked at the call. Called again with the same arguments it continues.

    Parameters
    ----------
    source, model, overlap, channels, t, z, tissue, roi, batch_size, device, precision, threads, \
average, kernels
        See `predict`.
    output
        Folder of the label store; ``OUT_probabilities`` and ``OUT_confidence`` lie beside it.
    fmt, shard
        OME-Zarr 0.4 or 0.5; with 0.5 the chunks of a block can share one file.
    part
        (i, n) or "i/n", from 1: the i-th of n processes that fill one store together.
    cluster
        ``local``, or the address of a dask scheduler; see `inference.cluster`.

    Raises
    ------
    RunExistsError
        If `output` holds something else, or a prediction of another model or image.
    InputError, SourceError, CheckpointError
        If the arguments do not fit together.
    """
    before = (read_facts(output) or {}).get("kernels")
    parsed = parse_model(
        model, device=device, precision=precision, threads=threads, average=average,
        kernels=tuple(before) if before else kernels,
    )
    planes = open_planes(source, parsed.spec.ndim, channels=channels, t=t, z=z, image=image)
    jobs = tuple(
        plan_job(pyramid, parsed, overlap=overlap, tissue=tissue, roi=roi, batch_size=batch_size)
        for pyramid in planes.pyramids
    )
    outputs: list[Output] = ["labels"]
    outputs += ["probabilities"] if probabilities else []
    outputs += ["confidence"] if confidence else []
    writer = prepare_stores(planes, jobs, Path(output), outputs, fmt=fmt, shard=shard)
    run = StoreRun(writer, Path(output), parse_part(part))
    if cluster is None:
        return run.events()
    from napari_muvit.inference.cluster import run_on_cluster

    return run_on_cluster(run, cluster)


def parse_part(part: tuple[int, int] | str | None) -> tuple[int, int]:
    """Which part of how many; (1, 1) for the whole.

    Raises
    ------
    InputError
        If it is not i/n with 1 <= i <= n.
    """
    if part is None:
        return 1, 1
    pieces = part.split("/") if isinstance(part, str) else list(part)
    if len(pieces) == 2 and all(str(p).strip().isdigit() for p in pieces):
        number, total = int(pieces[0]), int(pieces[1])
        if 1 <= number <= total:
            return number, total
    raise InputError(f"part is {part!r}; it must be i/n with i from 1 to n. Pass for example 2/8.")


def prepare_stores(
    planes: Planes, jobs: tuple[Job, ...], output: Path, outputs: list[Output], *, fmt: str,
    shard: bool,
) -> BlockWriter:
    """Create the stores, or open those that an earlier call left.

    Raises
    ------
    RunExistsError
        If they belong to another model, image or set of options.
    """
    paths = {kind: output_path(output, kind) for kind in outputs}
    facts = describe_jobs(jobs)
    existing = {kind: read_facts(path) for kind, path in paths.items()}
    for kind, found in existing.items():
        if found is not None:
            check_facts(found, facts, paths[kind])
    for kind in reversed(outputs):  # labels last: they say that the others are there
        if existing[kind] is None:
            if existing["labels"] is not None:
                raise RunExistsError(
                    f"{output} was begun without {kind}; outputs cannot be added to a prediction. "
                    "Choose another output."
                )
            _create(planes, jobs[0], paths[kind], kind, facts, fmt=fmt, shard=shard)
    return BlockWriter(
        jobs, tuple(planes.indices), planes.axes, {k: str(p) for k, p in paths.items()}
    )


def _create(
    planes: Planes, job: Job, path: Path, kind: Output, facts: dict[str, Any], *, fmt: str,
    shard: bool,
) -> None:
    table = job.spec.class_table
    layout = make_layout(planes, job, kind, fmt=fmt, shard=shard)
    try:
        PredictionStore.create(
            path, layout, facts=facts, classes=table if kind == "labels" else None,
            dtype=table.dtype if kind == "labels" else np.float16,
            channel_names=table.names if kind == "probabilities" else None,
            fill_value=int(table.to_values(np.array(-1))) if kind == "labels" else 0,
        )
    except OSError as error:
        found = read_facts(path)  # another part of the same run was quicker
        if found is None:
            raise _disk_error(error, path) from error
        check_facts(found, facts, path)


def output_path(output: Path, kind: Output) -> Path:
    """Where an output lies: the labels at `output`, the others beside it."""
    if kind == "labels":
        return output
    stem, dot, rest = output.name.partition(".")
    return output.with_name(f"{stem}_{kind}{dot}{rest}")


def describe_jobs(jobs: tuple[Job, ...]) -> dict[str, Any]:
    """What a prediction is made of: equal facts give equal bytes."""
    first = jobs[0]
    model = first.model
    mark = hashlib.sha256("".join(job.fingerprint for job in jobs).encode()).hexdigest()[:24]
    return {
        "job": mark, "model": first.spec.fingerprint, "image": first.pyramid.fingerprint,
        "image_name": first.pyramid.name, "levels": list(first.plan.levels),
        "tile": list(first.plan.size), "step": list(first.plan.step),
        "precision": getattr(model, "precision", "fp32"),
        "kernels": list(getattr(model, "kernels", ())),
        "grid": {"scale": list(first.output_scale), "offset": list(first.output_offset)},
    }


def check_facts(found: dict[str, Any], facts: dict[str, Any], path: Path) -> None:
    """Refuse to continue a prediction that is made of something else."""
    if found.get("job") == facts["job"] and found.get("precision") == facts["precision"]:
        return
    what = (
        "another model" if found.get("model") != facts["model"]
        else f"another image ({found.get('image_name')})" if found.get("image") != facts["image"]
        else "the same model and image with other options (overlap, tissue, region, precision)"
    )
    raise RunExistsError(
        f"{path} holds a prediction of {what}, and nothing is overwritten. Choose another output, "
        "or remove it first."
    )


def _disk_error(error: OSError, path: Path) -> RunError:
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

    def __post_init__(self) -> None:
        number, total = self.part
        self.journal = Journal(self.output, f"{number}of{total}" if total > 1 else "")
        self.is_complete = bool((read_facts(self.output) or {}).get("complete"))
        self.image = self.writer.jobs[0].pyramid.name
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
        """The unfinished blocks of this part: a stretch of neighbours."""
        number, total = self.part
        units = self.units()
        mine = units[len(units) * (number - 1) // total:len(units) * number // total]
        return [unit for unit in mine if not self.is_done(unit)]

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
            yield from self._predict(begin)
            yield from self.finish()
        yield self.finished(time.monotonic() - begin)

    def _predict(self, begin: float) -> Iterator[PredictionEvent]:
        units = self.own_units()
        left = self.count_tiles(units)
        total = self.count_tiles() if self.part[1] == 1 else left
        computed = 0
        yield TileEvent(total - left, total, None, self.image)
        for unit in units:
            steps = self.writer.steps(unit, self.before(unit))
            while True:
                try:
                    ran = next(steps)
                except StopIteration as stop:
                    yield from self.settle(stop.value)
                    break
                except OSError as error:
                    raise _disk_error(error, self.output) from error
                computed += ran
                if ran:
                    done = min(total - left + computed, total)
                    pace = (time.monotonic() - begin) / computed
                    yield TileEvent(done, total, pace * (total - done), self.image)
        if left:
            yield TileEvent(total, total, 0.0, self.image)

    def settle(self, record: BlockRecord) -> Iterator[PredictionEvent]:
        """Note a block that was computed, and tell of the tiles that could not be."""
        try:
            self.journal.append(record.to_line())
        except OSError as error:
            raise _disk_error(error, self.output) from error
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

    def _uncertainty(self) -> np.ndarray[Any, np.dtype[np.float32]]:
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
            areas=list(facts.get("areas") or area_table(
                self.writer.jobs[0], self._tally())),
        )


def band_width(job: Job, memory: int = 128 * 2**20) -> int:
    """Blocks along x in a band, so that the tiles shared with the next row stay in memory."""
    plan = job.plan
    tile = 4 * len(job.spec.class_table) * int(np.prod(plan.size))
    shared = max(1, plan.block[-1] // plan.step[-1])
    return max(1, memory // (tile * shared))

