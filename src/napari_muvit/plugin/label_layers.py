"""Labels layers that are named and coloured by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Color = tuple[float, float, float, float]
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
        ``"yx"`` for one channel, ``"cyx"``, or ``"yxc"`` for RGB; z may stand before y.
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
        start = [low for low, _ in spans]
        pixels = self._pyramid.read(self._index, start, [high - low for low, high in spans])
        picks: list[Any] = [
            0 if not isinstance(k, slice) else slice(None, None, k.step) for k in spatial
        ]
        if self._axes.endswith("c"):
            return np.asarray(np.moveaxis(pixels, 0, -1)[(*picks, keys[-1])])
        first = keys[0] if self._axes.startswith("c") else 0
        return np.asarray(pixels[(first, *picks)])


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
