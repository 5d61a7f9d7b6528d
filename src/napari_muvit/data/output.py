"""Stage 7 of 7: prediction stores, written block by block, and the journal of what is done.

A store is an OME-Zarr image whose finest array is written in blocks of whole chunks. Beside the
arrays lies a journal with one line for each finished block, appended after the block's pixels
are on disk; a line that was cut short counts for nothing. When all blocks are done the coarser
arrays are made from the finest, and the journal goes. So a killed run loses only the blocks
under way, and what a store claims to hold it holds.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.data.labels import ClassTable
from napari_muvit.data.lock import WriterLock
from napari_muvit.data.omezarr import create_pyramid, open_arrays
from napari_muvit.data.resample import average, choose_labels
from napari_muvit.data.sources.stores import open_store
from napari_muvit.errors import LockedError, RunExistsError, SourceError
from napari_muvit.renaming import rename_over

JOURNAL = "muvit-predict"
LOCK = ".lock"
SMALLEST = 256
"""Coarser arrays are made until the longer side has at most this many pixels."""

DOWN_PIXELS = 1 << 22
"""Pixels of a finer array that are read at once to make a coarser one."""


@dataclass(frozen=True)
class OutputLayout:
    """How a prediction lies in its store.

    Attributes
    ----------
    shape, axes
        Of the finest array, letters of ``tczyx``.
    block
        Pixels of a block along the spatial axes that tiles run over; blocks are written whole.
    chunk
        Pixels of a chunk along them; divides `block`.
    scale, translation
        Of the finest array along z, y, x as in `axes`: um, or world px where `unit` is None.
    """

    shape: tuple[int, ...]
    axes: str
    block: tuple[int, ...]
    chunk: tuple[int, ...]
    scale: tuple[float, ...]
    translation: tuple[float, ...]
    has_unit: bool
    is_sharded: bool = False
    fmt: str = "0.5"
    name: str = ""

    @property
    def levels(self) -> tuple[int, ...]:
        """Factors of the arrays relative to the finest: powers of two along y and x."""
        longer = max(self.shape[-2:])
        count = max(0, math.ceil(math.log2(max(1.0, longer / SMALLEST))))
        return tuple(2**k for k in range(count + 1))


class PredictionStore:
    """One output image under way or finished.

    Parameters
    ----------
    path
        Its folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.arrays = open_arrays(self.path)
        self.is_labels = "image-label" in _ome(self._group().attrs)

    @classmethod
    def create(
        cls, path: str | Path, layout: OutputLayout, *, dtype: Any, facts: Mapping[str, Any],
        classes: ClassTable | None = None, channel_names: Sequence[str] | None = None,
        channel_colors: Sequence[str] | None = None, fill_value: float = 0,
    ) -> PredictionStore:
        """A new store with its metadata complete; it appears under its name in one step.

        Parameters
        ----------
        facts
            What the prediction is made of; see `read_facts`.
        classes
            Makes it a label image.
        """
        final = Path(path)
        spatial = sum(letter in "zyx" for letter in layout.axes)
        chunk = (1,) * (spatial - len(layout.chunk)) + layout.chunk
        block = (1,) * (spatial - len(layout.block)) + layout.block
        with unfinished_folder(final) as unfinished:
            create_pyramid(
                unfinished, shape=layout.shape, axes=layout.axes, levels=layout.levels,
                dtype=dtype, chunk=chunk, shard=block if layout.is_sharded else None,
                pixel_size=layout.scale, translation=layout.translation, fmt=layout.fmt,
                name=layout.name, channel_names=channel_names,
                channel_colors=channel_colors, classes=classes, fill_value=fill_value,
            )
            group = _open_group(unfinished)
            if not layout.has_unit:
                _drop_units(group)
            group.attrs["muvit"] = {
                **dict(group.attrs.get("muvit", {})), "prediction": {**facts, "complete": False},
            }
            take_place(unfinished, final)
        return cls(final)

    def _group(self) -> Any:
        return _open_group(self.path)

    @property
    def facts(self) -> dict[str, Any]:
        """What the prediction was made of, and whether it is ``complete``."""
        return read_facts(self.path) or {}

    def write(self, region: Sequence[slice | int], pixels: NDArray[Any]) -> None:
        """Write one block of the finest array."""
        self.arrays[0][tuple(region)] = pixels.astype(self.arrays[0].dtype, copy=False)

    def read(self, region: Sequence[slice | int]) -> NDArray[Any]:
        """Pixels of the finest array."""
        return np.asarray(self.arrays[0][tuple(region)])

    def coarsen(self) -> Iterator[tuple[int, int]]:
        """Make the coarser arrays, yielding (blocks done, blocks in total)."""
        plans = [list(_whole_chunks(array)) for array in self.arrays[1:]]
        total, done = sum(map(len, plans)), 0
        for number, plan in enumerate(plans, start=1):
            for region in plan:
                self._coarsen_block(number, region)
                done += 1
                yield done, total

    def _coarsen_block(self, number: int, region: tuple[slice, ...]) -> None:
        finer, coarser = self.arrays[number - 1], self.arrays[number]
        steps = [2 if axis >= coarser.ndim - 2 else 1 for axis in range(coarser.ndim)]
        source = tuple(
            slice(part.start * step, min(part.stop * step, size))
            for part, step, size in zip(region, steps, finer.shape, strict=True)
        )
        block = np.asarray(finer[source])
        fill = np.asarray(finer.fill_value, finer.dtype)
        if (block == fill).all():
            return
        size = [part.stop - part.start for part in region]
        reduce = choose_labels if self.is_labels else average
        wide = block if self.is_labels else block.astype(np.float32)
        small = reduce(wide[None], steps, size, [0.0] * len(size))[0]
        coarser[region] = small.astype(coarser.dtype, copy=False)

    def put_tiles(self, name: str, values: NDArray[Any]) -> None:
        """Keep one number for each tile as an array ``name`` beside the image's."""
        group = self._group()
        if name in group:
            del group[name]
        group.create_array(name, data=values)

    def set_facts(self, **facts: Any) -> None:
        """Change what `facts` returns."""
        group = self._group()
        block = dict(group.attrs["muvit"])
        group.attrs["muvit"] = {**block, "prediction": {**block["prediction"], **facts}}


