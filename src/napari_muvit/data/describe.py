"""What a source is and where each level would be read from: for ``napari-muvit info``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from napari_muvit.data.memory import shared_cache
from napari_muvit.data.pyramid import Pyramid, open_pyramid
from napari_muvit.geometry import parse_levels

SLOW_PIXELS = 64
"""Pixels behind one pixel of a level from which on reading it counts as slow."""


@dataclass(frozen=True)
class ArrayInfo:
    """One array of a pyramid: factors and offsets in world px per spatial axis."""

    label: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...] | None
    factor: tuple[float, ...]
    offset: tuple[float, ...]
    pixel_size: tuple[float, ...] | None
    nbytes: int


@dataclass(frozen=True)
class LevelInfo:
    """Where one MuViT level would be read from."""

    level: float
    array: str
    steps: tuple[float, ...]
    factor: tuple[float, ...]
    shape: tuple[int, ...]

    @property
    def how(self) -> str:
        if all(step == 1 for step in self.steps):
            return "read directly"
        steps = " x ".join(f"{step:.6g}" for step in self.steps)
        return f"averaged over {steps} px"


@dataclass(frozen=True)
class SourceInfo:
    """What `describe` found; ``str()`` gives the text, `to_dict` the plain values."""

    source: str | None
    name: str
    kind: str
    stored_axes: str
    stored_shape: tuple[int, ...]
    axes: str
    shape: tuple[int, ...]
    dtype: str
    channel_names: tuple[str, ...]
    is_rgb: bool
    is_labels: bool
    arrays: tuple[ArrayInfo, ...]
    levels: tuple[LevelInfo, ...]
    nbytes: int
    file_bytes: int | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        what = ", labels" if self.is_labels else ", RGB" if self.is_rgb else ""
        on_disk = "" if self.file_bytes is None else f", {readable_bytes(self.file_bytes)} on disk"
        lines = [
            f"{self.name}: {self.kind}{what}",
            f"  stored    {_axes_text(self.stored_axes, self.stored_shape)} {self.dtype}",
            f"  read as   {_axes_text(self.axes, self.shape)}, "
            f"{readable_bytes(self.nbytes)} of pixels in all arrays{on_disk}",
            f"  channels  {', '.join(self.channel_names)}",
            "  arrays",
        ]
        lines += [f"    {line}" for line in _table(_array_rows(self.arrays))]
        lines.append("  levels")
        lines += [f"    {line}" for line in _table(_level_rows(self.levels))]
        lines += [f"  note      {note}" for note in self.notes]
        return "\n".join(lines)


def describe(
    source: Any, levels: Sequence[float] | None = None, *, channels: Any = None, t: Any = None,
    z: Any = None, image: str | int | None = None,
    scaled_axes: Sequence[int | str] | None = None,
) -> SourceInfo:
    """What a source is, from its metadata alone.

    Parameters
    ----------
    levels
        MuViT levels to look up; powers of two down to a small overview by default.

    Examples
    --------
    >>> info = describe(np.zeros((256, 256), np.uint8), levels=(1, 4))
    >>> info.levels[1].how
    'averaged over 4 x 4 px'
    """
    pyramid = open_pyramid(source, channels=channels, t=t, z=z, image=image)
    wanted = _default_levels(pyramid) if levels is None else parse_levels(levels)
    arrays = _arrays(pyramid)
    infos = tuple(_level(pyramid, v, scaled_axes) for v in wanted)
    path = None if pyramid.source is None else Path(pyramid.source)
    return SourceInfo(
        source=pyramid.source, name=pyramid.name, kind=pyramid.kind,
        stored_axes=pyramid.stored_axes, stored_shape=pyramid.stored_shape,
        axes=pyramid.axes, shape=pyramid.shape, dtype=str(pyramid.dtype),
        channel_names=pyramid.channel_names, is_rgb=pyramid.is_rgb, is_labels=pyramid.is_labels,
        arrays=arrays, levels=infos,
        nbytes=sum(array.nbytes for array in arrays),
        file_bytes=path.stat().st_size if path is not None and path.is_file() else None,
        notes=(*pyramid.notes, *_slow_levels(pyramid, infos)),
    )


def _arrays(pyramid: Pyramid) -> tuple[ArrayInfo, ...]:
    sizes = pyramid.pixel_size or (None,) * len(pyramid.factors)
    return tuple(
        ArrayInfo(
            label=label, shape=shape, chunks=chunks, factor=factor, offset=offset, pixel_size=size,
            nbytes=pyramid.num_channels * int(np.prod(shape)) * pyramid.dtype.itemsize,
        )
        for label, shape, chunks, factor, offset, size in zip(
            pyramid.array_labels, pyramid.shapes, pyramid.chunks, pyramid.factors,
            pyramid.offsets, sizes, strict=True)
    )


def _level(
    pyramid: Pyramid, level: float, scaled_axes: Sequence[int | str] | None
) -> LevelInfo:
    grid = pyramid.level_grid(level, scaled_axes)
    return LevelInfo(level, pyramid.array_labels[grid.array_index], grid.steps, grid.factor,
                     grid.shape)


def _slow_levels(pyramid: Pyramid, levels: Sequence[LevelInfo]) -> list[str]:
    """A note on levels for which every crop reads a large part of a large array."""
    slow = [
        info for info in levels
        if np.prod(info.steps) >= SLOW_PIXELS and not shared_cache.takes(
            pyramid.num_channels * int(np.prod(np.multiply(info.shape, info.steps))))
    ]
    if not slow:
        return []
    named = ", ".join(f"{info.level:.6g}" for info in slow)
    return [f"crops at level {named} are slow, since no coarse array is near; to get one: "
            f"napari-muvit convert SOURCE OUT.ome.zarr --levels 1 {named.replace(',', '')}"]


def _default_levels(pyramid: Pyramid) -> tuple[int, ...]:
    levels = [1]
    while max(pyramid.spatial_shape[-2:]) / levels[-1] > 256 and len(levels) < 12:
        levels.append(levels[-1] * 2)
    return tuple(levels)


def readable_bytes(count: float) -> str:
    """A number of bytes with a unit, for people."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _axes_text(axes: str, shape: Sequence[int]) -> str:
    return " ".join(f"{a}={n}" for a, n in zip(axes, shape, strict=True))


def _numbers(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.6g}" for value in values)


def _array_rows(arrays: Sequence[ArrayInfo]) -> list[list[str]]:
    rows = [["array", "pixels", "factor", "offset (px)", "um/px", "chunks", "bytes"]]
    rows += [
        [a.label, _numbers(a.shape), _numbers(a.factor), _numbers(a.offset),
         "unknown" if a.pixel_size is None else _numbers(a.pixel_size),
         "whole" if a.chunks is None else _numbers(a.chunks), readable_bytes(a.nbytes)]
        for a in arrays
    ]
    return rows


def _level_rows(levels: Sequence[LevelInfo]) -> list[list[str]]:
    rows = [["level", "pixels", "factor", "from array", "how"]]
    rows += [[f"{v.level:.6g}", _numbers(v.shape), _numbers(v.factor), v.array, v.how]
             for v in levels]
    return rows


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows]
