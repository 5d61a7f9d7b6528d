"""Stage 7 of 7, live: what the user looks at is predicted first, the rest never.

A viewer tells which region it shows; one thread that owns the model predicts its tiles, centre
outwards, in batches, and keeps them in a cache on disk. The viewer's layer only reads that
cache, so it never waits. Knows no viewer: regions come in and callbacks go out in world px.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_muvit.data.labels import ClassTable
from napari_muvit.data.live_cache import DONE, NONE, OLD, LiveCache, prune_caches
from napari_muvit.errors import InputError
from napari_muvit.geometry import FloatArray
from napari_muvit.inference.engine import Engine, TileFailure
from napari_muvit.inference.job import Job, plan_job
from napari_muvit.inference.live_blend import LiveCanvas
from napari_muvit.inference.live_layer import (
    LiveArray,
    LiveUpdate,
    UncertainPlace,
    make_cache_layout,
)
from napari_muvit.inference.model_source import parse_model
from napari_muvit.inference.planes import Planes, open_planes
from napari_muvit.inference.tiles import Index

if TYPE_CHECKING:
    from napari_muvit.inference.device import Precision
    from napari_muvit.inference.model_source import KernelOption, ModelSource
    from napari_muvit.inference.predictor import Predictor

CACHE_BYTES = 4 * 2**30
MOST_ENGINES = 4
"""Planes whose readers are kept ready."""


@dataclass(frozen=True, eq=False)
class _View:
    box: FloatArray
    level: int
    plane: Index


class LivePrediction:
    """Labels of the visible part of an image, as they become known.

    Parameters
    ----------
    source, model, overlap, tissue, channels, t, z, image, batch_size, device, precision, threads, \
