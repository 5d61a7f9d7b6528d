"""Polygons, dense labels and instance labels become painted labels.

A pixel belongs to a polygon if its centre does, by the even-odd rule over all its rings.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_muvit.data.label_arrays import parse_level
from napari_muvit.data.label_blocks import BLOCK, BlockArray, iterate_blocks
from napari_muvit.data.stroke_writer import WriteError
from napari_muvit.errors import InputError, MuvitWarning
from napari_muvit.geometry import aligned_offset, first_pixel

if TYPE_CHECKING:
    from napari_muvit.data.annotations import AnnotationStore

FLUSH_BLOCKS = 16


@dataclass(frozen=True)
class Polygon:
    """One class's area in one plane: outer rings and holes, by the even-odd rule.

    Attributes
    ----------
    rings
        Each (n, 2) float64 corners (y, x), world px; the last joins the first.
    value
        Label of the class.
    plane
        Index along z, for volumes.
    """

    rings: tuple[NDArray[np.float64], ...]
    value: int
    plane: int = 0

    @property
    def box(self) -> NDArray[np.float64]:
        """(2, 2) lowest and highest corner, world px."""
        corners = np.concatenate(self.rings)
        return np.stack([corners.min(axis=0), corners.max(axis=0)])

    def lies_on(self, shape: Sequence[int]) -> bool:
        """Whether its box meets an image of `shape`, px."""
        low, high = self.box
        return bool((high > -0.5).all() and (low < np.asarray(shape[-2:]) - 0.5).all())


class _WholeEdit:
    """One edit of a store, made block by block: whatever ends it early takes all of it back."""

    def __init__(self, store: AnnotationStore) -> None:
        self._store = store
        self._edit: int | None = None

    @property
    def number(self) -> int:
        """Of the edit, for undo; -1 if nothing was painted."""
        return -1 if self._edit is None else self._edit

    def paint(
        self, level: int, start: Sequence[int], mask: NDArray[np.bool_], labels: NDArray[Any]
    ) -> None:
        """Set labels where `mask` is true."""
        self._edit = self._store.write(level, start, mask, labels, self._edit)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None and self._edit is not None:
            # A disk that refuses to write was the error, and is told already.
            with contextlib.suppress(WriteError):
                self._store.undo(self._edit)
                if self._store.is_forgotten(self._edit):
                    warnings.warn(
                        f"what was painted in {self._store.path} before the error stays: it is "
                        "too large to be taken back.", MuvitWarning, stacklevel=3,
                    )


def fill_rings(
    rings: Iterable[ArrayLike], start: Sequence[int], size: Sequence[int], level: int = 1
) -> NDArray[np.bool_]:
    """Pixels whose centres lie inside `rings` by the even-odd rule, (*size) bool.

    Parameters
    ----------
    rings
        Each (n, 2) corners (y, x), world px.
    start, size
        The block, in pixels of `level`, (2,) each.
    """
    height, width = size
    # World to pixels of the block, where pixel i has its centre at i.
    shift = float(aligned_offset(level)) + level * np.asarray(start, np.float64)
    flips = np.zeros((height, width + 1), np.int32)
    for ring in rings:
        corners = (np.asarray(ring, np.float64) - shift) / level
        _flip_edges(flips, corners, np.roll(corners, -1, axis=0))
    inside: NDArray[np.bool_] = np.cumsum(flips, axis=1)[:, :width] % 2 == 1
    return inside


def _flip_edges(
    flips: NDArray[np.int32], begin: NDArray[np.float64], end: NDArray[np.float64]
) -> None:
    """Add, in each row an edge crosses, one at the first pixel to the right of the crossing."""
    height, width = flips.shape[0], flips.shape[1] - 1
    low, high = np.minimum(begin[:, 0], end[:, 0]), np.maximum(begin[:, 0], end[:, 0])
    # Half open, so that a corner on a row counts for one of its two edges.
    first = np.clip(np.ceil(low), 0, height).astype(np.int64)
    last = np.clip(np.ceil(high), 0, height).astype(np.int64)
    number = last - first
    edge = np.repeat(np.arange(len(begin)), number)
    if not len(edge):
        return
    row = np.arange(len(edge)) - np.repeat(np.cumsum(number) - number, number) + first[edge]
    slope = (end[edge, 1] - begin[edge, 1]) / (end[edge, 0] - begin[edge, 0])
    crossing = begin[edge, 1] + (row - begin[edge, 0]) * slope
    column = np.clip(np.ceil(crossing), 0, width).astype(np.int64)
    np.add.at(flips, (row, column), 1)


def paint_polygons(store: AnnotationStore, polygons: Iterable[Polygon], level: int = 1) -> int:
    """Paint polygons into a store, later ones over earlier ones; returns the edit's number.

    Those beside the image are left out with a warning.

    Parameters
    ----------
    level
        Downsampling factor at which edges are drawn; 1 is exact.

    Raises
    ------
    InputError
        If a polygon, its label or its plane does not fit the store, the level is none, or all
        polygons lie beside the image.
    """
    level = parse_level(level, store.shape, store.arrays.scaled_axes)
    polygons = list(polygons)
    for polygon in polygons:
        _check_polygon(polygon, store)
    _check_places(polygons, store.shape)
    blocks: dict[tuple[int, ...], list[Polygon]] = {}
    for polygon in polygons:
        for place in _touched_blocks(store, polygon, level):
            blocks.setdefault(place, []).append(polygon)
    with _WholeEdit(store) as edit:
        for number, ((plane, top, left), inside) in enumerate(
                sorted(blocks.items(), key=_block_key)):
            labels = _draw_block(store, inside, (top, left), level)
            if labels.any():
                flat = (plane,) if len(store.shape) == 3 else ()
                labels = labels.reshape((1,) * len(flat) + labels.shape)
                edit.paint(level, (*flat, top, left), labels > 0, labels)
            if number % FLUSH_BLOCKS == FLUSH_BLOCKS - 1:
                store.flush()  # so that what waits to be written stays small
        store.flush()
    return edit.number


def _block_key(item: tuple[tuple[int, ...], list[Polygon]]) -> tuple[int, ...]:
    return item[0]


def _draw_block(
    store: AnnotationStore, polygons: Sequence[Polygon], start: tuple[int, int], level: int
) -> NDArray[Any]:
    """Labels of one block of `level`, each polygon drawn only where its box is."""
    limit = np.minimum(np.add(start, BLOCK), store.arrays.level_shape(level)[-2:])
    labels = np.zeros(limit - start, store.arrays.dtype)
    for polygon in polygons:
        low, high = _pixel_range(polygon, level)
        low, high = np.maximum(low, start), np.minimum(high, limit)
        if (high > low).all():
            inside = fill_rings(polygon.rings, low.tolist(), (high - low).tolist(), level)
            cut = tuple(map(slice, low - start, high - start))
            labels[cut][inside] = polygon.value
    return labels


def _pixel_range(polygon: Polygon, level: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First pixel of `level`, and one past the last, that a polygon may touch; (2,) each."""
    low = np.floor((polygon.box[0] + 0.5) / level).astype(np.int64)
    high = np.ceil((polygon.box[1] + 0.5) / level).astype(np.int64) + 1
    return low, high


