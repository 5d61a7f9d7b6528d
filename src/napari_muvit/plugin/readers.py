"""Images of any size as lazy napari layers: right place, scale, units, channels and colours.

Offered beside other readers. Pixels are read when they are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from napari_muvit.plugin import engine
from napari_muvit.plugin.image_choices import CHANNEL_KEY, SOURCE_KEY
from napari_muvit.plugin.label_layers import class_kwargs, level_arrays
from napari_muvit.plugin.stored_images import is_zarr

LayerData = tuple[Any, dict[str, Any], str]

CHANNEL_COLORS = ("magenta", "green", "cyan", "yellow", "red", "blue")
LIMITS_PX = 1 << 20
"""Most pixels that are looked at to find contrast limits."""


def get_reader(path: str | list[str]) -> Callable[[Any], list[LayerData]] | None:
    """A reader for `path`, or None where it is several paths or a folder that is no OME-Zarr."""
    if not isinstance(path, str):
        return None
    folder = Path(path)
    if folder.is_dir() and not is_zarr(folder):
        return None
    return read_layers


def read_layers(path: str) -> list[LayerData]:
    """The layers of one image.

    Raises
    ------
    SourceError
        If the image cannot be read.
    """
    return pyramid_layers(engine.default_backend(), str(path))


def pyramid_layers(backend: Any, path: str) -> list[LayerData]:
    """One layer for RGB or labels, else one for each channel; t and z stay axes."""
    pyramid, when = backend.open_pyramid(path), {}  # of the first time point alone
    if pyramid.num_times > 1:
        when = {"t": slice(None)}
        pyramid = backend.open_pyramid(path, **when)
    common: dict[str, Any] = {**_place(pyramid), "metadata": {SOURCE_KEY: path}}
    if pyramid.is_labels and pyramid.num_channels == 1:
        table = backend.read_class_table(pyramid)
        kwargs = {**common, "name": pyramid.name, **class_kwargs(table)}
        return [(level_arrays(pyramid, pyramid.axes[1:]), kwargs, "labels")]
    if pyramid.is_rgb:
        axes = pyramid.axes[1:] + "c"
        kwargs = {**common, "name": pyramid.name, "rgb": True}
        return [(level_arrays(pyramid, axes), kwargs, "image")]
    return [_channel(backend, path, pyramid, i, common, when)
            for i in range(pyramid.num_channels)]


def _channel(
    backend: Any, path: str, pyramid: Any, index: int, common: dict[str, Any],
    when: dict[str, Any],
) -> LayerData:
    single = backend.open_pyramid(path, channels=[index], **when)
    several = pyramid.num_channels > 1
    kwargs = {
        **common,
        "name": pyramid.channel_names[index] if several else pyramid.name,
        "contrast_limits": contrast_limits(backend.open_pyramid(path, channels=[index])),
        "colormap": channel_color(pyramid, index),
        "blending": "additive" if several else "translucent_no_depth",
    }
    if several:
        # its name is the user's to change
        kwargs["metadata"] = {**common["metadata"], CHANNEL_KEY: (index, pyramid.num_channels)}
    return level_arrays(single, pyramid.axes[1:]), kwargs, "image"


def channel_color(pyramid: Any, index: int) -> str:
    """The file's colour of a channel, else one of our own; grey for a single one."""
    if pyramid.channel_colors is not None:
        return str(pyramid.channel_colors[index])
    return CHANNEL_COLORS[index % len(CHANNEL_COLORS)] if pyramid.num_channels > 1 else "gray"


def _place(pyramid: Any) -> dict[str, Any]:
    """Scale, translation, units and names of the axes of the finest array."""
    spacing = np.asarray(pyramid.spacing, np.float64)
    origin = np.asarray(pyramid.origin, np.float64)
    names = tuple(pyramid.axes[1:])
    place: dict[str, Any] = {"scale": spacing, "translate": origin, "axis_labels": names}
    if pyramid.pixel_size is None:
        return place
    size = np.asarray(pyramid.pixel_size[0], np.float64)
    # Time points are counted; how far apart they are is not known.
    units = tuple("pixel" if name == "t" else "um" for name in names)
    return place | {"scale": size, "translate": origin / spacing * size, "units": units}


def contrast_limits(pyramid: Any) -> tuple[float, float]:
    """Contrast limits from the coarsest array: napari would look at the finest."""
    shape: Sequence[int] = pyramid.shapes[-1]
    side = int(LIMITS_PX ** (1 / len(shape)))
    start = [max(0, (n - side) // 2) for n in shape]
    size = [min(n, side) for n in shape]
    values = pyramid.read(len(pyramid.shapes) - 1, start, size)
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(np.percentile(finite, 99.9))
    return (low, high) if high > low else (low, low + 1.0)

