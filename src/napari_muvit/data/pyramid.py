"""Stage 1 of 7: a store becomes a Pyramid: arrays, factors and places of one image.

World coordinates are pixels of the finest array. Factors and offsets come from the file's
metadata; where the file has none they come from the ratio of shapes and from aligned outer
edges (NGFF before 0.4, TIFF).
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_muvit.data.crop import (
    LevelGrid,
    NestedCrop,
    check_level_size,
    parse_positive_levels,
    parse_scaled_axes,
    plan_level,
    read_padded,
    read_region,
    reduce_region,
)
from napari_muvit.data.memory import shared_cache
from napari_muvit.data.placement import Placed, place_arrays
from napari_muvit.data.selection import Selection, at_plane, channel_colors, channel_names, select
from napari_muvit.data.sources import RawImage, read_source
from napari_muvit.data.sources.arrays import read_arrays, resolve
from napari_muvit.data.sources.raw import as_native, native_dtype
from napari_muvit.data.sources.stores import check_there, date_of
from napari_muvit.errors import InputError, MuvitError, SourceError
from napari_muvit.geometry import FloatArray, first_pixel, parse_size, pixel_box, place_boxes


def open_pyramid(
    source: Any, channels: Any = None, t: Any = None, z: Any = None,
    image: str | int | None = None,
) -> Pyramid:
    """Open an image of any size without reading its pixels.

    Parameters
    ----------
    source
        Path or URL of OME-Zarr, (OME-)TIFF, a slide file or an ordinary image; an array, a list
        of arrays (finest first), a zarr group, a napari layer, or a Pyramid.
    channels
        Index, name, list of these, or slice; all by default (colours without their opacity).
    t, z
        Index, or slice or range to keep the axis. By default the first time point and all z.
    image
        Name or number of the image, where the source holds several.

    Raises
    ------
    SourceNotFoundError, SourceError, InputError

    Examples
    --------
    >>> import numpy as np
    >>> open_pyramid(np.zeros((64, 48), np.uint8)).shape
    (1, 64, 48)
    """
    if isinstance(source, Pyramid):
        if any(choice is not None for choice in (channels, t, z, image)):
            raise InputError(
                f"{source.name!r} is already open, so channels, t, z and image cannot be chosen "
                "any more. Choose them when opening its path.")
        return source
    raw = read_source(source, image)
    return Pyramid(raw, select(raw, channels, t, z))


def pyramid_from_arrays(
    arrays: Sequence[Any], *, axes: str | None = None,
    pixel_size: Sequence[float] | None = None,
    factors: Sequence[Sequence[float]] | None = None,
    channel_names: Sequence[str] | None = None, name: str = "array", is_rgb: bool | None = None,
    is_labels: bool = False, channels: Any = None, t: Any = None, z: Any = None,
) -> Pyramid:
    """A pyramid of arrays that are already open, finest first.

    Parameters
    ----------
    axes
        Letters of ``tczyx`` in the order of the arrays; guessed where None.
    pixel_size
        um of each spatial axis at full resolution.
    factors
        Per array one factor for each spatial axis; the ratio of shapes where None.
    """
    raw = read_arrays(
        arrays, axes=axes, name=name, pixel_size=pixel_size, factors=factors,
        channel_names=channel_names, is_rgb=is_rgb, is_labels=is_labels,
    )
    return Pyramid(raw, select(raw, channels, t, z))


class Pyramid:
    """A whole multi-resolution image, read piece by piece.

    Picklable: each process opens its own arrays when it first reads.

    Attributes
    ----------
    axes
        ``"cyx"`` or ``"czyx"`` (``"ct..."`` where a range of time points was chosen).
    factors, offsets
        Per array and spatial axis: world px of one pixel, world position of pixel 0's centre.
    pixel_size
        Per array and spatial axis, um; None where unknown.
    spacing, origin
        Size of a world px and place of world position 0, per spatial axis, in the file's units.
    """

    def __init__(self, raw: RawImage, selection: Selection, is_labels: bool | None = None) -> None:
        self._raw = raw
        self._selection = selection
        self._placed: Placed = place_arrays(raw, selection)
        self.stored_axes = raw.axes
        self.stored_shape = raw.arrays[0].shape
        self._opened: dict[int, Any] = {}
        self.is_labels = raw.is_labels if is_labels is None else is_labels
        # labels in stores and arrays change while they are painted and predicted
        self._keeps = not self.is_labels or raw.kind.startswith(("picture", "TIFF"))
        self.axes = "c" + selection.axes
        self.dtype = native_dtype(raw.arrays[0].dtype)
        self.factors = self._placed.factors
        self.offsets = self._placed.offsets
        self.pixel_size = self._placed.pixel_size
        self.spacing = self._placed.spacing
        self.origin = self._placed.origin
        self.shapes = self._placed.shapes
        self.shape = (self.num_channels, *self.shapes[0])
        self.name = raw.name
        self.kind = raw.kind
        self.source = raw.source
        self.notes = (*raw.notes, *self._placed.notes, *self._time_note())
        self.label_metadata = raw.label_metadata
        self._fingerprint: str | None = None
        self._identity = object()

    def _time_note(self) -> tuple[str, ...]:
        if self.num_times == 1 or "t" in self._selection.axes:
            return ()
        shown = dict(self._selection.fixed)["t"]
        return (f"time point {shown} of {self.num_times} is shown; t= chooses another",)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}, "_identity": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _identity=object())

    def __repr__(self) -> str:
        return (f"Pyramid({self.name!r}, {self.kind}, axes={self.axes}, shape={self.shape}, "
                f"dtype={self.dtype}, {len(self.factors)} arrays)")

    @property
    def ndim(self) -> int:
        """Number of spatial axes, A."""
        return len(self._selection.axes)

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        return self.shapes[0]

    @property
    def num_channels(self) -> int:
        return 1 if self._selection.channels is None else len(self._selection.channels)

    @property
    def num_times(self) -> int:
        """Time points of the stored image, of which one is shown unless a range was chosen."""
        return self.stored_shape[self.stored_axes.index("t")] if "t" in self.stored_axes else 1

    @property
    def channel_names(self) -> tuple[str, ...]:
        """One name for each channel of `shape`; numbers where the file has none."""
        return channel_names(self._raw, self._selection.channels)

    @property
    def channel_colors(self) -> tuple[str, ...] | None:
        """The colour of each channel of `shape`, ``#rrggbb``; None where the file has none."""
        return channel_colors(self._raw, self._selection.channels)

    @property
    def is_rgb(self) -> bool:
        return self._raw.is_rgb and self._selection.channels == (0, 1, 2)

    @property
    def chunks(self) -> tuple[tuple[int, ...] | None, ...]:
        """Chunks of each array along the spatial axes, or None where it is read whole."""
        letters = self._raw.axes
        return tuple(
            None if handle.chunks is None
            else tuple(handle.chunks[letters.index(a)] for a in self._selection.axes)
            for handle in self._handles
        )

    @property
    def array_labels(self) -> tuple[str, ...]:
        """What to call each array, for example its path in the store."""
        return tuple(handle.label for handle in self._handles)

    @property
    def extent(self) -> FloatArray:
        """Outer edges of the image, (2, A) world px."""
        return pixel_box([0] * self.ndim, self.shapes[0], self.factors[0], self.offsets[0])

    @property
    def fingerprint(self) -> str:
        """A digest of what is read: source, its date, arrays and selection."""
        if self._fingerprint is None:
            digest = hashlib.sha256()
            arrays = [(h.label, h.shape, str(h.dtype)) for h in self._raw.arrays]
            parts = (self._raw.stamp, self.source, date_of(self.source), arrays, self._selection)
            digest.update(repr(parts).encode())
            self._fingerprint = digest.hexdigest()[:32]
        return self._fingerprint

    @property
    def _handles(self) -> tuple[Any, ...]:
        return tuple(self._raw.arrays[i] for i in self._placed.indices)

    def as_labels(self, is_labels: bool = True) -> Pyramid:
        """The same image served as labels: by majority or nearest pixel, never averaged."""
        if is_labels and self.dtype.kind not in "iu":
            raise InputError(f"{self.name!r} holds {self.dtype}; labels must be integers.")
        return Pyramid(self._raw, self._selection, is_labels)

    def plane(self, z: int) -> Pyramid:
        """One plane of this volume, as an image."""
        return Pyramid(self._raw, at_plane(self._selection, z), self.is_labels)

    def uncached(self) -> Pyramid:
        """The same image, every pixel read from the store each time: for one pass over it."""
        twin = copy.copy(self)
        twin._opened, twin._keeps = {}, False
        return twin

    def first_arrays(self, count: int) -> Pyramid:
        """The same image with only its finest `count` arrays."""
        kept = self._placed.indices[:count]
        raw = replace(
            self._raw, arrays=tuple(self._raw.arrays[i] for i in kept),
            scales=None if self._raw.scales is None else tuple(self._raw.scales[i] for i in kept),
            translations=None if self._raw.translations is None else tuple(
                self._raw.translations[i] for i in kept),
        )
        return Pyramid(raw, self._selection, self.is_labels)

    def renamed(self, name: str) -> Pyramid:
        """The same image under another name."""
        return Pyramid(replace(self._raw, name=name), self._selection, self.is_labels)

    def read(self, array_index: int, start: Sequence[int], size: Sequence[int]) -> NDArray[Any]:
        """Pixels (C, *size) of one array; the region must lie inside it.

        Raises
        ------
        InputError
            If the region leaves the array.
        SourceError
            If the pixels cannot be read.
        """
        shape = self.shapes[array_index]
        inside = all(s >= 0 and n > 0 and s + n <= full
                     for s, n, full in zip(start, size, shape, strict=True))
        if not inside:
            raise InputError(
                f"the region start {tuple(start)} size {tuple(size)} leaves array {array_index} "
                f"of shape {shape}; read regions inside it, or use crop(), which pads."
            )
        whole = self._kept(array_index)
        if whole is not None:
            place = tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))
            return whole[(slice(None), *place)].copy()
        return self._fetch(array_index, start, size)

    def _kept(self, array_index: int) -> NDArray[Any] | None:
        """The whole array where it is small enough to stay in memory, else None."""
        if self._handles[array_index].in_memory or not self._keeps:
            return None
        shape = self.shapes[array_index]
        nbytes = self.num_channels * int(np.prod(shape)) * self.dtype.itemsize
        if not shared_cache.takes(nbytes):
            return None
        key = (self.fingerprint, array_index)
        return shared_cache.get(key, lambda: self._fetch(array_index, [0] * self.ndim, shape))

    def kept_level(self, grid: LevelGrid) -> NDArray[Any] | None:
        """The whole averaged level, where it and the array it comes from fit into memory."""
        held = self._handles[grid.array_index].in_memory
        sizes = [self.num_channels * math.prod(shape) * self.dtype.itemsize
                 for shape in (grid.shape, self.shapes[grid.array_index])]
        if not self._keeps or not shared_cache.takes(sizes[0]):
            return None
        if not held and not shared_cache.takes(sizes[1]):
            return None
        # arrays in memory have no name by which another pyramid could find them again
        key = (self._identity if held else self.fingerprint, grid, self.is_labels)
        return shared_cache.get(
            key, lambda: reduce_region(self, grid, [0] * self.ndim, grid.shape))

    def _fetch(
        self, array_index: int, start: Sequence[int], size: Sequence[int]
    ) -> NDArray[Any]:
        """Pixels (C, *size) straight from the store."""
        plan = self._placed.plan_read(array_index, start, size)
        try:
            array = self._array(array_index)
            parts = [np.asarray(resolve(array[index])) for index in plan.indices]
        except MuvitError:
            raise
        except Exception as error:
            why = self._handles[array_index].explain(error)
            raise SourceError(f"{self.source or self.name}: {why}.", self.source) from error
        turned = [as_native(part).transpose(plan.order) for part in parts]
        pixels = turned[0] if len(turned) == 1 else np.concatenate(turned)
        if pixels.ndim == self.ndim:
            pixels = pixels[None]
        if plan.picks is not None:
            pixels = pixels[plan.picks]
        if self.source is not None and self._raw.kind.startswith("OME-Zarr"):
            check_there(self.source, pixels)
        # nobody gets a view of an array that belongs to the caller
        return np.array(pixels, copy=self._handles[array_index].in_memory or None, order="C")

    def _array(self, array_index: int) -> Any:
        if (opened := self._opened.get(array_index)) is None:
            opened = self._opened[array_index] = self._handles[array_index].open()
        return opened

    def level_grid(
        self, level: float, scaled_axes: Sequence[int | str] | None = None
    ) -> LevelGrid:
        """Where the pixels of a level lie and which array serves it."""
        return plan_level(self, level, parse_scaled_axes(scaled_axes, self.axes[1:]))

    def crop(
        self, center: ArrayLike | None = None, *, corner: ArrayLike | None = None,
        levels: Sequence[float] | float, size: int | Sequence[int],
        scaled_axes: Sequence[int | str] | None = None,
    ) -> NestedCrop:
        """Read the same place at several levels.

        Parameters
        ----------
        center, corner
            One of the two, world px: (A,) places the finest crop, the coarser ones centred on
            it; (L, A) places each. A corner is the lower outer edge.
        levels
            Ascending downsampling factors.
        size
            Pixels of each crop, in all or for each spatial axis.
        scaled_axes
            What a level downsamples, by letter or position; y and x by default.

        Examples
        --------
        >>> pyramid = open_pyramid(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64))
        >>> crop = pyramid.crop(center=(32, 32), levels=(1, 4), size=8)
        >>> crop.image.shape, crop.bbox.shape
        ((2, 1, 8, 8), (2, 2, 2))
        """
        values, sizes = parse_positive_levels(levels), parse_size(size, self.ndim)
        grids = [self.level_grid(level, scaled_axes) for level in values]
        extents = np.asarray([grid.factor for grid in grids]) * np.asarray(sizes)
        wanted = place_boxes(extents, center=center, corner=corner)
        if not np.all(np.isfinite(wanted)) or np.abs(wanted).max() > 2**52:
            raise InputError("the place of the crop is not finite. Pass world px, e.g. (y, x).")
        image = np.empty((len(values), self.num_channels, *sizes), self.dtype)
        valid = np.empty((len(values), *sizes), bool)
        boxes = np.empty((len(values), 2, self.ndim))
        for i, grid in enumerate(grids):
            start = first_pixel(wanted[i, 0], grid.factor, grid.offset)
            image[i], valid[i] = read_padded(self, grid, start.tolist(), sizes)
            boxes[i] = pixel_box(start, sizes, grid.factor, grid.offset)
        return NestedCrop(image, boxes, valid, values)

    def level_image(
        self, level: float, scaled_axes: Sequence[int | str] | None = None
    ) -> NDArray[Any]:
        """The whole image at one level, (C, *S), in memory.

        Raises
        ------
        InputError
            If it would take more than 4 GiB.
        """
        grid = self.level_grid(level, scaled_axes)
        check_level_size(self, grid, f"level {level:g} of {self.name!r}")
        return read_region(self, grid, [0] * self.ndim, grid.shape)
