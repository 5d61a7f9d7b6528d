"""(OME-)TIFF and the slide files that tifffile reads, tile by tile."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from napari_muvit.data.sources.raw import (
    RawImage,
    check_chunks,
    check_dtype,
    check_shape,
)
from napari_muvit.data.sources.remote import is_url, open_url
from napari_muvit.data.sources.single_file import file_name, told_as
from napari_muvit.data.sources.stores import LFS_HEAD, describe_error, refuse_lfs_pointer
from napari_muvit.data.sources.tiff_metadata import channel_colors, channel_names, pixel_size
from napari_muvit.errors import SourceError, nearest_name

SUFFIXES = (".tif", ".tiff", ".svs", ".ndpi", ".scn", ".bif", ".qptiff", ".lsm", ".stk", ".btf",
            ".tf8", ".tf2")
MOST_LISTED = 20
"""Images of a file that are named."""
MOST_PAGES = 64
"""Pages of a level whose place in the file is checked: opening must not take long."""
LARGE_PIECE = 64 * 2**20
"""Bytes of one strip or tile beyond which every crop is slow, and a note says so."""


@dataclass(frozen=True)
class TiffLevel:
    """One resolution of one series of a TIFF file, opened again in each process."""

    file: str
    series: int
    level: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...] | None

    @property
    def label(self) -> str:
        return f"series {self.series} level {self.level}"

    @property
    def in_memory(self) -> bool:
        return False

    def open(self) -> Any:
        return _OpenLevel(self)

    def explain(self, error: Exception) -> str:
        if is_url(self.file):
            return (f"{self.label} could not be fetched or decoded ({describe_error(error)}); "
                    "check the network, and try again")
        if "imagecodecs" in str(error):
            return (f"{self.label} of the file is compressed, and reading it needs package "
                    f"imagecodecs ({describe_error(error)}); "
                    "pip install --upgrade imagecodecs")
        return (f"{self.label} of the file is damaged or cut short ({describe_error(error)}); "
                "copy the file again")


class _OpenLevel:
    """tifffile's zarr store of a level, one for each thread: a file handle serves only one."""

    def __init__(self, handle: TiffLevel) -> None:
        self._handle = handle
        self._local = threading.local()

    def __getitem__(self, index: Any) -> Any:
        if not hasattr(self._local, "view"):
            self._local.view = _LevelView(self._handle)
        return self._local.view.array[index]


class _LevelView:
    """An open file and the zarr array that reads one of its levels."""

    def __init__(self, handle: TiffLevel) -> None:
        import tifffile
        import zarr

        file = tifffile.TiffFile(_stream(handle.file))
        # unlike __del__, this comes before the file's own complaint where both are garbage
        weakref.finalize(self, file.close)
        series = file.series[handle.series]
        level = series.levels[handle.level]
        offset = level.dataoffset
        if offset is not None and level.keyframe.is_memmappable and not is_url(handle.file):
            # one strip of raw pixels; decoding it whole for every crop would be absurd
            dtype = np.dtype(file.byteorder + level.dtype.char)
            self.array: Any = np.memmap(handle.file, dtype, "r", offset, handle.shape)
            return
        self.array = zarr.open_array(series.aszarr(level=handle.level), mode="r")


def _stream(file: str) -> Any:
    return open_url(file) if is_url(file) else file