@contextlib.contextmanager
def unfinished_folder(final: Path) -> Iterator[Path]:
    """The path of a hidden folder beside `final`, to be filled and renamed to it.

    It is locked as long as it is filled, so that whoever comes next can tell what a killed
    process left behind, and removes it.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(final)
    unfinished = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}")
    with WriterLock(unfinished.with_name(unfinished.name + LOCK), "this unfinished store"):
        try:
            yield unfinished
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise


def take_place(unfinished: Path, final: Path) -> None:
    """Rename a folder to `final`, where nothing may be but an empty folder."""
    if final.is_dir():  # Windows does not rename over one
        final.rmdir()
    os.replace(unfinished, final)


def _remove_leftovers(final: Path) -> None:
    pattern = re.compile(re.escape(f".{final.name}.") + "[0-9a-f]{8}")
    names = {path.name.removesuffix(LOCK) for path in final.parent.iterdir()}
    for name in filter(pattern.fullmatch, names):
        try:
            with WriterLock(final.with_name(name + LOCK), "this unfinished store"):
                shutil.rmtree(final.with_name(name), ignore_errors=True)
        except LockedError:  # another process fills it at this moment
            continue


class Journal:
    """Lines that say which blocks of a store are done; one file for each writer.

    Parameters
    ----------
    store
        The store's folder.
    writer
        Name of this writer: several processes may fill one store, each with its own file.
    """

    def __init__(self, store: str | Path, writer: str = "") -> None:
        self.folder = Path(store)
        self.file = self.folder / f"{JOURNAL}{'-' if writer else ''}{writer}.jsonl"

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line; it is on disk when this returns."""
        line = json.dumps(record) + "\n"
        cut_short = self.file.is_file() and not _ends_with_newline(self.file)
        with self.file.open("a", encoding="utf-8") as file:
            file.write("\n" + line if cut_short else line)

    def records(self) -> Iterator[dict[str, Any]]:
        """Every whole line of every writer."""
        for file in sorted(self.folder.glob(f"{JOURNAL}*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                except ValueError:  # cut short by a crash
                    continue
                if isinstance(record, dict):
                    yield record

    def remove(self) -> None:
        """Forget all lines: the store is complete."""
        for file in self.folder.glob(f"{JOURNAL}*.jsonl"):
            file.unlink(missing_ok=True)


def read_facts(path: str | Path) -> dict[str, Any] | None:
    """What the prediction at `path` was made of; None where there is none.

    Raises
    ------
    RunExistsError
        If `path` holds something else.
    """
    folder = Path(path)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        block = dict(open_store(str(folder)).attrs).get("muvit")
    except SourceError:
        block = None
    facts = block.get("prediction") if isinstance(block, Mapping) else None
    if not isinstance(facts, Mapping):
        raise RunExistsError(
            f"{folder} already exists and is no prediction, and nothing is overwritten. Choose "
            "another output, for example a new name in that folder."
        )
    return dict(facts)


def write_text(path: Path, text: str) -> None:
    """Write a small file beside its place and rename it into it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    unfinished.write_text(text, encoding="utf-8", newline="")
    rename_over(unfinished, path)


def _open_group(path: Path) -> Any:
    import zarr

    return zarr.open_group(zarr.storage.LocalStore(path), mode="r+", use_consolidated=False)


def _ome(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    block = attributes.get("ome", attributes)
    return block if isinstance(block, Mapping) else {}


def _drop_units(group: Any) -> None:
    """Take the unit out of the axes: scales are then pixels."""
    attributes = dict(group.attrs)
    block = attributes.get("ome", attributes)
    for axis in block["multiscales"][0]["axes"]:
        axis.pop("unit", None)
    group.attrs.update(attributes)


def _ends_with_newline(file: Path) -> bool:
    with file.open("rb") as stream:
        if not stream.seek(0, os.SEEK_END):
            return True
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"


def _whole_chunks(array: Any) -> Iterator[tuple[slice, ...]]:
    """Regions of whole chunks (or shards) that cover an array."""
    unit = list(array.shards or array.chunks)
    steps = list(unit)
    for axis in (array.ndim - 1, array.ndim - 2):
        while math.prod(steps) * 4 < DOWN_PIXELS and steps[axis] < array.shape[axis]:
            steps[axis] += unit[axis]
    ranges = [range(0, size, step) for size, step in zip(array.shape, steps, strict=True)]
    for start in itertools.product(*ranges):
        axes = zip(start, steps, array.shape, strict=True)
        yield tuple(slice(first, min(first + step, size)) for first, step, size in axes)
