"""Any source to OME-Zarr: block by block, in threads, with progress and resume.

The finest array is read from the source; each coarser one is averaged from what was already
written, on the grid that `Pyramid.crop` would use for a missing level. A log beside the arrays
lists finished blocks, so an interrupted conversion goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_muvit.data.crop import read_region
from napari_muvit.data.lock import WriterLock
from napari_muvit.data.omezarr import create_pyramid, open_arrays
from napari_muvit.data.output import take_place, unfinished_folder
from napari_muvit.data.pyramid import Pyramid, open_pyramid
from napari_muvit.data.sources.remote import is_url
from napari_muvit.errors import InputError, RunExistsError
from napari_muvit.geometry import parse_levels

if TYPE_CHECKING:
    from napari_muvit.data.labels import ClassTable

LOG_NAME = "muvit-convert.jsonl"
BLOCK_BYTES = 8 * 2**20
"""Bytes of output pixels that one thread works on at once."""

Box = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class ConvertEvent:
    """Progress of a conversion: blocks done and in total, seconds that remain."""

    done: int
    total: int
    remaining: float | None


@dataclass(frozen=True)
class _Job:
    """One conversion: what is read, how it is written, and what makes it the same again."""

    source: Pyramid
    output: Path
    levels: tuple[int | float, ...]
    axes: str
    scaled_axes: tuple[str, ...]
    settings: dict[str, Any]
    classes: ClassTable | None

    @property
    def log(self) -> Path:
        return self.output / LOG_NAME

    @property
    def signature(self) -> str:
        content = json.dumps([self.source.fingerprint, self.levels, self.axes, self.scaled_axes,
                              self.settings], default=str)
        return hashlib.sha256(content.encode()).hexdigest()


def convert(
    source: Any, output: str | os.PathLike[str], *, levels: Sequence[float] = (1, 2, 4, 8),
    chunk: int | Sequence[int] = 512, shard: int | Sequence[int] | None = None, fmt: str = "0.5",
    channels: Any = None, t: Any = None, z: Any = None, image: str | int | None = None,
    scaled_axes: Sequence[str] = ("y", "x"), as_labels: bool = False,
    classes: ClassTable | None = None, workers: int | None = None,
) -> Iterator[ConvertEvent]:
    """Write any source as an OME-Zarr pyramid; iterate over the result to do the work.

    Parameters
    ----------
    source
        Anything that `open_pyramid` takes. All time points are converted unless `t` chooses.
    levels
        Factors of the arrays that are written.
    output
        Folder of the OME-Zarr image.
    chunk, shard, fmt
        Pixels along y and x, or of each spatial axis; ``"0.4"`` or ``"0.5"``.
    channels, t, z, image
        What of the source to convert, as of `open_pyramid`.
    scaled_axes
        Axes that a level downsamples, by letter.
    as_labels, classes
        Write labels: coarser arrays take the majority. A class table implies it.
    workers
        Threads; at most four of the processor's cores by default.

    Raises
    ------
    RunExistsError
        If `output` holds something other than this conversion, unfinished.
    LockedError
        While iterating, if another process is writing `output`.
    SourceError, InputError
    """
    factors = parse_levels(levels)
    _check_call(output, chunk, shard, workers)
    pyramid = _open_all(source, channels, t, z, image, as_labels or classes is not None)
    settings = {"chunk": chunk, "shard": shard, "fmt": fmt, "labels": pyramid.is_labels,
                "classes": None if classes is None else classes.to_dict()}
    scaled = tuple(a for a in scaled_axes if a != "z" or "z" in pyramid.axes)
    job = _Job(pyramid.uncached(), Path(output), factors, _written_axes(pyramid), scaled, settings,
               classes)
    _check_output(job)
    return _run_alone(job, workers or min(4, os.cpu_count() or 1))


def _check_call(
    output: str | os.PathLike[str], chunk: int | Sequence[int], shard: int | Sequence[int] | None,
    workers: int | None,
) -> None:
    if workers is not None and workers < 1:
        raise InputError(f"workers is {workers}; at least one thread is needed. Pass 1 or more.")
    if is_url(os.fspath(output)):
        raise InputError(
            f"the output {os.fspath(output)} is an address; conversions are written to this "
            "computer. Pass a path, and upload the folder when it is complete."
        )
    sides, wholes = np.atleast_1d(chunk), np.atleast_1d(1 if shard is None else shard)
    comparable = shard is not None and 0 not in sides and (
        1 in {sides.size, wholes.size} or sides.size == wholes.size)
    if comparable and np.remainder(wholes, sides).any():
        raise InputError(
            f"shard is {shard} for chunks of {chunk}; shards hold whole chunks. Pass a multiple "
            "of chunk."
        )


def _written_axes(pyramid: Pyramid) -> str:
    """Axes of the output in stored order; labels of one channel have none."""
    has_channels = not (pyramid.is_labels and pyramid.num_channels == 1)
    return "".join(a for a in "tczyx" if a in pyramid.axes[0 if has_channels else 1:])


def _open_all(
    source: Any, channels: Any, t: Any, z: Any, image: str | int | None, as_labels: bool
) -> Pyramid:
    """The pyramid with every time point, unless one was chosen."""
    pyramid = open_pyramid(source, channels=channels, t=t, z=z, image=image)
    if t is None and pyramid.num_times > 1 and not isinstance(source, Pyramid):
        pyramid = open_pyramid(source, channels=channels, t=slice(None), z=z, image=image)
    return pyramid.as_labels() if as_labels else pyramid


def _check_output(job: _Job) -> None:
    """Whether the output is free, or holds this conversion unfinished."""
    if not job.output.exists() or (job.output.is_dir() and not any(job.output.iterdir())):
        return
    known = _read_log(job.log)
    if known and known[0].get("signature") == job.signature:
        return
    what = "an unfinished conversion of something else" if known else "something already"
    raise RunExistsError(
        f"{job.output} holds {what}, and nothing is overwritten. Choose another output, or "
        "remove it first."
    )


def _read_log(log: Path) -> list[dict[str, Any]]:
    """Lines of the log; a last line that was cut short is left out."""
    if not log.is_file():
        return []
    rows = []
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _write_log(log: Path, rows: list[dict[str, Any]]) -> None:
    """Replace the log as a whole; a line that a crash cut short would swallow the next one."""
    beside = log.with_suffix(".new")
    beside.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    beside.replace(log)


def _run_alone(job: _Job, workers: int) -> Iterator[ConvertEvent]:
    """The conversion, while no other process writes the same output."""
    job.output.parent.mkdir(parents=True, exist_ok=True)
    with WriterLock(job.output.with_name(f".{job.output.name}.lock"), str(job.output)):
        _check_output(job)  # another process may have finished it since
        yield from _run(job, workers)


def _run(job: _Job, workers: int) -> Iterator[ConvertEvent]:
    rows = _read_log(job.log)
    finished = {(row["array"], row["block"]) for row in rows if "block" in row}
    arrays = open_arrays(job.output) if rows else _create(job)
    if rows:
        _write_log(job.log, rows)
    plans = [_blocks(job, array) for array in arrays]
    total = sum(map(len, plans))
    done = 0
    started = time.monotonic()
    fresh = 0
    with job.log.open("a", encoding="utf-8") as log, ThreadPoolExecutor(workers) as pool:
        yield ConvertEvent(0, total, None)
        for number, (array, plan) in enumerate(zip(arrays, plans, strict=True)):
            reader = job.source if number == 0 else _written(job, number)
            todo = [k for k in range(len(plan)) if (number, k) not in finished]
            done += len(plan) - len(todo)
            for block in _in_order(pool, workers, job, reader, array, number, plan, todo):
                log.write(json.dumps({"array": number, "block": block}) + "\n")
                log.flush()
                done, fresh = done + 1, fresh + 1
                passed = time.monotonic() - started
                yield ConvertEvent(done, total, passed / fresh * (total - done))
    job.log.unlink()
    yield ConvertEvent(total, total, 0.0)


def _in_order(
    pool: ThreadPoolExecutor, workers: int, job: _Job, reader: Pyramid, array: Any, number: int,
    plan: list[Box], todo: list[int],
) -> Iterator[int]:
    """Numbers of blocks as they are done; at most `workers` + 1 are under way."""
    pending: deque[tuple[int, Future[None]]] = deque()
    try:
        for k in todo:
            pending.append((k, pool.submit(_write_block, job, reader, array, number, plan[k])))
            if len(pending) > workers:
                block, future = pending.popleft()
                future.result()
                yield block
        while pending:
            block, future = pending.popleft()
            future.result()
            yield block
    finally:
        for _, future in pending:
            future.cancel()


def _create(job: _Job) -> list[Any]:
    source = job.source
    shape = {"c": source.num_channels, **dict(zip(source.axes[1:], source.spatial_shape,
                                                  strict=True))}
    spatial = [k for k, a in enumerate(source.axes[1:]) if a in "zyx"]
    sizes = None if source.pixel_size is None else [source.pixel_size[0][k] for k in spatial]
    places = None
    if sizes is not None:
        places = [source.origin[k] / source.spacing[k] * sizes[i] for i, k in enumerate(spatial)]
    names = source.channel_names if "c" in job.axes else None
    with unfinished_folder(job.output) as unfinished:  # never there without its log
        create_pyramid(
            unfinished, shape=[shape[a] for a in job.axes], axes=job.axes, levels=job.levels,
            dtype=source.dtype, chunk=job.settings["chunk"], shard=job.settings["shard"],
            pixel_size=sizes, translation=places, scaled_axes=job.scaled_axes,
            fmt=job.settings["fmt"], name=source.name, channel_names=names, classes=job.classes,
            channel_colors=source.channel_colors, is_labels=source.is_labels,
        )
        first = {"signature": job.signature, "source": source.source}
        _write_log(unfinished / LOG_NAME, [first])
        take_place(unfinished, job.output)
    return open_arrays(job.output)


def _written(job: _Job, count: int) -> Pyramid:
    """The first `count` arrays of the output, for averaging the next one."""
    t = slice(None) if "t" in job.axes else None
    z = slice(None) if "z" in job.axes else None
    written = open_pyramid(str(job.output), t=t, z=z).first_arrays(count)
    return (written.as_labels() if job.source.is_labels else written).uncached()


def _blocks(job: _Job, array: Any) -> list[Box]:
    """Regions (start, size over the source's spatial axes) made of whole chunks or shards."""
    unit = dict(zip(job.axes, array.shards or array.chunks, strict=True))
    shape = dict(zip(job.axes, array.shape, strict=True))
    letters = job.source.axes[1:]
    step = {a: min(unit[a], shape[a]) for a in letters}
    pixel = job.source.num_channels * job.source.dtype.itemsize
    # grow along x first: files with strips are read a row of chunks at a time
    for letter in ("x", "y"):
        held = pixel * float(np.prod([step[a] for a in letters]))
        times = max(1, int(BLOCK_BYTES // held))
        step[letter] = min(step[letter] * times, -(-shape[letter] // unit[letter]) * unit[letter])
    starts = [range(0, shape[a], step[a]) for a in letters]
    grid = np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1).reshape(-1, len(letters))
    return [
        (tuple(map(int, corner)),
         tuple(min(step[a], shape[a] - int(s)) for a, s in zip(letters, corner, strict=True)))
        for corner in grid
    ]


def _write_block(job: _Job, reader: Pyramid, array: Any, number: int, box: Box) -> None:
    start, size = box
    grid = reader.level_grid(_relative(job, number), job.scaled_axes)
    pixels = read_region(reader, grid, start, size)
    letters = "c" + job.source.axes[1:]
    if "c" not in job.axes:
        pixels, letters = pixels[0], letters[1:]
    places = dict(zip(job.source.axes[1:], zip(start, size, strict=True), strict=True))
    index = tuple(
        slice(places[a][0], places[a][0] + places[a][1]) if a in places else slice(None)
        for a in job.axes
    )
    array[index] = pixels.transpose([letters.index(a) for a in job.axes])


def _relative(job: _Job, number: int) -> float:
    """The level to ask of the reader: the output's world px are those of its first array."""
    return job.levels[0] if number == 0 else job.levels[number] / job.levels[0]