def read_tiff(file: str, image: str | int | None = None) -> RawImage:
    """One series of a TIFF or slide file; the first one (the slide itself) by default."""
    with _opened(file) as tiff:
        series = _choose_series(file, tiff, image)
        number = tiff.series.index(series)
        axes, drop = _stored_axes(file, series)
        levels = [level for level in series.levels
                  if len(level.shape) == len(series.shape)]
        handles = tuple(_handle(file, number, i, level) for i, level in enumerate(levels))
        _check_complete(file, levels)
        names = channel_names(tiff, number) if "c" in axes else None
        colors = channel_colors(tiff, number) if "c" in axes else None
        sizes = pixel_size(tiff, series, number)
        rgb = _is_rgb(series, axes)
        notes = (*_slow_notes(series, handles[0]), *_others(tiff, number))
        kind = next((k for k in ("svs", "ndpi", "scn", "bif", "qpi", "ome", "imagej", "lsm")
                     if getattr(tiff, f"is_{k}", False)), "")
    scales = None if sizes is None else _scales(axes, handles, sizes)
    return RawImage(
        kind=f"TIFF ({kind.upper()})" if kind else "TIFF", name=file_name(file), axes=axes,
        arrays=handles, source=file, series=number, scales=scales,
        units=tuple("micrometer" if sizes is not None and a in "zyx" else None for a in axes),
        channel_names=names, channel_colors=None if rgb else colors, is_rgb=rgb,
        notes=(*(f"the axis {d} is used as {u}" for d, u in drop), *notes),
    )


def _others(tiff: Any, number: int) -> tuple[str, ...]:
    """A note where a file holds more images; those of a slide, its labels and macros, are not."""
    count = len(tiff.series)
    if count == 1 or not (tiff.is_ome or tiff.is_imagej):
        return ()
    names = ", ".join(repr(series.name) for series in tiff.series[:MOST_LISTED])
    return (f"image {number} of {count} in the file ({names}); image= or --image chooses another",)


@contextlib.contextmanager
def _opened(file: str) -> Iterator[Any]:
    """The open TIFF file; whatever goes wrong inside becomes a sentence."""
    import tifffile

    with told_as("TIFF", file, "OME-TIFF or OME-Zarr"):
        if not is_url(file):
            with Path(file).open("rb") as stream:
                refuse_lfs_pointer(stream.read(len(LFS_HEAD)), file)
        with _Complaints() as complaints, tifffile.TiffFile(_stream(file)) as tiff:
            num_series = len(tiff.series)  # follows every directory of the file
            _check_offsets(file, complaints.messages)
            if not num_series:
                raise SourceError(f"{file} is a TIFF file without an image. Choose another.", file)
            yield tiff


class _Complaints(logging.Handler):
    """What tifffile logs while a file is opened, kept from the user's terminal."""

    _lock_of_logger = threading.Lock()

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())

    def __enter__(self) -> _Complaints:
        self._lock_of_logger.acquire()
        logger = logging.getLogger("tifffile")
        self._propagated = logger.propagate
        logger.propagate = False
        logger.addHandler(self)
        return self

    def __exit__(self, *_error: object) -> None:
        logger = logging.getLogger("tifffile")
        logger.removeHandler(self)
        logger.propagate = self._propagated
        self._lock_of_logger.release()


def _check_offsets(file: str, complaints: list[str]) -> None:
    """Refuse a file that points beyond its own end: parts of it would be missing silently."""
    if is_url(file):
        return
    size = Path(file).stat().st_size
    # tag 270, the description where OME and vendors keep their metadata, may begin inside
    beyond = [
        max(number, size) for text in complaints
        for number in map(int, re.findall(r"offset (?:to first page )?(\d+)", text))
        if number >= size or ("TiffTag 270" in text and number >= 8)
    ]
    if beyond:
        raise SourceError(
            f"{file} is cut short: it has {size} bytes, but points to byte {max(beyond)}. "
            "Copy the file again.", file,
        )


def _choose_series(file: str, tiff: Any, image: str | int | None) -> Any:
    if image is None:
        return tiff.series[0]
    if isinstance(image, int) and 0 <= image < len(tiff.series):
        return tiff.series[image]
    names = [str(series.name) for series in tiff.series]
    if str(image) in names:
        return tiff.series[names.index(str(image))]
    near = nearest_name(str(image), names)
    raise SourceError(
        f"image={image!r} is not in {file}; it holds "
        f"{', '.join(f'{i} {name!r}' for i, name in enumerate(names[:MOST_LISTED]))}."
        + (f" Did you mean {near!r}?" if near else " Choose one by name or number."), file,
    )


