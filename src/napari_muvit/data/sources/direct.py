"""Reading few chunks of a local zarr array straight from their files.

A crop touches one to four chunks, and zarr's event loop then costs more than decoding them. For
arrays of the common kind (regular grid, little to decode but Blosc, Zstandard or gzip, sharded or
not) this module finds the chunk files by the specification and decodes them in this thread.
Everything else, and every larger read, goes through zarr.

Specifications: zarr v2, https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html; zarr v3 with
sharding, https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_CHUNKS = 16
"""Reads of more chunks go through zarr, which decodes several at once."""

ABSENT = 2**64 - 1
"""Offset and length of a chunk that a shard does not hold."""

TYPES = frozenset({"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32",
                   "uint64", "float32", "float64"})


@dataclass(frozen=True)
class ChunkLayout:
    """Where an array's chunks lie and how they are encoded.

    Attributes
    ----------
    grid
        Shape of what one file holds: a chunk, or a shard.
    chunks
        Shape of a chunk; the same as `grid` unless sharded.
    decoder
        A numcodecs codec, or None for raw bytes.
    is_sharded
        Whether a file is a shard: chunks with an index of them, be it of a single one.
    """

    folder: Path
    shape: tuple[int, ...]
    grid: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    fill: float
    prefix: str
    separator: str
    decoder: Any
    is_sharded: bool = False
    index_at_end: bool = True

    def file(self, place: tuple[int, ...]) -> Path:
        return self.folder / (self.prefix + self.separator.join(map(str, place)))


class DirectArray:
    """A zarr array whose small reads bypass zarr."""

    def __init__(self, array: Any, layout: ChunkLayout) -> None:
        self._array = array
        self._layout = layout

    def __getitem__(self, index: tuple[int | slice, ...]) -> NDArray[Any]:
        layout = self._layout
        spans = [(i, i + 1) if isinstance(i, int) else (i.start, i.stop) for i in index]
        ranges = [range(a // c, -(-b // c)) for (a, b), c in zip(spans, layout.chunks, strict=True)]
        if math.prod(map(len, ranges)) > MOST_CHUNKS:
            whole: NDArray[Any] = self._array[index]
            return whole
        out = np.empty([b - a for a, b in spans], layout.dtype)
        for place in itertools.product(*ranges):
            begin = [p * c for p, c in zip(place, layout.chunks, strict=True)]
            from_, to = [], []
            for (a, b), s, c in zip(spans, begin, layout.chunks, strict=True):
                low, high = max(a, s), min(b, s + c)
                from_.append(slice(low - s, high - s))
                to.append(slice(low - a, high - a))
            chunk = _read_chunk(layout, place)
            out[tuple(to)] = layout.fill if chunk is None else chunk[tuple(from_)]
        return out[tuple(0 if isinstance(i, int) else slice(None) for i in index)]


def _read_chunk(layout: ChunkLayout, place: tuple[int, ...]) -> NDArray[Any] | None:
    """One decoded chunk, or None where it was never written."""
    try:
        encoded = _shard_part(layout, place) if layout.is_sharded else layout.file(
            place).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if encoded is None:
        return None
    content = encoded if layout.decoder is None else layout.decoder.decode(encoded)
    # a chunk of another length does not fit the shape, and that is the error
    return np.frombuffer(content, layout.dtype).reshape(layout.chunks)


def _shard_part(layout: ChunkLayout, place: tuple[int, ...]) -> bytes | None:
    """The encoded bytes of one chunk of a shard, found through the shard's index."""
    inside = [g // c for g, c in zip(layout.grid, layout.chunks, strict=True)]
    shard = tuple(p // n for p, n in zip(place, inside, strict=True))
    number = int(np.ravel_multi_index([p % n for p, n in zip(place, inside, strict=True)], inside))
    count = math.prod(inside)
    with layout.file(shard).open("rb") as stream:
        # 16 bytes for each chunk, then a checksum of 4
        stream.seek(-(16 * count + 4) if layout.index_at_end else 0,
                    2 if layout.index_at_end else 0)
        index = np.frombuffer(stream.read(16 * count), "<u8").reshape(count, 2)
        offset, length = (int(n) for n in index[number])
        if offset == ABSENT:
            return None
        stream.seek(offset)
        return stream.read(length)


def find_layout(folder: Path, array: Any) -> ChunkLayout | None:
    """The layout of a local array of the common kind; None means: leave it to zarr."""
    for name, parse in (("zarr.json", _parse_v3), (".zarray", _parse_v2)):
        file = folder / name
        if not file.is_file():
            continue
        try:
            found = parse(folder, json.loads(file.read_text(encoding="utf-8")))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            # zarr has read this metadata; whatever is unusual in it is left to zarr
            return None
        same = found is not None and found.shape == tuple(array.shape) and (
            found.chunks == tuple(array.chunks) and found.dtype == array.dtype)
        return found if same else None
    return None


def _parse_v3(folder: Path, found: Mapping[str, Any]) -> ChunkLayout | None:
    grid, keys = found["chunk_grid"], found["chunk_key_encoding"]
    known = (
        grid["name"] == "regular" and keys["name"] in {"default", "v2"}
        and found["data_type"] in TYPES and _is_number(found.get("fill_value"))
        and not found.get("storage_transformers")
    )
    if not known:
        return None
    shape, outer = tuple(found["shape"]), tuple(grid["configuration"]["chunk_shape"])
    codecs, chunks, at_end = found.get("codecs"), outer, True
    is_sharded = isinstance(codecs, list) and [_name(c) for c in codecs] == ["sharding_indexed"]
    if isinstance(codecs, list) and is_sharded:
        inner = codecs[0]["configuration"]
        if [_name(c) for c in inner["index_codecs"]] != ["bytes", "crc32c"]:
            return None
        chunks, codecs = tuple(inner["chunk_shape"]), inner["codecs"]
        at_end = inner.get("index_location", "end") == "end"
    pipeline = _pipeline(codecs, math.prod(chunks) * np.dtype(found["data_type"]).itemsize)
    if pipeline is None:
        return None
    order, decoder = pipeline
    default = "/" if keys["name"] == "default" else "."
    separator = (keys.get("configuration") or {}).get("separator", default)
    return ChunkLayout(
        folder, shape, outer, chunks, np.dtype(found["data_type"]).newbyteorder(order),
        found["fill_value"], f"c{separator}" if keys["name"] == "default" else "", separator,
        decoder, is_sharded, at_end,
    )


def _parse_v2(folder: Path, found: Mapping[str, Any]) -> ChunkLayout | None:
    import numcodecs  # type: ignore[import-untyped]  # zarr brings it

    compressor, fill = found.get("compressor"), found.get("fill_value")
    known = (
        found.get("order") == "C" and not found.get("filters") and isinstance(
            found.get("dtype"), str) and np.dtype(found["dtype"]).name in TYPES
        and (fill is None or _is_number(fill))
        and (compressor is None or compressor.get("id") in {"blosc", "zstd", "gzip", "zlib", "lz4"})
    )
    if not known:
        return None
    chunks = tuple(found["chunks"])
    decoder = None
    if compressor is not None:
        name = compressor["id"]
        nbytes = math.prod(chunks) * np.dtype(found["dtype"]).itemsize
        decoder = _Blosc(nbytes) if name == "blosc" else numcodecs.get_codec(dict(compressor))
    return ChunkLayout(
        folder, tuple(found["shape"]), chunks, chunks, np.dtype(found["dtype"]), fill or 0, "",
        found.get("dimension_separator", "."), decoder,
    )


@dataclass(frozen=True)
class _Blosc:
    """Blosc in the calling thread alone: its own threads wait for each other on a busy computer."""

    nbytes: int

    def decode(self, encoded: bytes) -> Any:
        import imagecodecs

        # the header says how much to allocate, which noise would make gigabytes
        if int.from_bytes(encoded[4:8], "little") != self.nbytes:
            raise ValueError(f"the chunk does not decode to {self.nbytes} bytes")
        return imagecodecs.blosc_decode(encoded, numthreads=1)


def _pipeline(codecs: Any, nbytes: int) -> tuple[str, Any] | None:
    """Byte order and decoder of "bytes" followed by at most one compressor."""
    import numcodecs

    names = [_name(codec) for codec in codecs]
    decoders = {"blosc": lambda: _Blosc(nbytes), "zstd": numcodecs.Zstd, "gzip": numcodecs.GZip}
    if names[:1] != ["bytes"] or len(names) > 2 or not set(names[1:]) <= set(decoders):
        return None
    settings = codecs[0].get("configuration") if isinstance(codecs[0], Mapping) else None
    order = ">" if (settings or {}).get("endian") == "big" else "<"
    return order, decoders[names[1]]() if len(names) == 2 else None


def _name(codec: Any) -> Any:
    return codec.get("name") if isinstance(codec, Mapping) else codec


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
