"""Chunk files of a local zarr array: which are damaged, and all of them on the disk for certain.

A power cut may leave the file of a chunk empty, cut short or full of zeros. Blosc refuses most
such files, and reads beyond the end of one that is cut short; so what its header says about its
length is compared before the first use. The header: https://github.com/Blosc/c-blosc,
README_CHUNK_FORMAT.rst.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import zarr

Block = tuple[tuple[int, ...], tuple[int, ...]]
"""First pixel and one past the last, of one array."""

HEADER_BYTES = 16
MANY_FILES = 500
"""From here on one call that syncs all disks is quicker than one for each file."""


class ChunkFiles:
    """The files of one array; an array that is not on a local disk has none.

    Parameters
    ----------
    array
        Zarr array (*S), with a file for each chunk.
    """

    def __init__(self, array: zarr.Array) -> None:
        root = getattr(array.store, "root", None)
        self._array = array
        self._folder: Path | None = None if root is None else Path(root) / array.path
        self._num_bytes = math.prod(array.chunks) * array.dtype.itemsize
        self._whole: set[Path] = set()
        self._unsynced: set[Path] = set()
        # Only of these is it known how the bytes of a file begin, and that it is one chunk.
        self._is_plain = self._folder is not None and not array.fill_value and _is_blosc(array)

    def path(self, start: Sequence[int]) -> Path | None:
        """File of the chunk in which the pixel `start` lies, whether it exists or not."""
        if self._folder is None:
            return None
        steps = self._array.shards or self._array.chunks
        place = tuple(s // c for s, c in zip(start, steps, strict=True))
        return self._folder / str(self._array.metadata.encode_chunk_key(place))

    def are_missing(self, low: Sequence[int], high: Sequence[int]) -> bool:
        """Whether all pixels from `low` to `high` are 0, since no chunk there has a file."""
        return self._is_plain and next(self._stored(low, high), None) is None

    def cut_short(self, low: Sequence[int], high: Sequence[int]) -> list[Block]:
        """Chunks from `low` to `high` whose files are not as long as their headers say."""
        return [block for block in self._stored(low, high)
                if not self._is_complete(self.path(block[0]))]

    def undecodable(self, low: Sequence[int], high: Sequence[int]) -> list[Block]:
        """Chunks from `low` to `high` whose files are there, but cannot be decoded."""
        import zarr

        damaged = []
        for block in self._stored(low, high):
            try:
                self._array[tuple(map(slice, *block))]
            except RuntimeError:
                damaged.append(block)
        if damaged:
            # Raises where no chunk is to blame: at the end of a program zarr reads nothing.
            zarr.open_array(self._array.store, path=self._array.path, mode="r")
        return damaged

    def set_aside(self, block: Block) -> Path | None:
        """Rename the file of a chunk, which is then empty; its new path."""
        file = self.path(block[0])
        if file is None:
            return None
        names = (f"{file.name}.damaged{n}" for n in itertools.chain([""], itertools.count(2)))
        kept = next(place for name in names if not (place := file.with_name(name)).exists())
        file.rename(kept)
        self._whole.discard(file)
        return kept

    def note_written(self, start: Sequence[int]) -> None:
        """Remember that the chunk at `start` is new, for `sync`."""
        file = self.path(start)
        if file is not None:
            self._whole.add(file)
            self._unsynced.add(file)

    def sync(self) -> None:
        """Wait until what was written since the last call survives a power cut."""
        if len(self._unsynced) > MANY_FILES and sys.platform == "linux":  # elsewhere none waits
            os.sync()
            self._unsynced.clear()
        folders: set[Path] = set()
        while self._unsynced:
            file = self._unsynced.pop()
            try:
                _sync_file(file)
            except OSError:
                self._unsynced.add(file)
                raise
            folders.update(list(file.parents)[: len(self._array.shape) + 1])
        for folder in sorted(folders):
            _sync_folder(folder)

    def _stored(self, low: Sequence[int], high: Sequence[int]) -> Iterator[Block]:
        """Chunks from `low` to `high` that have a file."""
        if not self._is_plain:
            return
        for block in chunk_blocks(low, high, self._array.chunks, self._array.shape):
            file = self.path(block[0])
            if file is not None and (file in self._whole or file.exists()):
                yield block

    def _is_complete(self, file: Path | None) -> bool:
        if file is None or file in self._whole:
            return True
        try:
            with file.open("rb") as stream:
                head = stream.read(HEADER_BYTES)
                length = stream.seek(0, os.SEEK_END)
        except FileNotFoundError:
            return True  # erased since
        sizes = (int.from_bytes(head[4:8], "little"), int.from_bytes(head[12:16], "little"))
        if sizes != (self._num_bytes, length):
            return False
        self._whole.add(file)
        return True


def chunk_blocks(
    low: Sequence[int], high: Sequence[int], chunks: Sequence[int], shape: Sequence[int]
) -> Iterator[Block]:
    """Whole chunks, cut at the array's end, that the block from `low` to `high` touches."""
    ranges = [
        range(a // c * c, b, c) if b > a else range(0)
        for a, b, c in zip(low, high, chunks, strict=True)
    ]
    for start in itertools.product(*ranges):
        yield start, tuple(min(a + c, n) for a, c, n in zip(start, chunks, shape, strict=True))


def _is_blosc(array: zarr.Array) -> bool:
    from zarr.codecs import BloscCodec

    codecs = list(getattr(array.metadata, "codecs", []))
    return isinstance(codecs[-1], BloscCodec) if codecs else False


def _sync_file(file: Path) -> None:
    # Erased chunks have no file. Windows syncs only what is open for writing.
    with contextlib.suppress(FileNotFoundError), file.open("r+b") as stream:
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    """A new file's name is safe once its folder is; Windows takes care of that by itself."""
    if os.name == "nt":
        return
    with contextlib.suppress(OSError):  # some network disks cannot sync a folder
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
