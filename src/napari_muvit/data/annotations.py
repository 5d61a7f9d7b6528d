"""Annotations: one sparse label image of full size beside each image, written as you paint.

The store is a standard OME-Zarr label image in which only touched chunks exist. Label 0 is
unlabelled; background is a class that is painted like any other. One process at a time may
write. What `AnnotationStore.write` takes is in a log on the disk within moments and in the
image soon after; whatever a crash left in the log is brought into the image on opening.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_muvit.data.annotation_metadata import (
    check_class_table,
    check_store,
    create_annotations,
    edit_attributes,
    read_attributes,
    read_table,
)
from napari_muvit.data.annotation_place import check_same_image, default_path
from napari_muvit.data.annotation_window import AnnotationWindow, WindowPlace
from napari_muvit.data.chunk_files import Block
from napari_muvit.data.label_arrays import LabelArrays, parse_level
from napari_muvit.data.labels import ClassTable
from napari_muvit.data.lock import WriterLock
from napari_muvit.data.stroke_log import StrokeLog, parse_change
from napari_muvit.data.stroke_writer import StrokeWriter
from napari_muvit.errors import MuvitError, SourceNotFoundError


def open_annotations(
    image: Any, *, classes: ClassTable | None = None, folder: str | os.PathLike[str] | None = None,
    path: str | os.PathLike[str] | None = None, writable: bool = True,
) -> AnnotationStore:
    """The annotation store of an image, made if there is none.

    Parameters
    ----------
    image
        A pyramid, or anything `open_pyramid` takes.
    classes
        Class table of a new store, with 0 unlabelled. An existing store keeps its own.
    folder
        Where the store lies; beside the image by default. Name it for images on read-only or
        remote disks.
    path
        The store itself, instead of ``<image stem>_annotations.ome.zarr`` in `folder` (with
        ``_s1``, ``_t3`` or ``_z2`` before ``_annotations`` for one of several series, time
        points or planes of a file).
    writable
        False opens without a lock, for reading only.

    Raises
    ------
    LockedError
        If another process writes to it; `owner` says which.
    SourceError
        If the folder cannot be written, or the store belongs to another image, or to another
        series, time point or plane.
    InputError
        If the image has a range of time points.
    """
    from napari_muvit.data.pyramid import open_pyramid

    pyramid = image if hasattr(image, "spatial_shape") else open_pyramid(image)
    place = Path(path) if path is not None else default_path(pyramid, folder)
    if not place.exists():
        _begin(place, pyramid, classes, writable)
    store = AnnotationStore(place, writable=writable)
    try:
        if check_same_image(place, store.shape, store._attributes["muvit"], pyramid) and writable:
            here = {"image": pyramid.source, "place": str(store.path)}
            store._attributes = edit_attributes(place, here)
    except BaseException:
        store.close()
        raise
    return store


def _begin(place: Path, pyramid: Any, classes: ClassTable | None, writable: bool) -> None:
    if not writable:
        raise SourceNotFoundError(
            f"there are no annotations at {place}. Open them for writing to begin some.",
            source=str(place),
        )
    create_annotations(place, pyramid, classes)


class AnnotationStore:
    """One annotation store, open for reading or for writing.

    Parameters
    ----------
    path
        A store made by `create_annotations`.
    writable
        Whether to take the lock, bring in what a crash left in the log, and accept changes.

    Raises
    ------
    LockedError
        If another process, or another object in this one, writes to it.
    SourceError
        If `path` is not an annotation store.
    """

    def __init__(self, path: str | os.PathLike[str], writable: bool = True) -> None:
        from napari_muvit.data.omezarr import open_arrays

        self.path = Path(path).absolute()
        self._attributes = read_attributes(self.path)
        self.classes = read_table(self._attributes)
        self._lock = WriterLock(self._beside("lock"), self.path.name) if writable else None
        self._log = StrokeLog(self._beside("strokes"))
        try:
            self.arrays = LabelArrays.halved(open_arrays(self.path, "r+" if writable else "r"))
            if writable:
                self._recover()
        except BaseException:
            if self._lock is not None:
                self._lock.release()
            raise
        self._edits = itertools.count(1)
        self._closing = threading.Lock()
        self._writer: StrokeWriter | None = None
        if self._lock is not None:
            check = functools.partial(check_store, self.path)
            self._writer = StrokeWriter(self.arrays, self._log, self._lock.touch, check)
            # For stores that nobody closes. Zarr's own exit handler ends its event loop; ours
            # is registered later and so runs before it.
            self._finish = weakref.finalize(self, _finish, self._writer, self._lock)
            self._finish.atexit = False
            atexit.register(self._finish)

    def _beside(self, what: str) -> Path:
        # Not inside: zarr readers warn of files that are no part of the hierarchy.
        return self.path.with_name(f".{self.path.name}.{what}")

    def _recover(self) -> None:
        for file in self.path.rglob("*.partial"):
            file.unlink(missing_ok=True)
        for _ in self.arrays.apply(self._log.read()):
            pass
        self.arrays.sync()
        self._log.clear()

    @property
    def is_writable(self) -> bool:
        """Whether changes are accepted."""
        return self._writer is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of the image at full resolution, px."""
        return self.arrays.shape

    @property
    def levels(self) -> tuple[int, ...]:
        """Levels of the arrays on disk."""
        return tuple(self.arrays.levels)

    @property
    def image(self) -> str | None:
        """The image that these annotations belong to, as it was named when they were begun."""
        source = self._attributes["muvit"].get("image")
        return None if source is None else str(source)

    @property
    def error(self) -> Exception | None:
        """Why the last write failed, until one succeeds; what is not written is kept."""
        return None if self._writer is None else self._writer.error

    @property
    def is_saved(self) -> bool:
        """Whether everything handed over is in the image."""
        return self._writer is None or not self._writer.is_pending

    def read(self, level: int, start: Sequence[int], size: Sequence[int]) -> NDArray[Any]:
        """Labels of a block at `level`, (*size), what was just painted included.

        Parameters
        ----------
        start, size
            First pixel and number of pixels, in pixels of the level. Outside the image: 0.

        Raises
        ------
        SourceNotFoundError
            If the store was deleted or moved since it was opened.
        """
        level = parse_level(level, self.shape, self.arrays.scaled_axes)
        if self._writer is None:
            labels = self.arrays.read(level, start, size)
        else:
            self._writer.flush(box=self.arrays.box(level, start, size))
            with self._writer.lock:
                labels = self.arrays.read(level, start, size)
        if not labels.any():
            check_store(self.path)  # chunks that are missing read as unlabelled
        return labels

    def write(
        self, level: int, start: Sequence[int], mask: NDArray[np.bool_],
        labels: NDArray[Any] | int, edit: int | None = None,
    ) -> int:
        """Set labels where `mask` is true; returns at once, the disk follows.

        Parameters
        ----------
        level, start
            Where the block lies: first pixel, in pixels of the level.
        mask
            (*S) bool. Nothing else in the store changes.
        labels
            (*S) labels, or one for all.
        edit
            Number of the edit that this continues, for undo; a new one by default.

        Raises
        ------
        InputError
            If the block has other axes than the store, or a label that it cannot hold.
        """
        writer = self._require_writer()
        level = parse_level(level, self.shape, self.arrays.scaled_axes)
        change = parse_change(level, start, mask, labels, self.shape, self.arrays.dtype)
        edit = next(self._edits) if edit is None else edit
        if change is not None:
            writer.put(edit, [change])
        return edit

    def undo(self, edit: int) -> int | None:
        """Restore what was under `edit`, where nothing was painted over it since.

        Returns the number of the edit that this makes (undo that to redo), or None if `edit`
        is too old or changed nothing.
        """
        writer = self._require_writer()
        writer.flush()
        with writer.lock:
            changes = writer.history.changes_back(edit, self.arrays)
        if not changes:
            return None
        undone = next(self._edits)
        writer.put(undone, changes)
        writer.flush()
        return undone

    def is_forgotten(self, edit: int) -> bool:
        """Whether `edit` was too large, or is too old, to be undone."""
        return self._require_writer().history.is_forgotten(edit)

    def flush(self) -> None:
        """Wait until everything painted is in the image.

        Raises
        ------
        WriteError
            If the disk refuses; the changes are kept and tried again.
        """
        if self._writer is not None:
            self._writer.flush()

    def set_classes(self, classes: ClassTable) -> None:
        """Replace the class table: names and colours of the labels. Pixels stay as they are.

        Raises
        ------
        InputError
            If 0 is not the unlabelled value, or a value does not fit the store.
        """
        self._require_writer()
        table = check_class_table(classes)
        self._attributes = edit_attributes(self.path, {}, table)
        self.classes = table

    @property
    def window_places(self) -> tuple[WindowPlace, ...]:
        """Where windows have been opened, in order."""
        rows = self._attributes["muvit"].get("windows") or []
        return tuple(WindowPlace.from_dict(row) for row in rows)

    def set_window_places(self, places: Sequence[WindowPlace]) -> None:
        """Replace the list of windows that the store remembers."""
        self._require_writer()
        rows = [place.to_dict() for place in places]
        self._attributes = edit_attributes(self.path, {"windows": rows})

    def window(
        self, *, center: ArrayLike | None = None, corner: ArrayLike | None = None,
        level: int = 1, size: int | Sequence[int] = 1024, name: str | None = None,
    ) -> AnnotationWindow:
        """An editable window, remembered in the list of windows.

        Parameters
        ----------
        center, corner
            (A,) centre or lower outer edge, world px; one of the two.
        level
            Whole downsampling factor at which labels are painted.
        size
            Pixels of the level, one number (for the scaled axes; 1 along others) or one for
            each axis. Cut at the image's edges.
        name
            Of the window; the next free "window n" by default.
        """
        level = parse_level(level, self.shape, self.arrays.scaled_axes)
        place = WindowPlace.around(self.arrays, level, size, center, corner, name or "")
        known = self.window_places
        if not name:
            used = {other.name for other in known}
            free = next(n for n in itertools.count(1) if f"window {n}" not in used)
            place = place.renamed(f"window {free}")
        if self.is_writable:
            self.set_window_places([p for p in known if p.name != place.name] + [place])
        return AnnotationWindow(self, place)

    def reopen(self, place: WindowPlace) -> AnnotationWindow:
        """The window at a remembered place."""
        return AnnotationWindow(self, place)

    def class_counts(self) -> dict[int, int]:
        """Labelled full-resolution pixels of every value; kept up to date as you paint."""
        if self._writer is None:
            return dict(self.arrays.count(self._stored_blocks()))
        self._writer.flush()
        with self._writer.lock:
            if self._writer.counts is None:
                self._writer.counts = dict(self.arrays.count(self._stored_blocks()))
            return {value: n for value, n in self._writer.counts.items() if value and n}

    def labelled_boxes(self) -> NDArray[np.float64]:
        """Boxes (n, 2, A) of the chunks that hold labels, world px."""
        self.flush()
        boxes = [np.asarray(block, np.float64) - 0.5 for block in self._stored_blocks()]
        return np.stack(boxes) if boxes else np.zeros((0, 2, len(self.shape)))

    def _stored_blocks(self) -> Iterator[Block]:
        check_store(self.path)
        return self.arrays.stored_blocks(self.path / "0")

    def _require_writer(self) -> StrokeWriter:
        if self._writer is None:
            raise MuvitError(
                f"{self.path.name} is open for reading only. Open it with writable=True to paint."
            )
        return self._writer

    def close(self) -> None:
        """Write what is left and give the lock back; closing again does nothing.

        Raises
        ------
        WriteError
            If the disk refuses. The store is then still open and nothing is lost.
        """
        with self._closing:
            if self._writer is not None:
                self._writer.settle()
                self._writer.stop()
                self._writer = None
                self._log.remove()
                atexit.unregister(self._finish)
                self._finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _finish(writer: StrokeWriter, lock: WriterLock) -> None:
    """At exit: what cannot be written into the image any more stays in the log."""
    writer.stop()
    lock.release()
