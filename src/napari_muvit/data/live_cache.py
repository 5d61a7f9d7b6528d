"""Stage 7 of 7: what live prediction has found so far, on disk, one chunk for each tile.

An OME-Zarr of labels, and one of confidence, whose finest arrays have chunks of exactly one
tile's cell, a file with one byte of state for each tile, and a file with each tile's entropy.
Coarser arrays take the pixel nearest to the centre of theirs, so that every tile adds its own
part and nothing else. The coarsest are also held as numpy arrays that are filled in place:
viewers keep them whole.
"""

from __future__ import annotations

import json
import math
import shutil
import threading
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.data.lock import WriterLock
from napari_muvit.data.omezarr import create_pyramid, open_arrays
from napari_muvit.data.output import write_text
from napari_muvit.errors import LockedError, MuvitWarning
from napari_muvit.renaming import replace_patiently

LABELS, CONFIDENCE = "labels.ome.zarr", "confidence.ome.zarr"
NONE, DONE, OLD = 0, 1, 2
"""State of a tile: nothing there, of the present model, of an earlier model."""

SMALLEST = 2048
"""The coarsest array has at most this many pixels along its longer side."""

Index = tuple[int, ...]


@dataclass(frozen=True)
class CacheLayout:
    """What a cache holds.

    Attributes
    ----------
    shape
        Pixels of the finest array: planes in front, then the axes of the tiles.
    cell
        Pixels of a tile's cell along each axis of the tiles.
    axes
        Letters of `shape`.
    dtype, fill
        Of the labels, and the value of what is not predicted.
    image
        Equal for equal images and tiles; another one empties the cache.
    """

    shape: tuple[int, ...]
    cell: tuple[int, ...]
    axes: str
    dtype: str
    fill: int
    image: str

    @property
    def num_planes_axes(self) -> int:
        """Number of axes in front of those that tiles run over."""
        return len(self.shape) - len(self.cell)

    @property
    def tiles(self) -> tuple[int, ...]:
        """Planes and tiles along each axis."""
        lead = self.num_planes_axes
        sizes = zip(self.shape[lead:], self.cell, strict=True)
        return self.shape[:lead] + tuple(-(-n // c) for n, c in sizes)

    @property
    def cell_bytes(self) -> int:
        """Bytes of one tile's labels and confidence, before compression."""
        return int(np.prod(self.cell)) * (np.dtype(self.dtype).itemsize + 1)

    @property
    def levels(self) -> tuple[int, ...]:
        """Factors of the arrays along y and x."""
        count = max(0, math.ceil(math.log2(max(self.shape[-2:]) / SMALLEST)))
        return tuple(2**k for k in range(count + 1))


class LiveCache:
    """Labels of finished tiles and what is known of each.

    One thread writes, others read.

    Parameters
    ----------
    folder
        Where it lies; made, and emptied if it holds another image or is damaged.
    layout
        What it is to hold.
    model
        Fingerprint of the model; tiles of another one become `OLD`.

    Raises
    ------
    LockedError
        If another process uses the folder.

    Attributes
    ----------
    states
        uint8 of each tile, (planes, *tiles); read only outside.
    entropies
        float32 of each tile, NaN where unknown.
    coarsest, coarsest_confidence
        The coarsest arrays, filled in place.
    """

    def __init__(self, folder: str | Path, layout: CacheLayout, model: str) -> None:
        self.folder = Path(folder)
        self.layout = layout
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = WriterLock(self.folder / "lock", "this prediction cache")
        self._guard = threading.Lock()
        try:
            self._open(model)
        except BaseException:
            self._lock.release()
            raise

    def _open(self, model: str) -> None:
        known = self._read_meta()
        if known is None or known.get("image") != self.layout.image or not self._is_whole():
            self._create()
            self._load()
            known = {}
        self._state_file = (self.folder / "states.bin").open("r+b")
        self._entropy_file = (self.folder / "entropies.bin").open("r+b")
        self.set_model(model, is_new=known.get("model") not in (None, model))

    def _is_whole(self) -> bool:
        """Load what is there; False, with a warning, where a crash or a full disk damaged it."""
        try:
            self._load()
        except Exception as error:  # noqa: BLE001 - every kind of damage has an error of its own
            warnings.warn(
                f"the cache of live prediction in {self.folder} is damaged ({error}). It is "
                "emptied, and what you look at is predicted again.", MuvitWarning, stacklevel=4,
            )
            return False
        return True

    def _load(self) -> None:
        self._labels = open_arrays(self.folder / LABELS)
        self._confidence = open_arrays(self.folder / CONFIDENCE)
        self.states: NDArray[np.uint8] = np.fromfile(
            self.folder / "states.bin", np.uint8).reshape(self.layout.tiles)
        self.entropies: NDArray[np.float32] = np.fromfile(
            self.folder / "entropies.bin", np.float32).reshape(self.layout.tiles)
        self.coarsest: NDArray[Any] = np.asarray(self._labels[-1][...])
        self.coarsest_confidence: NDArray[np.uint8] = np.asarray(self._confidence[-1][...])

    def _read_meta(self) -> dict[str, Any] | None:
        try:
            meta = json.loads((self.folder / "cache.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return meta if isinstance(meta, dict) else None

    def _create(self) -> None:
        """An empty cache in the place of whatever was there; its meta file comes last."""
        (self.folder / "cache.json").unlink(missing_ok=True)
        spatial = sum(letter in "zyx" for letter in self.layout.axes)
        chunk = (1,) * (spatial - len(self.layout.cell)) + self.layout.cell
        for name, dtype, fill in (
            (LABELS, self.layout.dtype, self.layout.fill), (CONFIDENCE, "uint8", 0),
        ):
            store = self.folder / name
            if store.exists():
                shutil.rmtree(store)
            create_pyramid(
                store, shape=self.layout.shape, axes=self.layout.axes, levels=self.layout.levels,
                dtype=dtype, chunk=chunk, is_labels=name == LABELS, fill_value=fill,
            )
        np.zeros(self.layout.tiles, np.uint8).tofile(self.folder / "states.bin")
        np.full(self.layout.tiles, np.nan, np.float32).tofile(self.folder / "entropies.bin")

    def set_model(self, model: str, *, is_new: bool = True) -> None:
        """From now on tiles are of `model`; what is there becomes old if that `is_new`."""
        if is_new:
            with self._guard:
                self.states[self.states == DONE] = OLD
                self._state_file.seek(0)
                self._state_file.write(self.states.tobytes())
                self._state_file.flush()
        write_text(self.folder / "cache.json", json.dumps({
            "image": self.layout.image, "model": model, "cell_bytes": self.layout.cell_bytes}))

    @property
    def num_levels(self) -> int:
        """Arrays of the pyramid."""
        return len(self._labels)

    def level_shape(self, level: int) -> tuple[int, ...]:
        """Shape of one array."""
        return tuple(self._labels[level].shape)

    def level_chunks(self, level: int) -> tuple[int, ...]:
        """Chunks of one array."""
        return tuple(self._labels[level].chunks)

    def read(self, level: int, index: Any) -> NDArray[Any]:
        """Labels of one array; never more than a read."""
        return np.asarray(self._labels[level][index])

    def read_confidence(self, level: int, index: Any) -> NDArray[np.uint8]:
        """Confidence of one array; never more than a read."""
        return np.asarray(self._confidence[level][index])

    def write(
        self, tile: Index, region: tuple[slice, ...], labels: NDArray[Any], *,
        confidence: NDArray[np.uint8], entropy: float, state: int = DONE,
    ) -> None:
        """Keep one tile.

        Parameters
        ----------
        tile
            Plane and place in the grid of tiles.
        region
            Its pixels along the axes of the tiles.
        labels, confidence
            Labels there, and the probability of each, 255 for certain.
        """
        lead = tile[: self.layout.num_planes_axes]
        labels = labels.astype(self.layout.dtype, copy=False)
        # Labels last: who looks in between finds no label without its confidence.
        for arrays, coarsest, values in (
            (self._confidence, self.coarsest_confidence, confidence),
            (self._labels, self.coarsest, labels),
        ):
            _put(arrays[0], (*lead, *region), values)
            for number, factor in enumerate(self.layout.levels):
                found = self._pick(factor, lead, region)
                if number and found is not None:
                    _put(arrays[number], found[0], values[found[1]])
                if number == len(arrays) - 1 and found is not None:
                    coarsest[found[0]] = values[found[1]]
        self._set_state(tile, state, entropy)

    def _pick(
        self, factor: int, lead: Index, region: tuple[slice, ...]
    ) -> tuple[tuple[Any, ...], tuple[Any, ...]] | None:
        """Where a region lies in the array of a factor, and which of its pixels go there."""
        target, source = [], []
        sizes = self.layout.shape[len(lead):]
        for axis, (part, size) in enumerate(zip(region, sizes, strict=True)):
            step = factor if axis >= len(region) - 2 else 1
            low = max(0, -(-(part.start - step // 2) // step))
            high = -(-size // step) if part.stop == size else -(-(part.stop - step // 2) // step)
            picked = np.minimum(np.arange(low, high) * step + step // 2, size - 1)
            picked = picked[picked >= part.start]
            if not len(picked):
                return None
            target.append(slice(high - len(picked), high))
            source.append(picked - part.start)
        return (*lead, *target), np.ix_(*source)

    def _set_state(self, tile: Index, state: int, entropy: float) -> None:
        place = int(np.ravel_multi_index(tile, self.layout.tiles))
        with self._guard:
            self.states[tile], self.entropies[tile] = state, entropy
            self._entropy_file.seek(4 * place)
            self._entropy_file.write(np.float32(entropy).tobytes())
            self._entropy_file.flush()
            self._state_file.seek(place)
            self._state_file.write(bytes([state]))
            self._state_file.flush()
        self._lock.touch()

    def forget(self, tile: Index) -> None:
        """Drop one tile from the finest array, to make room; coarser arrays keep it."""
        self._set_state(tile, NONE, math.nan)
        lead = tile[: self.layout.num_planes_axes]
        cells = zip(tile[len(lead):], self.layout.cell, self.layout.shape[len(lead):], strict=True)
        region = tuple(slice(i * c, min((i + 1) * c, n)) for i, c, n in cells)
        _put(self._labels[0], (*lead, *region), self.layout.fill)
        _put(self._confidence[0], (*lead, *region), 0)

    def close(self) -> None:
        """Let go of every file; calling it again does nothing."""
        self._state_file.close()
        self._entropy_file.close()
        self._lock.release()


def _put(array: Any, index: tuple[Any, ...], values: Any) -> None:
    """Write to an array whose chunks viewers read meanwhile."""
    replace_patiently(partial(array.__setitem__, index, values))


def prune_caches(root: Path, keep: Path, max_bytes: int) -> None:
    """Delete caches of other images, the longest unused first, until all fit `max_bytes`.

    Caches that another process uses stay, and so does everything that is no cache.
    """
    others = [path.parent for path in root.glob("*/cache.json") if path.parent != keep]
    others.sort(key=_last_used, reverse=True)
    used = 0
    for folder in others:
        held = _used_bytes(folder)
        used += held or 0
        if held is None or used > max_bytes:
            _delete(folder)


def _last_used(folder: Path) -> float:
    """When a cache was last opened; 0 for one that another process has just deleted."""
    try:
        return (folder / "cache.json").stat().st_mtime
    except OSError:
        return 0.0


def _used_bytes(folder: Path) -> int | None:
    """About what the tiles of a cache take; None where it cannot be read."""
    try:
        meta = json.loads((folder / "cache.json").read_text(encoding="utf-8"))
        states = np.fromfile(folder / "states.bin", np.uint8)
        return int(np.count_nonzero(states)) * int(meta["cell_bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _delete(folder: Path) -> None:
    try:
        lock = WriterLock(folder / "lock", "this prediction cache")
    except (LockedError, FileNotFoundError):  # in use, or deleted by another process
        return
    (folder / "cache.json").unlink(missing_ok=True)
    lock.release()
    shutil.rmtree(folder, ignore_errors=True)
