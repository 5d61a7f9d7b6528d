"""Labels layers that are named and coloured by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.errors import SourceNotFoundError
from napari_muvit.plugin.shown_tiles import AHEAD, MOST_PIXELS, SHOWN, Read, assemble, tile_side

Color = tuple[float, float, float, float]
STEP = 256
"""Pixels by which the region that napari asks for grows and moves."""
TRANSPARENT: Color = (0.0, 0.0, 0.0, 0.0)


def class_colors(table: Any) -> dict[int | None, Color]:
    """RGBA for each class value of a ``ClassTable``; background and the rest are transparent.

    The key None, which napari asks for values outside the table, is transparent too.
    """
    colors: dict[int | None, Color] = {None: TRANSPARENT, 0: TRANSPARENT}
    for item in table.classes:
        is_background = item.value == table.background
        colors[item.value] = TRANSPARENT if is_background else _rgba(item.color)
    return colors


def _rgba(color: str) -> Color:
    red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue, 1.0


def class_features(table: Any) -> dict[str, list[Any]]:
    """Class names for the status bar, as napari's Labels layers take them."""
    return {
        "index": [item.value for item in table.classes],
        "class": [item.name for item in table.classes],
    }


def class_kwargs(table: Any) -> dict[str, Any]:
    """Arguments for ``viewer.add_labels`` that colour and name the classes of `table`."""
    if table is None:
        return {}
    from napari.utils import DirectLabelColormap

    return {
        "colormap": DirectLabelColormap(color_dict=class_colors(table)),
        "features": class_features(table),
    }


