"""Writing OME-Zarr 0.4 and 0.5 pyramids, images and labels.

Metadata follow https://ngff.openmicroscopy.org (0.4, 0.5): exact scales, and translations that
keep the arrays' outer edges on one line.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_muvit.data.crop import parse_scaled_axes
from napari_muvit.data.sources.raw import RGB_COLORS
from napari_muvit.data.sources.stores import METADATA_FILES, open_store
from napari_muvit.errors import InputError, RunExistsError, SourceError
from napari_muvit.geometry import parse_levels

if TYPE_CHECKING:
    from napari_muvit.data.labels import ClassTable

FORMATS = ("0.4", "0.5")
COLOUR_CHANNELS = 4
"""Up to this many channels share a chunk: crops ask for all of them together."""
DEEP_CHUNK = 16
"""Planes in a chunk of a volume, at most."""

ArrayPlan = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...] | None]
"""Shape, chunks and shards of one array."""


def create_pyramid(
    path: str | Path, *, shape: Sequence[int], axes: str, levels: Sequence[float] | float,
    dtype: Any, chunk: int | Sequence[int] = 512, shard: int | Sequence[int] | None = None,
    pixel_size: Sequence[float] | None = None, translation: Sequence[float] | None = None,
    scaled_axes: Sequence[int | str] | None = None, fmt: str = "0.5", name: str = "",
    channel_names: Sequence[str] | None = None, channel_colors: Sequence[str] | None = None,
    classes: ClassTable | None = None, is_labels: bool = False, fill_value: float = 0,
    overwrite: bool = False,
) -> list[Any]:
    """Create an empty OME-Zarr image, which takes no space; its zarr arrays, finest first.

    Parameters
    ----------
    shape, axes
        Full-resolution size of each axis; letters of ``tczyx`` in this order, ending with yx.
    levels, scaled_axes
        Downsampling factor of each array, and the axes that it downsamples, by letter or
        position among the spatial ones; they get ceil(n / level) pixels.
    chunk, shard
        Pixels along y and x, or of each spatial axis. Shards need 0.5 and hold whole chunks.
    pixel_size, translation
        um of each spatial axis: a full-resolution pixel's size, and where the first one's centre
        lies (world px where `pixel_size` is None).
    channel_names, channel_colors
        Of all channels; colours, ``#rrggbb``, are written with names alone.
    classes, is_labels
        A class table makes this a label image; `is_labels` does it without a table.

    Raises
    ------
    RunExistsError, InputError
        If `path` holds something and `overwrite` is False, or arguments do not fit together.
    """
    plan = _plan(axes, shape, parse_levels(levels), chunk, shard, scaled_axes, fmt)
    rows = _datasets(axes, scaled_axes, parse_levels(levels), pixel_size, translation)
    block = _multiscales(axes, rows, pixel_size, name or Path(path).name.split(".")[0])
    if channel_names is not None:
        count = int(shape[axes.index("c")]) if "c" in axes else 1
        block["omero"] = _omero(list(channel_names), channel_colors, count, np.dtype(dtype))
    if classes is not None or is_labels:
        block["image-label"] = image_label(classes, fmt)
    _make_room(Path(path), overwrite)
    return _create(Path(path), plan, block, axes, np.dtype(dtype), fill_value, fmt, classes)


def _create(
    folder: Path, plan: list[ArrayPlan], block: dict[str, Any], axes: str, dtype: np.dtype[Any],
    fill_value: float, fmt: str, classes: ClassTable | None,
) -> list[Any]:
    group = _create_group(folder, fmt)
    arrays = [
        _create_array(group, str(i), size, dtype, fill_value, axes, fmt, chunks, shards)
        for i, (size, chunks, shards) in enumerate(plan)
    ]
    _write_metadata(group, block, fmt, classes)
    return arrays


def open_arrays(path: str | Path, mode: str = "r+") -> list[Any]:
    """The zarr arrays of a store that `create_pyramid` made, finest first."""
    import zarr

    group = open_store(str(path))
    count = 0
    while str(count) in group:
        count += 1
    if not count:
        raise SourceError(
            f"{path} holds no array '0'; it is no store that was written here. Check the path.",
            str(path),
        )
    store = zarr.storage.LocalStore(path, read_only=mode == "r")
    return [zarr.open_array(store, path=str(i), mode=mode) for i in range(count)]


def _plan(
    axes: str, shape: Sequence[int], factors: Sequence[float], chunk: int | Sequence[int],
    shard: int | Sequence[int] | None, scaled_axes: Sequence[int | str] | None, fmt: str,
) -> list[ArrayPlan]:
    order = [("tczyx").find(a) for a in axes]
    if not axes.endswith("yx") or order != sorted(set(order)) or -1 in order:
        raise InputError(
            f"axes are {axes!r}; OME-Zarr needs letters of tczyx in this order, ending with yx. "
            "Pass for example 'cyx'."
        )
    if len(shape) != len(axes) or any(int(n) < 1 for n in shape):
        raise InputError(
            f"shape is {tuple(shape)} for the axes {axes!r}; it needs one positive size for each."
        )
    if fmt not in FORMATS:
        raise InputError(f"fmt is {fmt!r}; OME-Zarr {' and '.join(FORMATS)} can be written.")
    if shard is not None and fmt == "0.4":
        raise InputError("OME-Zarr 0.4 knows no shards; leave shard out, or take fmt='0.5'.")
    spatial = [a for a in axes if a in "zyx"]
    scaled = _scaled_letters(spatial, scaled_axes)
    plan = []
    for factor in factors:
        size = tuple(
            math.ceil(int(n) / factor - 1e-9) if a in scaled else int(n)
            for a, n in zip(axes, shape, strict=True)
        )
        chunks = _chunks(axes, size, chunk, "chunk")
        shards = None if shard is None else _shards(axes, size, chunks, shard)
        plan.append((size, chunks, shards))
    return plan


def _scaled_letters(spatial: list[str], scaled_axes: Sequence[int | str] | None) -> set[str]:
    return {spatial[i] for i in parse_scaled_axes(scaled_axes, "".join(spatial))}


def _chunks(
    axes: str, size: tuple[int, ...], chunk: int | Sequence[int], option: str
) -> tuple[int, ...]:
    spatial = [a for a in axes if a in "zyx"]
    given = np.atleast_1d(np.asarray(chunk)).tolist()
    is_whole = all(isinstance(n, int) and n >= 1 for n in given)
    if len(given) not in {1, len(spatial)} or not is_whole:
        raise InputError(
            f"{option} is {chunk!r}; it must be one positive number of pixels, or one for each of "
            f"the axes {''.join(spatial)}. Pass for example 512."
        )
    if len(given) == 1:
        by_axis = {"z": DEEP_CHUNK, "y": int(given[0]), "x": int(given[0])}
    else:
        by_axis = {a: int(n) for a, n in zip(spatial, given, strict=True)}
    counts = dict(zip(axes, size, strict=True))
    channels = counts.get("c", 1)
    by_axis |= {"t": 1, "c": channels if channels <= COLOUR_CHANNELS else 1}
    return tuple(max(1, min(by_axis[a], n)) for a, n in zip(axes, size, strict=True))


def _shards(
    axes: str, size: tuple[int, ...], chunks: tuple[int, ...], shard: int | Sequence[int]
) -> tuple[int, ...]:
    wanted = _chunks(axes, tuple(2**31 for _ in size), shard, "shard")
    spatial = {a for a in axes if a in "zyx"}
    return tuple(
        max(1, round(w / c)) * c if a in spatial and c < n else c
        for a, w, c, n in zip(axes, wanted, chunks, size, strict=True)
    )


def _make_room(folder: Path, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise RunExistsError(
            f"{folder} already exists, and nothing is overwritten. Choose another output, or "
            "remove it first."
        )
    if not any((folder / name).exists() for name in METADATA_FILES):
        raise RunExistsError(
            f"{folder} exists and is no zarr store, so it is not replaced. Choose another output."
        )
    shutil.rmtree(folder)


def _create_group(folder: Path, fmt: str) -> Any:
    import zarr

    folder.parent.mkdir(parents=True, exist_ok=True)
    store = zarr.storage.LocalStore(folder)
    return zarr.create_group(store, zarr_format=2 if fmt == "0.4" else 3)


def _create_array(
    group: Any, name: str, size: tuple[int, ...], dtype: np.dtype[Any], fill_value: float,
    axes: str, fmt: str, chunks: tuple[int, ...], shards: tuple[int, ...] | None,
) -> Any:
    # lz4 decodes five times as fast as zstd and is a few per cent larger on stained sections
    if fmt == "0.4":
        return group.create_array(
            name, shape=size, chunks=chunks, dtype=dtype, fill_value=fill_value,
            compressors={"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0},
            chunk_key_encoding={"name": "v2", "separator": "/"},
        )
    import zarr

    return group.create_array(
        name, shape=size, chunks=chunks, shards=shards, dtype=dtype, fill_value=fill_value,
        compressors=zarr.codecs.BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"),
        dimension_names=tuple(axes),
    )


def _axes_metadata(axes: str, pixel_size: Sequence[float] | None) -> list[dict[str, str]]:
    kinds = {"t": "time", "c": "channel"}
    rows = []
    for letter in axes:
        row = {"name": letter, "type": kinds.get(letter, "space")}
        if letter in "zyx" and pixel_size is not None:
            row["unit"] = "micrometer"
        rows.append(row)
    return rows


def _multiscales(
    axes: str, datasets: list[dict[str, Any]], pixel_size: Sequence[float] | None, name: str
) -> dict[str, Any]:
    entry = {"axes": _axes_metadata(axes, pixel_size), "datasets": datasets, "name": name}
    return {"multiscales": [entry]}


def _datasets(
    axes: str, scaled_axes: Sequence[int | str] | None, factors: Sequence[float],
    pixel_size: Sequence[float] | None, translation: Sequence[float] | None,
) -> list[dict[str, Any]]:
    """Scale and translation of every array; its outer edge lies on that of level 1."""
    spatial = [a for a in axes if a in "zyx"]
    scaled = _scaled_letters(spatial, scaled_axes)
    sizes = _per_axis("pixel_size", pixel_size, spatial, 1.0)
    places = _per_axis("translation", translation, spatial, 0.0)
    rows = []
    for number, factor in enumerate(factors):
        by_axis = {a: float(factor) if a in scaled else 1.0 for a in spatial}
        scale = [sizes[a] * by_axis[a] if a in by_axis else 1.0 for a in axes]
        shift = [places[a] + sizes[a] * (by_axis[a] - 1) / 2 if a in by_axis else 0.0
                 for a in axes]
        rows.append({"path": str(number), "coordinateTransformations": [
            {"type": "scale", "scale": scale}, {"type": "translation", "translation": shift}]})
    return rows


def _per_axis(
    option: str, values: Sequence[float] | None, spatial: list[str], default: float
) -> dict[str, float]:
    if values is None:
        return dict.fromkeys(spatial, default)
    numbers = [float(v) for v in values]
    if len(numbers) != len(spatial) or not all(math.isfinite(v) for v in numbers):
        raise InputError(
            f"{option} is {values!r}; the axes {''.join(spatial)} need {len(spatial)} finite "
            "numbers, in um. Pass one for each."
        )
    return dict(zip(spatial, numbers, strict=True))


def _write_metadata(
    group: Any, block: dict[str, Any], fmt: str, classes: ClassTable | None
) -> None:
    if classes is not None:
        group.attrs["muvit"] = {"classes": classes.to_dict()}
    if fmt == "0.4":
        block["multiscales"][0]["version"] = "0.4"
        group.attrs.update(block)
    else:
        group.attrs["ome"] = {"version": "0.5", **block}


def _omero(
    names: list[str], colors: Sequence[str] | None, count: int, dtype: np.dtype[Any]
) -> dict[str, Any]:
    if len(names) != count:
        raise InputError(
            f"channel_names are {names} for {count} channels; one name for each is needed."
        )
    is_picture = tuple(map(str.lower, names)) == ("red", "green", "blue")
    default = RGB_COLORS if is_picture else ("#ffffff",) * count
    colours = default if colors is None else tuple(colors)
    if len(colours) != count or not all(re.fullmatch("#[0-9a-fA-F]{6}", c) for c in colours):
        raise InputError(
            f"channel_colors are {colours} for {count} channels; one for each is needed, for "
            "example '#ff8000'."
        )
    top = float(np.iinfo(dtype).max) if dtype.kind in "iu" else 1.0
    window = {"min": 0.0, "max": top, "start": 0.0, "end": top}
    return {"channels": [
        {"label": name, "color": colour[1:].upper(), "active": True, "window": window}
        for name, colour in zip(names, colours, strict=True)
    ]}


def image_label(classes: ClassTable | None, fmt: str = "0.5") -> dict[str, Any]:
    """NGFF's ``image-label``: names and colours of the classes."""
    rows = () if classes is None else classes.classes
    colors = [{"label-value": row.value, "rgba": [*_rgb(row.color), 255]} for row in rows]
    if classes is not None and classes.unlabelled:  # viewers leave out 0 by themselves
        colors.append({"label-value": classes.unlabelled, "rgba": [0, 0, 0, 0]})
    block: dict[str, Any] = {
        "colors": colors,
        "properties": [{"label-value": row.value, "class": row.name} for row in rows],
    }
    return {"version": "0.4", **block} if fmt == "0.4" else block


def _rgb(colour: str) -> list[int]:
    digits = colour.lstrip("#")
    return [int(digits[i:i + 2], 16) for i in (0, 2, 4)]
