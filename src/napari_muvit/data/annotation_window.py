"""Editable windows onto an annotation store: a plain array at one place and level.

Whatever paints changes `AnnotationWindow.labels` in place; `commit` finds the pixels that
differ from what was last written and writes only those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_muvit.data.label_arrays import LabelArrays
from napari_muvit.errors import InputError
from napari_muvit.geometry import aligned_offset, crop_extents, first_pixel, pixel_box, place_boxes


class WindowStore(Protocol):
    """What a window needs of an annotation store."""

    arrays: LabelArrays

    def read(self, level: int, start: Sequence[int], size: Sequence[int]) -> NDArray[Any]: ...

    def write(
        self, level: int, start: Sequence[int], mask: NDArray[np.bool_],
        labels: NDArray[Any] | int, edit: int | None = None,
    ) -> int: ...

    def undo(self, edit: int) -> int | None: ...


@dataclass(frozen=True)
class WindowPlace:
    """Where a window lies: level, first pixel and size in pixels of the level, (A,) each."""

    name: str
    level: int
    start: tuple[int, ...]
    size: tuple[int, ...]

    @classmethod
    def around(
        cls, arrays: LabelArrays, level: int, size: int | Sequence[int],
        center: ArrayLike | None, corner: ArrayLike | None, name: str,
    ) -> WindowPlace:
        """The place at `center` or `corner` (A,), world px, cut at the image's edges.

        Raises
        ------
        InputError
            If nothing of it lies inside the image.
        """
        shape = arrays.level_shape(level)
        num_axes = len(shape)
        if np.isscalar(size):
            size = [int(size) if a in arrays.scaled_axes else 1 for a in range(num_axes)]  # type: ignore[arg-type]
        extent = crop_extents([level], size, num_axes, arrays.scaled_axes)
        box = place_boxes(extent, center=center, corner=corner)[0]
        factors = arrays.factors(level)
        start = first_pixel(box[0], factors, aligned_offset(factors))
        low = np.clip(start, 0, shape)
        high = np.clip(start + np.asarray(size), 0, shape)
        if np.any(high <= low):
            raise InputError(
                f"the window {box.tolist()} lies outside the image of {arrays.shape} px. Place "
                "it on the image."
            )
        return cls(name, level, tuple(low.tolist()), tuple((high - low).tolist()))

    def renamed(self, name: str) -> WindowPlace:
        """The same place under another name."""
        return replace(self, name=name)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WindowPlace:
        """The place that `to_dict` wrote."""
        return cls(
            str(data["name"]), int(data["level"]), tuple(int(n) for n in data["start"]),
            tuple(int(n) for n in data["size"]),
        )


class AnnotationWindow:
    """An array of labels to paint in, and its way back into the store.

    Attributes
    ----------
    labels
        (*size) labels; paint in it, then call `commit`.
    factor, offset
        (A,) world px of one pixel, and world position of the centre of pixel 0.
    box
        (2, A) outer edges, world px.
    """

    def __init__(self, store: WindowStore, place: WindowPlace) -> None:
        self.store, self.place = store, place
        factors = np.asarray(store.arrays.factors(place.level), np.float64)
        self.factor = factors
        self.offset = aligned_offset(factors) + factors * np.asarray(place.start)
        self.box = pixel_box(place.start, place.size, factors, aligned_offset(factors))
        self.labels: NDArray[Any] = store.read(place.level, place.start, place.size)
        self._committed = self.labels.copy()
        self._touched: NDArray[np.bool_] | None = None
        self._open_edit: int | None = None
        self._done: list[int] = []
        self._undone: list[int] = []

    def touch(self, indices: tuple[NDArray[Any], ...]) -> None:
        """Note pixels that are painted, though they may show the label already.

        A coarse pixel shows the most frequent label below it; painting that label over it
        sets all of them.
        """
        if self.place.level > 1:
            if self._touched is None:
                self._touched = np.zeros(self.labels.shape, bool)
            self._touched[indices] = True

    def commit(self, is_stroke_done: bool = True) -> int:
        """Write the pixels painted since the last call; returns how many.

        Parameters
        ----------
        is_stroke_done
            False while the mouse is still down: what comes next belongs to the same stroke
            and is undone with it.
        """
        mask = self.labels != self._committed
        if self._touched is not None:
            mask |= self._touched
            self._touched = None
        count = int(np.count_nonzero(mask))
        if count:
            edit = self.store.write(
                self.place.level, self.place.start, mask, self.labels, self._open_edit
            )
            if edit != self._open_edit:
                self._done.append(edit)
            self._open_edit = edit
            self._undone.clear()
            np.copyto(self._committed, self.labels)
        if is_stroke_done:
            self._open_edit = None
        return count

    def undo(self) -> bool:
        """Take the last stroke of this window back; whether there was one.

        Fine labels under a coarse stroke come back as they were. Pixels that another window
        has painted since stay.
        """
        self.commit()
        return self._step(self._done, self._undone)

    def redo(self) -> bool:
        """Bring the last undone stroke back; whether there was one."""
        self.commit()
        return self._step(self._undone, self._done)

    def _step(self, source: list[int], target: list[int]) -> bool:
        while source:
            undone = self.store.undo(source[-1])
            source.pop()
            if undone is not None:
                target.append(undone)
                self.refresh()
                return True
        return False

    def refresh(self) -> None:
        """Show what the store holds, strokes of other windows included."""
        self.commit()
        self.labels[...] = self.store.read(self.place.level, self.place.start, self.place.size)
        np.copyto(self._committed, self.labels)