class LevelArray:
    """One array of a pyramid as napari reads it: (y, x), (c, y, x) or (y, x, c), lazily.

    Parameters
    ----------
    pyramid
        Has ``read(array_index, start, size)``.
    array_index
        Which array of the pyramid.
    axes
        ``"yx"`` for one channel, ``"cyx"``, or ``"yxc"`` for RGB; t and z may stand before y.
    """

    def __init__(self, pyramid: Any, array_index: int, axes: str) -> None:
        self._pyramid, self._index, self._axes = pyramid, array_index, axes
        sizes = pyramid.shapes[array_index]
        channels = pyramid.shape[0]
        if axes.endswith("c"):
            self.shape: tuple[int, ...] = (*sizes, channels)
        elif axes.startswith("c"):
            self.shape = (channels, *sizes)
        else:
            self.shape = tuple(sizes)
        self.dtype = np.dtype(pyramid.dtype)
        self.ndim = len(self.shape)
        chunks = getattr(pyramid, "chunks", None)
        self._side = tile_side(None if chunks is None else chunks[array_index])
        # What is kept of this array ends with it: another one may find other pixels there.
        self._token = object()
        self.beside: tuple[LevelArray, ...] = ()
        # napari then asks for whole parts of that size, and again only when the view leaves them.
        sides = [min(STEP, n) for n in self.shape_yx]
        lead = self.shape[: self._axes.index("y")]
        self.chunks: tuple[int, ...] = (*(n if axes.startswith("c") else 1 for n in lead), *sides,
                       *([channels] if axes.endswith("c") else []))

    @property
    def path(self) -> str | None:
        """File or URL that is read."""
        source = getattr(self._pyramid, "source", None)
        return None if source is None else str(source)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[()], dtype=dtype)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        keys = _whole_key(key, self.ndim)
        spatial = [k for k, axis in zip(keys, self._axes, strict=True) if axis != "c"]
        sizes = [n for n, axis in zip(self.shape, self._axes, strict=True) if axis != "c"]
        spans = [_span(k, n) for k, n in zip(spatial, sizes, strict=True)]
        pixels = self._region(spans)
        picks: list[Any] = [
            0 if not isinstance(k, slice) else slice(None, None, k.step) for k in spatial
        ]
        lead = keys[:1] if self._axes.startswith("c") else ()
        last = keys[-1:] if self._axes.endswith("c") else ()
        return np.asarray(pixels[(*lead, *picks, *last)])

    def _region(self, spans: list[tuple[int, int]]) -> NDArray[Any]:
        """Pixels in the order of `axes`, from tiles that are kept."""
        lead, rows, columns = spans[:-2], spans[-2], spans[-1]
        counts = [high - low for low, high in spans]
        if min(counts) <= 0 or np.prod(counts) > MOST_PIXELS:
            return self._read(spans)

        def tile(i: int, j: int) -> NDArray[Any]:
            return SHOWN.get(*self._tile(lead, i, j))

        AHEAD.want(self._tiles(spans, margin=self._side), [
            wish for other in self.beside for wish in other.tiles_around(spans, self.shape_yx)])
        at = self._axes.index("y")
        return assemble(rows, columns, self.shape_yx, self._side, tile, (at, at + 1))

    @property
    def shape_yx(self) -> tuple[int, int]:
        """Pixels along y and x."""
        at = self._axes.index("y")
        return self.shape[at], self.shape[at + 1]

    def _tile(self, lead: Sequence[tuple[int, int]], i: int, j: int) -> Read:
        """The tile in row `i` and column `j` of the grid of tiles."""
        part = [*lead, *((k * self._side, min((k + 1) * self._side, n))
                         for k, n in zip((i, j), self.shape_yx, strict=True))]
        return (self._token, *lead, i, j), lambda: self._read(part)

    def _tiles(self, spans: Sequence[tuple[int, int]], margin: int = 0) -> list[Read]:
        """The tiles of a region and `margin` pixels around it."""
        rows, columns = (
            range(max(0, low - margin) // self._side, -(-min(n, high + margin) // self._side))
            for (low, high), n in zip(spans[-2:], self.shape_yx, strict=True)
        )
        return [self._tile(spans[:-2], i, j) for i in rows for j in columns]

    def tiles_around(
        self, spans: Sequence[tuple[int, int]], shape: tuple[int, int]
    ) -> list[Read]:
        """The tiles that the canvas needs when it changes to this array.

        Parameters
        ----------
        spans
            Region of the array that is shown, whose size along y and x is `shape`.
        """
        if len(spans) > len(shape):
            # Planes of a volume may be downsampled too; then these are others.
            return []
        region = []
        for (low, high), before, size in zip(spans, shape, self.shape_yx, strict=True):
            middle, half = (low + high) / 2 * size / before, (high - low) / 2
            region.append((max(0, int(middle - half)), min(size, int(middle + half) + 1)))
        return self._tiles(region)

    def _read(self, spans: list[tuple[int, int]]) -> NDArray[Any]:
        start, size = [low for low, _ in spans], [high - low for low, high in spans]
        try:
            pixels = self._pyramid.read(self._index, start, size)
        except SourceNotFoundError:
            # The file was deleted: the canvas goes dark, and whoever computes says why.
            pixels = np.zeros((self._pyramid.shape[0], *size), self.dtype)
        if self._axes.endswith("c"):
            return np.ascontiguousarray(np.moveaxis(pixels, 0, -1))
        return np.asarray(pixels if self._axes.startswith("c") else pixels[0])


def level_arrays(pyramid: Any, axes: str) -> Any:
    """The arrays of a pyramid as napari takes them: a list, or the one there is."""
    arrays = [LevelArray(pyramid, index, axes) for index in range(len(pyramid.shapes))]
    for index, array in enumerate(arrays):
        array.beside = tuple(arrays[max(0, index - 1) : index] + arrays[index + 1 : index + 2])
    return arrays if len(arrays) > 1 else arrays[0]


def _whole_key(key: Any, ndim: int) -> tuple[Any, ...]:
    """`key` with one entry, an int or a slice, for each axis."""
    keys = key if isinstance(key, tuple) else (key,)
    if Ellipsis in keys:
        at = keys.index(Ellipsis)
        keys = (*keys[:at], *[slice(None)] * (ndim - len(keys) + 1), *keys[at + 1 :])
    return (*keys, *[slice(None)] * (ndim - len(keys)))


def _span(key: Any, size: int) -> tuple[int, int]:
    if isinstance(key, slice):
        low, high, _ = key.indices(size)
        return low, max(low, high)
    index = int(key) + (size if key < 0 else 0)
    return index, index + 1


def area_rows(areas: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Rows of the area table as text: class, full-resolution px, um2.

    Parameters
    ----------
    areas
        Rows with ``name``, ``px`` and, where the pixel size is known, ``um2``.
    """
    return [
        (str(row["name"]), f"{row['px']:,.0f}",
         f"{row['um2']:,.0f}" if row.get("um2") is not None else "unknown")
        for row in areas
    ]