kernels
        See `predict`. Each tile, of small models every four, shows as soon as it is done: first
        as far as its middle, and blended with its neighbours as soon as they are there.
    cache
        Folder for caches, one for each image; used again at the next start. A temporary one by
        default.
    max_bytes
        Bound of the finest array of the cache, and of the caches of other images together;
        what was not seen for longest goes first.
    work_level
        Views of array `work_level` and finer are predicted; wider ones only show what is there.
    on_update, on_warning
        Called from the model's thread, with a `LiveUpdate` and with a sentence.

    Raises
    ------
    LockedError
        If another process uses the cache of this image.

    Attributes
    ----------
    arrays
        One array-like for each level, finest first; the coarsest is a numpy array that is
        filled in place.
    confidence_arrays
        The same of confidence: the probability of the label that is shown, uint8, 255 for
        certain, 0 where nothing is known.
    class_table
        What the labels mean.
    """

    def __init__(
        self, source: Any, model: Any, *, cache: str | Path | None = None,
        overlap: float = 0.25, tissue: str = "auto", channels: Any = None, t: int | None = None,
        z: int | None = None, image: str | int | None = None, batch_size: int | None = None,
        device: str = "auto", precision: Precision = "fp32", threads: int | None = None,
        kernels: KernelOption = "auto", max_bytes: int = CACHE_BYTES, work_level: int = 2,
        on_update: Callable[[LiveUpdate], None] | None = None,
        on_warning: Callable[[str], None] | None = None,
    ) -> None:
        self._computing: dict[str, Any] = {
            "device": device, "precision": precision, "threads": threads, "kernels": kernels}
        self._options: dict[str, Any] = {
            "overlap": overlap, "tissue": tissue, "batch_size": batch_size, "blend": False}
        self._given = model
        self._model: ModelSource | Predictor = parse_model(model, **self._computing)
        self._planes: Planes = open_planes(
            source, self._model.spec.ndim, channels=channels, t=t, z=z, image=image)
        self.on_update, self.on_warning = on_update, on_warning
        self._work_level = work_level
        job = self._plan(self._planes.pyramids[0])
        self._plan_of_all, self._temporary = job.plan, cache is None
        root = Path(tempfile.mkdtemp(prefix="muvit-live-")) if cache is None else Path(cache)
        layout = make_cache_layout(self._planes, job)
        self._cache = LiveCache(root / layout.image[:16], layout, self._model.spec.fingerprint)
        prune_caches(root, self._cache.folder, max_bytes)
        self._root = root
        self._most_tiles = max(64, max_bytes // layout.cell_bytes)
        self._seen = np.zeros(layout.tiles, np.uint32)
        self._tick = 0
        self._engines: dict[Index, Engine] = {self._planes.indices[0]: Engine(job, 0)}
        self._canvas = LiveCanvas(self._cache, job.plan)
        finer = range(self._cache.num_levels - 1)
        self.arrays: list[Any] = [
            *(LiveArray(self._cache, level) for level in finer), self._cache.coarsest]
        self.confidence_arrays: list[Any] = [
            *(LiveArray(self._cache, level, is_confidence=True) for level in finer),
            self._cache.coarsest_confidence,
        ]
        self._start()

    def _start(self) -> None:
        self._failed: set[Index] = set()
        self._pending: list[Index] = []
        self._request: _View | None = None
        self._view: _View | None = None
        self._swap: Any = None
        self._closed = False
        self._wake = threading.Condition()
        self._idle = threading.Event()
        self._idle.set()
        self._thread = threading.Thread(target=self._run, name="muvit-live", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------ for the viewer
    @property
    def class_table(self) -> ClassTable:
        """What the labels mean."""
        return self._model.spec.class_table

    @property
    def scale(self) -> tuple[float, ...]:
        """World px of a pixel of the finest array, along the axes of the tiles."""
        return self._plan_of_all.scales[0]

    @property
    def offset(self) -> tuple[float, ...]:
        """World position of the centre of its first pixel."""
        pairs = zip(self._plan_of_all.lowers[0], self.scale, strict=True)
        return tuple(lower + scale / 2 for lower, scale in pairs)

    @property
    def plane_axes(self) -> str:
        """Letters of the axes in front of those that tiles run over."""
        return self._planes.axes

    @property
    def states(self) -> NDArray[np.uint8]:
        """State of each tile: 0 nothing, 1 of this model, 2 of an earlier one."""
        return self._cache.states

    @property
    def entropies(self) -> NDArray[np.float32]:
        """Mean entropy of each tile, 0 to 1; NaN where it is not known."""
        return self._cache.entropies

    @property
    def cell(self) -> Index:
        """Pixels of the finest array in one element of `states` and `entropies`."""
        return self._cache.layout.cell

    def set_view(self, region: ArrayLike, level: int = 0, plane: Sequence[int] = ()) -> None:
        """The viewer shows `region`: predict what is missing there, and nothing else.

        Returns at once. Tiles that were waiting and are no longer visible are forgotten.

        Parameters
        ----------
        region
            (2, A) world px.
        level
            Which of `arrays` is shown.
        plane
            Place along `plane_axes`.
        """
        lead = len(self._planes.axes)
        view = _View(np.asarray(region, np.float64), level, (*plane, *(0,) * lead)[:lead])
        with self._wake:
            self._request = view
            self._idle.clear()
            self._wake.notify()

    def swap_model(self, model: Any) -> None:
        """Predict with another model from now on; its predecessor's tiles stay until replaced.

        Raises
        ------
        InputError, CheckpointError
            If the model cannot be loaded.
        """
        parsed = parse_model(model, **self._computing)
        new, old = parsed.spec, self._model.spec
        if (new.levels, new.crop_size, new.in_channels) != (
            old.levels, old.crop_size, old.in_channels
        ):
            raise InputError(
                f"the new model reads levels {new.levels} of {new.crop_size} px, the present one "
                f"{old.levels} of {old.crop_size}; their tiles do not match. Start another live "
                "prediction with it."
            )
        self._given = model
        self._hand_over(parsed)

    def use_device(self, device: str) -> None:
        """Go on on another device; what was predicted stays.

        Raises
        ------
        RunError
            If the device cannot be used here.
        """
        computing = {**self._computing, "device": device}
        parsed = parse_model(self._given, **computing)
        self._computing = computing
        self._hand_over(parsed)

    def _hand_over(self, parsed: ModelSource | Predictor) -> None:
        with self._wake:
            self._swap = parsed
            self._idle.clear()
            self._wake.notify()

    def most_uncertain(
        self, count: int = 1, plane: Sequence[int] | None = None
    ) -> list[UncertainPlace]:
        """The tiles of the present model with the highest mean entropy, highest first."""
        values = np.where(self._cache.states == DONE, self._cache.entropies, -1.0)
        if plane is not None:
            chosen = np.full(values.shape, -1.0)
            chosen[tuple(plane)] = values[tuple(plane)]
            values = chosen
        places = []
        for flat in np.argsort(values, axis=None)[::-1][:count]:
            tile = tuple(int(i) for i in np.unravel_index(flat, values.shape))
            if values[tile] >= 0:
                places.append(self._place(tile, float(values[tile])))
        return places

    def _place(self, tile: Index, entropy: float) -> UncertainPlace:
        lead = len(self._planes.axes)
        region = self._plan_of_all.cell_region(tile[lead:])
        lower, scale = np.asarray(self._plan_of_all.lowers[0]), np.asarray(self.scale)
        box = np.stack([
            lower + scale * [part.start for part in region],
            lower + scale * [part.stop for part in region],
        ])
        return UncertainPlace(box, entropy, tile[:lead])

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing visible is missing; False if that takes longer than `timeout` s."""
        return self._idle.wait(timeout)

    def close(self) -> None:
        """Stop the thread and let go of every file; calling it again does nothing."""
        with self._wake:
            if self._closed:
                return
            self._closed = True
            self._wake.notify()
        self._thread.join()
        self._cache.close()
        self._engines.clear()
        if self._temporary:
            shutil.rmtree(self._root, ignore_errors=True)

    def __enter__(self) -> LivePrediction:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------ the model's thread
    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._closed or self._request or self._swap or self._pending):
                    self._idle.set()
                    self._wake.wait()
                if self._closed:
                    self._idle.set()
                    return
                request, self._request = self._request, None
                swap, self._swap = self._swap, None
            try:
                self._step(request, swap)
            except Exception as error:  # noqa: BLE001 - the viewer must hear of it, whatever it is
                self._pending = []
                self._warn(f"live prediction stopped: {error}")

    def _step(self, request: _View | None, swap: Any) -> None:
        """Take up what is new, then predict one batch."""
        if swap is not None:
            self._take_model(swap)
            request = request or self._view
        if request is not None:
            self._view = request
            self._pending = self._missing(request)
        if self._pending and self._view is not None:
            engine = self._engine(self._view.plane)
            size = engine.job.batch_size
            batch, self._pending = self._pending[:size], self._pending[size:]
            self._predict(engine, self._view.plane, batch)
        plane = () if self._view is None else self._view.plane
        self._canvas.settle({(plane, index) for index in self._pending})

    def _take_model(self, model: ModelSource | Predictor) -> None:
        table, before = self.class_table, self._model.spec.fingerprint
        self._model = model
        if model.spec.class_table != table:
            self._warn("the new model has other classes; labels of the old one keep their values")
        self._engines.clear()
        self._failed.clear()
        mark = model.spec.fingerprint
        if mark != before:
            self._canvas.clear()
        self._cache.set_model(mark, is_new=mark != before)

    def _missing(self, view: _View) -> list[Index]:
        """Visible tiles that the present model has not predicted, centre of the view first."""
        plan = self._plan_of_all
        lower, scale = np.asarray(plan.lowers[0]), np.asarray(plan.scales[0])
        cells = (view.box - lower) / scale / np.asarray(plan.step)
        first = np.clip(np.floor(cells[0]).astype(int), 0, plan.num_cells)
        past = np.clip(np.ceil(cells[1]).astype(int), first, plan.num_cells)
        part = tuple(slice(a, b) for a, b in zip(first.tolist(), past.tolist(), strict=True))
        place: tuple[Any, ...] = (*view.plane, *part)
        self._tick += 1
        self._seen[place] = self._tick
        if view.level > self._work_level:
            return []
        wanted = self._engine(view.plane).job.cells[part]
        wanted = wanted & (self._cache.states[place] != DONE)
        indices = np.argwhere(wanted) + first
        distance = np.linalg.norm((indices + 0.5 - cells.mean(axis=0)) * plan.step, axis=1)
        order = np.argsort(distance, kind="stable")
        tiles = [tuple(int(i) for i in indices[k]) for k in order]
        return [tile for tile in tiles if (*view.plane, *tile) not in self._failed]

    def _predict(self, engine: Engine, plane: Index, batch: list[Index]) -> None:
        regions = []
        for tile in engine.predict(batch):
            if isinstance(tile, TileFailure):
                self._failed.add((*plane, *tile.index))
                self._warn(f"tile {tile.index} cannot be predicted: {tile.message}")
            else:
                regions.append(self._canvas.add(plane, tile, engine.job))
        self._make_room()
        if regions and self.on_update is not None:
            self.on_update(LiveUpdate(plane, tuple(regions), len(self._pending)))

    def _make_room(self) -> None:
        """Forget the tiles that were not seen for longest where there are too many."""
        states = self._cache.states
        excess = int((states != NONE).sum()) - self._most_tiles
        if excess <= 0:
            return
        seen = np.where(states != NONE, self._seen, np.iinfo(np.uint32).max)
        seen[self._seen == self._tick] = np.iinfo(np.uint32).max
        for flat in np.argsort(seen, axis=None)[:excess]:
            tile = tuple(int(i) for i in np.unravel_index(flat, seen.shape))
            if seen[tile] != np.iinfo(np.uint32).max:
                self._cache.forget(tile)

    def _engine(self, plane: Index) -> Engine:
        if plane not in self._engines:
            while len(self._engines) >= MOST_ENGINES:
                self._engines.pop(next(iter(self._engines)))
            pyramid = self._planes.pyramids[self._planes.indices.index(plane)]
            self._engines[plane] = Engine(self._plan(pyramid), 0)
        return self._engines[plane]

    def _plan(self, pyramid: Any) -> Job:
        return plan_job(pyramid, self._model, **self._options)

    def _warn(self, message: str) -> None:
        if self.on_warning is not None:
            self.on_warning(message)


__all__ = ["DONE", "NONE", "OLD", "LiveArray", "LivePrediction", "LiveUpdate", "UncertainPlace"]
