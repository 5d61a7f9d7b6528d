"""Changes of an annotation store, on disk before they are in the image, so none is half done.

The log is one append-only file of records, each with length and checksum. A record sets labels
in one block of one level; setting them again changes nothing, so after a crash the whole log is
replayed in order and then emptied. A record that a crash cut short fails its checksum and
was never promised.

Record: ``MVS1``, length and CRC-32 of the body (little endian), body = zlib of a JSON line
(level, start, shape, dtype, value) followed by the packed mask and, where the labels differ
among each other, the masked labels.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.errors import InputError

_MAGIC = b"MVS1"
_HEADER = struct.Struct("<4sII")


@dataclass(frozen=True)
class Change:
    """Labels set in one block of one level.

    Attributes
    ----------
    level
        Downsampling factor of the block's pixels; each stands for all pixels below it.
    start
        First pixel of the block, level px, (A,).
    mask
        (*S) bool: which pixels are set.
    labels
        (*S) integer labels, or a single one for all.
    """

    level: int
    start: tuple[int, ...]
    mask: NDArray[np.bool_]
    labels: NDArray[Any] | int

    def values(self) -> NDArray[Any] | int:
        """Labels of the masked pixels in raster order, or the one they share."""
        return self.labels if isinstance(self.labels, int) else self.labels[self.mask]


def trim_change(level: int, start: Iterable[int], mask: NDArray[np.bool_],
                labels: NDArray[Any] | int) -> Change | None:
    """A change cut to the smallest block that holds every set pixel; None if there is none."""
    bounds = []
    for axis in range(mask.ndim):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        found = np.flatnonzero(mask.any(axis=others))
        if not len(found):
            return None
        bounds.append((int(found[0]), int(found[-1]) + 1))
    cut = tuple(slice(low, high) for low, high in bounds)
    place = tuple(int(s) + low for s, (low, _) in zip(start, bounds, strict=True))
    kept = labels if isinstance(labels, int) else labels[cut]
    inside = mask[cut]
    if not isinstance(kept, int):
        set_labels = kept[inside]
        kept = int(set_labels[0]) if (set_labels == set_labels[0]).all() else kept.copy()
    return Change(level, place, inside.copy(), kept)


def parse_change(
    level: int, start: Sequence[int], mask: NDArray[Any], labels: NDArray[Any] | int,
    shape: Sequence[int], dtype: np.dtype[Any],
) -> Change | None:
    """The change that sets labels where `mask` is true; None if that is nowhere.

    Parameters
    ----------
    shape, dtype
        Of the arrays that it goes into.

    Raises
    ------
    InputError
        If it could never be written, and would hold up all that is painted after it.
    """
    mask, value = np.asarray(mask, dtype=bool), np.asarray(labels)
    if {len(start), mask.ndim} != {len(shape)} or value.shape not in ((), mask.shape):
        raise InputError(
            f"the block begins at {tuple(start)}, its mask has the shape {mask.shape} and its "
            f"labels {value.shape}; they need the {len(shape)} axes of the store, with an "
            "axis of length 1 for one plane.")
    if value.dtype != dtype or not value.ndim:
        limit = int(np.iinfo(dtype).max)
        values = value[mask] if value.ndim else value
        if values.size and (values.min() < 0 or values.max() > limit):
            raise InputError(
                f"labels reach from {values.min()} to {values.max()}; this store holds class "
                f"values from 0 to {limit}. Map instances to one class first."
            )
    return trim_change(level, start, mask, value if value.ndim else int(value))


def encode(change: Change) -> bytes:
    """One record of the log."""
    values = change.values()
    head: dict[str, Any] = {
        "level": change.level, "start": change.start, "shape": change.mask.shape,
    }
    data = np.packbits(change.mask).tobytes()
    if isinstance(values, int):
        head["value"] = values
    else:
        head["dtype"] = values.dtype.str
        data += values.tobytes()
    body = zlib.compress(json.dumps(head).encode("utf-8") + b"\n" + data, 1)
    return _HEADER.pack(_MAGIC, len(body), zlib.crc32(body)) + body


def decode(body: bytes) -> Change:
    """The change in the body of a record."""
    line, _, data = zlib.decompress(body).partition(b"\n")
    head = json.loads(line)
    shape = tuple(head["shape"])
    count = int(np.prod(shape))
    packed = np.frombuffer(data, np.uint8, (count + 7) // 8)
    mask = np.unpackbits(packed, count=count).astype(bool).reshape(shape)
    labels: NDArray[Any] | int
    if "value" in head:
        labels = int(head["value"])
    else:
        labels = np.zeros(shape, np.dtype(head["dtype"]))
        labels[mask] = np.frombuffer(data, labels.dtype, offset=len(packed))
    return Change(int(head["level"]), tuple(head["start"]), mask, labels)


class StrokeLog:
    """The log file of one store, opened for appending.

    Parameters
    ----------
    path
        The file; made when the first record is written, removed when it is emptied.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size if self.path.exists() else 0

    def append(self, changes: Iterable[Change]) -> None:
        """Write records and wait until they are on the disk."""
        rest = memoryview(b"".join(encode(change) for change in changes))
        with self.path.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                while rest:
                    rest = rest[file.write(rest):]
                os.fsync(file.fileno())
            except OSError:
                # What is written behind a torn record would never be read again.
                file.truncate(end)
                raise

    def read(self) -> Iterator[Change]:
        """The whole records in order; ends at the first one that a crash cut short."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            while len(header := file.read(_HEADER.size)) == _HEADER.size:
                magic, length, checksum = _HEADER.unpack(header)
                body = file.read(length) if magic == _MAGIC else b""
                if magic != _MAGIC or len(body) != length or zlib.crc32(body) != checksum:
                    return
                yield decode(body)

    def clear(self) -> None:
        """Forget all records: they are in the image now."""
        if self.path.exists():
            os.truncate(self.path, 0)

    def remove(self) -> None:
        """Remove the file; on Windows an empty one stays while another process reads it."""
        with contextlib.suppress(PermissionError):
            self.path.unlink(missing_ok=True)