def _stored_axes(file: str, series: Any) -> tuple[str, list[tuple[str, str]]]:
    """Letters of tczyx for tifffile's axes; Q, I and S stand for what is missing."""
    given = str(series.axes).upper()
    letters: list[str] = []
    used: list[tuple[str, str]] = []
    taken = {a.lower() for a in given if a in "TCZYX"}
    for letter in given:
        if letter in "TCZYX":
            letters.append(letter.lower())
            continue
        free = [a for a in ("c" if letter == "S" else "zct") if a not in taken]
        if not free:
            raise SourceError(
                f"{file} has the axes {given} of shape {series.shape}; only t, c, z, y and x "
                "can be used. Convert it, for example one file for each plane.", file,
            )
        taken.add(free[0])
        letters.append(free[0])
        if letter != "S":
            used.append((letter, free[0]))
    if not {"y", "x"} <= set(letters):
        raise SourceError(
            f"{file} has the axes {given} of shape {series.shape}; y and x are missing. "
            "Choose another series with image=.", file,
        )
    return "".join(letters), used


def _handle(file: str, series: int, number: int, level: Any) -> TiffLevel:
    page = level.keyframe
    inner = tuple(int(n) for n in page.chunks)
    chunks = (1,) * (len(level.shape) - len(inner)) + inner
    if len(chunks) != len(level.shape):
        chunks = tuple(int(n) for n in level.shape)
    if level.dataoffset is not None and page.is_memmappable and not is_url(file):
        # raw pixels in one piece are mapped, and any part of them can be read
        chunks = (1,) * len(chunks) if math.prod(chunks) > LARGE_PIECE else chunks
    handle = TiffLevel(file, series, number, tuple(map(int, level.shape)),
                       np.dtype(level.dtype), chunks)
    what = f"{file}: {handle.label}"
    check_dtype(handle.dtype, what, file)
    check_shape(handle.shape, what, file)
    check_chunks(handle.chunks, handle.dtype, what, file)
    return handle


def _slow_notes(series: Any, finest: TiffLevel) -> list[str]:
    nbytes = float(np.prod(finest.chunks or finest.shape)) * finest.dtype.itemsize
    if nbytes <= LARGE_PIECE or series.dataoffset is not None:
        return []
    return [f"its pixels are stored in pieces of {nbytes / 2**20:.0f} MiB, so every crop is slow; "
            "convert it once: napari-muvit convert"]


def _check_complete(file: str, levels: list[Any]) -> None:
    """Refuse a file whose tiles end beyond its own end: a copy that was cut short."""
    if is_url(file):
        return
    size = Path(file).stat().st_size
    for number, level in enumerate(levels):
        step = max(1, len(level.pages) // MOST_PAGES)
        for page in [*level.pages[::step], level.pages[-1]]:
            if page is None:
                continue
            ends = np.asarray(page.dataoffsets, np.uint64) + np.asarray(
                page.databytecounts, np.uint64)
            if ends.size and int(ends.max()) > size:
                raise SourceError(
                    f"{file} is cut short: it has {size} bytes, but its level {number} needs "
                    f"{int(ends.max())}. Copy the file again.", file,
                )


def _is_rgb(series: Any, axes: str) -> bool:
    page = series.keyframe
    colours = str(getattr(page.photometric, "name", "")) in {"RGB", "YCBCR", "PALETTE"}
    count = series.shape[axes.index("c")] if "c" in axes else 1
    return colours and count in (3, 4) and series.dtype == np.uint8


def _scales(
    axes: str, handles: tuple[TiffLevel, ...], sizes: dict[str, float]
) -> tuple[tuple[float, ...], ...]:
    first = handles[0].shape
    return tuple(
        tuple(sizes.get(a, 1.0) * (n0 / n if a in "zyx" else 1.0)
              for a, n0, n in zip(axes, first, handle.shape, strict=True))
        for handle in handles
    )
