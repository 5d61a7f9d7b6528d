"""Pixel sizes, channel names and colours from what TIFF writers and scanners leave in a file."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import numpy as np

from napari_muvit.data.sources.raw import MICROMETRES, parse_colors

PLAUSIBLE_UM = (1e-3, 50.0)
"""Pixel sizes outside these bounds come from screen resolutions, not from microscopes."""


def pixel_size(tiff: Any, series: Any, number: int) -> dict[str, float] | None:
    """um per axis at full resolution, from the first of the vendors' fields that has it."""
    found = (_ome_pixels(tiff, number) or _svs_pixels(tiff) or _imagej_pixels(tiff, series)
             or _tag_pixels(series))
    if found is None or not {"y", "x"} <= set(found):
        return None
    return found


def _ome_root(tiff: Any, number: int) -> Any:
    """The OME-XML element of the image, or None."""
    if not tiff.is_ome or not tiff.ome_metadata:
        return None
    try:
        root = ElementTree.fromstring(tiff.ome_metadata)
    except ElementTree.ParseError:
        return None
    images = root.findall("{*}Image")
    return images[number] if number < len(images) else None


def _ome_pixels(tiff: Any, number: int) -> dict[str, float] | None:
    image = _ome_root(tiff, number)
    pixels = None if image is None else image.find("{*}Pixels")
    if pixels is None:
        return None
    sizes = {}
    for axis in "zyx":
        value = pixels.get(f"PhysicalSize{axis.upper()}")
        unit = pixels.get(f"PhysicalSize{axis.upper()}Unit", "µm").lower()
        size = _float(value)
        if size is not None and unit in MICROMETRES:
            sizes[axis] = size * MICROMETRES[unit]
    return sizes or None


def channel_names(tiff: Any, number: int) -> tuple[str, ...] | None:
    image = _ome_root(tiff, number)
    if image is None:
        return None
    channels = image.findall("{*}Pixels/{*}Channel")
    names = [channel.get("Name") for channel in channels]
    return tuple(str(n) for n in names) if names and all(names) else None


def channel_colors(tiff: Any, number: int) -> tuple[str, ...] | None:
    """Colours in OME-XML, where they are signed numbers of 32 bits: red, green, blue, opacity."""
    image = _ome_root(tiff, number)
    if image is None:
        return None
    found = [channel.get("Color", "") for channel in image.findall("{*}Pixels/{*}Channel")]
    try:
        return parse_colors([f"{int(text) & 0xFFFFFFFF:08x}" for text in found])
    except ValueError:
        return None


def _svs_pixels(tiff: Any) -> dict[str, float] | None:
    if not tiff.is_svs:
        return None
    text = str(tiff.pages[0].description)
    fields = dict(part.split("=", 1) for part in text.split("|") if "=" in part)
    size = _float({k.strip(): v for k, v in fields.items()}.get("MPP"))
    return None if size is None else {"y": size, "x": size}


def _imagej_pixels(tiff: Any, series: Any) -> dict[str, float] | None:
    metadata = tiff.imagej_metadata if tiff.is_imagej else None
    unit = str(metadata.get("unit", "")).lower() if metadata else ""
    if unit not in MICROMETRES:
        return None
    tags = series.keyframe.tags
    sizes = {}
    for axis, tag in (("y", "YResolution"), ("x", "XResolution")):
        number = _ratio(tags[tag].value) if tag in tags else None
        if number:
            sizes[axis] = MICROMETRES[unit] / number
    spacing = _float(metadata.get("spacing")) if metadata else None
    if spacing is not None:
        sizes["z"] = spacing * MICROMETRES[unit]
    return sizes or None


def _tag_pixels(series: Any) -> dict[str, float] | None:
    tags = series.keyframe.tags
    unit = tags["ResolutionUnit"].value if "ResolutionUnit" in tags else None
    per_unit = {2: 25400.0, 3: 10000.0}.get(int(unit) if unit is not None else 0)
    if per_unit is None:
        return None
    sizes = {}
    for axis, tag in (("y", "YResolution"), ("x", "XResolution")):
        number = _ratio(tags[tag].value) if tag in tags else None
        size = per_unit / number if number else 0.0
        if PLAUSIBLE_UM[0] <= size <= PLAUSIBLE_UM[1]:
            sizes[axis] = size
    return sizes or None


def _ratio(value: Any) -> float | None:
    if isinstance(value, tuple) and len(value) == 2:
        return value[0] / value[1] if value[1] else None
    return _float(value)


def _float(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) and number > 0 else None
