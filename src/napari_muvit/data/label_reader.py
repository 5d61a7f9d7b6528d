"""Stage 2 of 7: labels that belong to a crop, by the box that was read.

A label image covers the same field as its image, on the same grid, or on a coarser one where
its metadata says so. Labels are looked up at the centre of each crop pixel, never averaged.

Axis letters: S spatial extent, A spatial axes.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.data.labels import ClassTable, check_label_dtype
from napari_muvit.data.places import PlaceMap, mark_cells
from napari_muvit.data.stored_chunks import array_blocks, block_pixels, scan_blocks
from napari_muvit.errors import ChannelError, InputError
from napari_muvit.geometry import FloatArray

if TYPE_CHECKING:
    from napari_muvit.data.pyramid import Pyramid

READ_PIXELS = 1 << 23
"""Label pixels that one lookup may read; coarser views come from a thinned copy."""

SCAN_PIXELS = 1 << 28
"""Label pixels that a scan for annotated places may read, stored chunks only."""

CELLS = 1024
"""Most cells of a place map along an axis."""


class LabelReader:
    """Class indices at any box of an image.

    Parameters
    ----------
    labels
        The label image.
    image
        The image that it belongs to, whose world coordinates boxes are in.
    table
        What the label values mean.

    Raises
    ------
    InputError
        If the labels do not cover the image.
    ChannelError
        If the labels have several channels, such as a coloured picture of labels.
    """

    def __init__(self, labels: Pyramid, image: Pyramid, table: ClassTable) -> None:
        self.pyramid = reread(labels)
        self.table = table
        self.extent = np.asarray(image.extent, dtype=np.float64)
        self.ratio = label_ratio(labels, image)
        self._thinned: dict[tuple[int, tuple[int, ...]], NDArray[Any]] = {}

    def read(self, box: FloatArray, size: Sequence[int]) -> NDArray[np.int16]:
        """Class indices (*size) at the centres of a crop's pixels; -1 where not judged.

        Parameters
        ----------
        box
            (2, A) outer edges of the crop, world px of the image.
        """
        own = (box + 0.5) / self.ratio - 0.5
        pitch = (own[1] - own[0]) / np.asarray(size)
        index = self._choose_array(pitch)
        factor = np.asarray(self.pyramid.factors[index])
        offset = np.asarray(self.pyramid.offsets[index])
        shape = self.pyramid.shapes[index]
        places, inside = [], []
        for axis, num in enumerate(size):
            world = own[0, axis] + (np.arange(num) + 0.5) * pitch[axis]
            places.append(
                np.clip(np.rint((world - offset[axis]) / factor[axis]), 0, shape[axis] - 1)
                .astype(np.int64)
            )
            low, high = (self.extent[:, axis] + 0.5) / self.ratio[axis] - 0.5
            inside.append((world > low) & (world < high))
        found = self.table.to_index(self._look_up(index, places))
        found[~reduce(np.logical_and.outer, inside)] = -1
        return found

    def _choose_array(self, pitch: FloatArray) -> int:
        """Index of the coarsest array that is no coarser than the crop's pixels."""
        fitting = [
            i for i, factor in enumerate(self.pyramid.factors)
            if np.all(np.asarray(factor) <= pitch * 1.02)
        ]
        return fitting[-1] if fitting else 0

    def _look_up(self, index: int, places: Sequence[NDArray[np.int64]]) -> NDArray[Any]:
        """Label values of array `index` at the given pixels along each axis."""
        start = tuple(int(axis.min()) for axis in places)
        size = tuple(int(axis.max()) + 1 - s for axis, s in zip(places, start, strict=True))
        if math.prod(size) > READ_PIXELS:
            thinned, step = self._thin(index, places)
            near = (p // k for p, k in zip(places, step, strict=True))
            values: NDArray[Any] = thinned[np.ix_(*near)]
            return values
        block: NDArray[Any] = self.pyramid.read(index, start, size)[0]
        found: NDArray[Any] = block[np.ix_(*map(np.subtract, places, start))]
        return found

    def _thin(
        self, index: int, places: Sequence[NDArray[np.int64]]
    ) -> tuple[NDArray[Any], tuple[int, ...]]:
        """Every n-th label of array `index`, kept in memory, and the steps between them.

        Labels without coarse arrays would be read again and again at full resolution.
        """
        strides = [max(1, (int(p[-1]) - int(p[0])) // max(1, len(p) - 1)) for p in places]
        step = tuple(1 << (stride.bit_length() - 1) for stride in strides)
        if (index, step) not in self._thinned:
            shape = self.pyramid.shapes[index]
            # the label in the middle of each cell, as crops take the one in the middle of theirs
            kept = [np.minimum(np.arange(0, n, k) + k // 2, n - 1)
                    for n, k in zip(shape, step, strict=True)]
            thinned = np.zeros([len(axis) for axis in kept], dtype=self.pyramid.dtype)
            for start, size in array_blocks(shape):
                ends = [np.searchsorted(axis, (s, s + n))
                        for axis, s, n in zip(kept, start, size, strict=True)]
                if any(low == high for low, high in ends):
                    continue
                block = self.pyramid.read(index, start, size)[0]
                near = (axis[low:high] - s
                        for axis, (low, high), s in zip(kept, ends, start, strict=True))
                thinned[tuple(slice(*pair) for pair in ends)] = block[np.ix_(*near)]
            self._thinned[index, step] = thinned
        return self._thinned[index, step], step

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_thinned": {}}


def reread(labels: Pyramid) -> Pyramid:
    """The same labels under a fingerprint of their own, so that no older cache serves them.

    Annotations change on disk while their store stays the same: what an earlier run in this
    process kept in memory must not be trained on again.
    """
    from napari_muvit.data.pyramid import Pyramid

    stamped = replace(labels._raw, stamp=f"{labels._raw.stamp} {uuid.uuid4()}")
    return Pyramid(stamped, labels._selection, labels.is_labels)


def label_ratio(labels: Pyramid, image: Pyramid) -> FloatArray:
    """Image pixels for each label pixel, (A,).

    Raises
    ------
    InputError
        If the labels have another shape, and no scale metadata that explains it.
    ChannelError
        If the labels have several channels.
    """
    check_label_dtype(labels.dtype)
    names = f"labels {labels.name!r}", f"image {image.name!r}"
    if int(labels.shape[0]) != 1:
        raise ChannelError(
            f"{names[0]} have {labels.shape[0]} channels; a label image has one, with a number "
            "for each class. A coloured picture of labels must be turned into numbers first."
        )
    ours, theirs = tuple(labels.spatial_shape), tuple(image.spatial_shape)
    if ours == theirs:
        return np.ones(len(ours))
    if len(ours) != len(theirs):
        raise InputError(
            f"{names[0]} have {len(ours)} spatial axes, {ours}, and {names[1]} has "
            f"{len(theirs)}, {theirs}; they must be the same. Choose a plane with z."
        )
    ratio = np.asarray(theirs) / np.asarray(ours)
    own_um, image_um = labels.pixel_size, image.pixel_size
    if own_um is not None and image_um is not None:
        stated = np.asarray(own_um[0]) / np.asarray(image_um[0])
        covered = stated * np.asarray(ours)
        if np.all(np.abs(covered - theirs) <= np.maximum(1.0, stated) + 1e-6):
            return np.asarray(stated, dtype=np.float64)
    shown = " x ".join(f"{v:g}" for v in ratio)
    raise InputError(
        f"{names[0]} have the shape {ours}, {names[1]} {theirs}; labels cover the same pixels as "
        f"their image. Give the labels of this image; if they are coarser by {shown}, write that "
        "into their scale metadata."
    )


def label_places(
    reader: LabelReader, max_pixels: int = SCAN_PIXELS
) -> tuple[PlaceMap, PlaceMap, float]:
    """Where anything is annotated, where a foreground class is, and how much is annotated.

    Only stored chunks are read, of the finest array whose stored chunks have at most
    `max_pixels` pixels; so a few strokes on a gigapixel image are found in a moment. A cell
    holds what any of its pixels holds.

    Returns
    -------
    annotated, foreground, coverage
        `coverage` is the share of the image that is annotated, 0..1.
    """
    pyramid, table = reader.pyramid, reader.table
    index, blocks = scan_blocks(pyramid, max_pixels)
    every = max(1, -(-block_pixels(blocks) // max_pixels))
    shape = pyramid.shapes[index]
    step = tuple(
        max(16, -(-n // CELLS)) if axis >= len(shape) - 2 else 1 for axis, n in enumerate(shape)
    )
    cells = tuple(-(-n // k) for n, k in zip(shape, step, strict=True))
    masks = np.zeros((2, *cells), dtype=bool)
    foreground = np.zeros(len(table) + 1, dtype=bool)
    foreground[list(table.foreground)] = True
    num_labelled = 0
    for number, (start, size) in enumerate(blocks):
        if number % every:
            # Too large to look at all of it: anything may be here, and draws will tell.
            mark_cells(masks[0], np.ones(size, dtype=bool), start, step)
            continue
        found = table.to_index(pyramid.read(index, start, size)[0])
        for i, mask in enumerate((found >= 0, foreground[found])):
            mark_cells(masks[i], mask, start, step)
        num_labelled += int(np.count_nonzero(found >= 0))
    factor = np.asarray(pyramid.factors[index])
    origin = (np.asarray(pyramid.offsets[index]) - factor / 2 + 0.5) * reader.ratio - 0.5
    cell = factor * reader.ratio * np.asarray(step)
    annotated, positive = (PlaceMap(mask, cell, reader.extent, origin) for mask in masks)
    return annotated, positive, min(1.0, every * num_labelled / math.prod(shape))