def _check_polygon(polygon: Polygon, store: AnnotationStore) -> None:
    if len(store.shape) == 3 and not 0 <= polygon.plane < store.shape[0]:
        raise InputError(
            f"a polygon lies in plane {polygon.plane}; the store has {store.shape[0]}, counted "
            "from 0. Give it one of these."
        )
    for ring in polygon.rings:
        if ring.ndim != 2 or ring.shape[1] != 2 or not np.isfinite(ring).all():
            raise InputError(
                f"a polygon's ring has shape {ring.shape}; rings are (n, 2) finite corners "
                "(y, x) in world px. Pass the corners in one plane."
            )
    if polygon.value < 1:
        raise InputError(
            f"a polygon has the label {polygon.value}; classes have values from 1, and 0 is "
            "unlabelled. Give it a class of the store."
        )


def _check_places(polygons: Sequence[Polygon], shape: Sequence[int]) -> None:
    """Refuse outlines of another image or scale: all of them lie beside this one."""
    outside = [polygon for polygon in polygons if not polygon.lies_on(shape)]
    if not outside:
        return
    boxes = np.stack([polygon.box for polygon in outside])
    (top, left), (bottom, right) = boxes[:, 0].min(axis=0), boxes[:, 1].max(axis=0)
    where = (f"they reach from y {top:.0f} to {bottom:.0f} and x {left:.0f} to {right:.0f}, and "
             f"the image has {shape[-2]} x {shape[-1]} px")
    if len(outside) == len(polygons):
        raise InputError(
            f"none of the {len(polygons)} outlines lies on the image: {where}. Outlines are in "
            "pixels of the full resolution; export them from this image, whole and unscaled."
        )
    warnings.warn(
        f"{len(outside)} of {len(polygons)} outlines lie beside the image and are left out: "
        f"{where}.", MuvitWarning, stacklevel=3,
    )


def _touched_blocks(
    store: AnnotationStore, polygon: Polygon, level: int
) -> Iterator[tuple[int, int, int]]:
    """Plane, first row and first column of the blocks that a polygon's box touches."""
    shape = store.arrays.level_shape(level)
    low, high = (np.clip(edge, 0, shape[-2:]) for edge in _pixel_range(polygon, level))
    for top in range(int(low[0]) // BLOCK * BLOCK, int(high[0]), BLOCK):
        for left in range(int(low[1]) // BLOCK * BLOCK, int(high[1]), BLOCK):
            yield polygon.plane, top, left


def paint_labels(
    store: AnnotationStore, labels: Any, values: Mapping[int, int] | None = None, *,
    level: int = 1, corner: ArrayLike | None = None, unlabelled: int | None = None,
    background: int | None = None,
) -> int:
    """Paint a dense label image into a store; returns the edit's number.

    In foreign label images 0 is background, unless `unlabelled` says that it is not judged.

    Parameters
    ----------
    labels
        (*S) integers in memory, dask or zarr; or a label `Pyramid`, of which the finest
        array is taken.
    values
        From the labels' values to those of the store; others are left out. By default every
        value stands for itself, and 0 for the store's background class.
    level, corner
        Whole downsampling factor of the array, and lower outer edge, world px; the whole
        image by default.
    unlabelled
        Value that means not judged and is not painted.
    background
        Value that means background in `labels`; 0 by default.

    Raises
    ------
    InputError
        If the labels are no whole numbers, have other axes than the store, or reach above what
        it holds. Whatever ends the painting early, nothing of it stays.
    """
    array, level = _as_array(labels, level)
    _check_labels(array, store)
    start = _first_pixel_of(store, level, corner)
    background = 0 if background is None and unlabelled != 0 else background
    with _WholeEdit(store) as edit:
        for low, block in iterate_blocks(array):
            mapped, mask = _map_values(block, store, values, unlabelled, background)
            if mask.any():
                place = tuple(int(a + b) for a, b in zip(start, low, strict=True))
                edit.paint(level, place, mask, mapped)
                store.flush()
    return edit.number


def paint_instances(
    store: AnnotationStore, labels: Any, value: int, *, level: int = 1,
    corner: ArrayLike | None = None, background: int | None = None,
) -> int:
    """Paint everything above 0 of an instance label image as the class `value`.

    The rest is painted as `background` where that is given, and left alone otherwise.
    Returns the edit's number; raises as `paint_labels` does.
    """
    array, level = _as_array(labels, level)
    _check_labels(array, store)
    start = _first_pixel_of(store, level, corner)
    with _WholeEdit(store) as edit:
        for low, block in iterate_blocks(array):
            inside = block > 0
            mask = np.ones_like(inside) if background is not None else inside
            if mask.any():
                place = tuple(int(a + b) for a, b in zip(start, low, strict=True))
                edit.paint(level, place, mask, np.where(inside, value, background or 0))
                store.flush()
    return edit.number


def _map_values(
    block: NDArray[Any], store: AnnotationStore, values: Mapping[int, int] | None,
    unlabelled: int | None, background: int | None,
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The store's labels for a block of foreign ones, and which pixels have one."""
    mapped = np.zeros(block.shape, np.int64)
    mask = np.zeros(block.shape, bool)
    for found in np.unique(block).tolist():
        if found == unlabelled:
            continue
        if values is not None:
            value = values.get(found)
        elif found == background:
            value = store.classes.background
        else:
            value = found
        if value is not None:
            here = block == found
            mapped[here], mask[here] = value, True
    if mask.any() and not 0 <= mapped.min() <= mapped.max() <= np.iinfo(store.arrays.dtype).max:
        raise InputError(
            f"the label image has values up to {mapped.max()}; the store holds classes from 1 to "
            "255. Import instances with paint_instances, or pass values to map them."
        )
    return mapped, mask


def _as_array(labels: Any, level: int) -> tuple[Any, int]:
    """The array to read, and its level: for a pyramid the finest and its own factor."""
    if not hasattr(labels, "spatial_shape"):
        return labels, level
    factors = {round(f, 6) for f in labels.factors[0][-2:]}
    if len(factors) != 1 or not next(iter(factors)).is_integer():
        raise InputError(
            f"labels {labels.name!r} have factors {labels.factors[0]}; they need one whole factor. "
            "Pass an array and its level."
        )
    finest = BlockArray(labels.spatial_shape, labels.dtype, partial(labels.read, 0))
    return finest, level * int(next(iter(factors)))


def _check_labels(array: Any, store: AnnotationStore) -> None:
    if len(array.shape) != len(store.shape):
        raise InputError(
            f"the label image has shape {tuple(array.shape)} and the store {store.shape}; they "
            "need the same axes. Pass the plane that belongs to it."
        )
    if np.dtype(array.dtype).kind not in "iub":
        raise InputError(
            f"labels are of type {array.dtype}; label images hold whole numbers. Convert them, "
            "for example with labels.astype('uint8')."
        )


def _first_pixel_of(
    store: AnnotationStore, level: int, corner: ArrayLike | None
) -> tuple[int, ...]:
    if corner is None:
        return (0,) * len(store.shape)
    factors = np.asarray(store.arrays.factors(level))
    return tuple(first_pixel(corner, factors, aligned_offset(factors)).tolist())
