"""The arrays of an annotation store: set labels at any level, read them at any level.

Pixel `i` of level `l` stands for the full-resolution pixels `i*l` to `(i+1)*l - 1` along each
scaled axis. Label 0 is unlabelled. A coarse pixel shows the most frequent label among the
labelled pixels below it, so that a thin stroke is still seen in the overview.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.data.chunk_files import Block, ChunkFiles, chunk_blocks
from napari_muvit.data.stroke_log import Change, trim_change
from napari_muvit.errors import InputError, MuvitWarning

if TYPE_CHECKING:
    import zarr


class LabelArrays:
    """Arrays of one label image, each half as large as the one before along the scaled axes.

    Parameters
    ----------
    arrays
        Zarr arrays (*S), finest first.
    levels
        Downsampling factor of each array, each a multiple of the one before.
    scaled_axes
        Spatial axes that a level downsamples.
    """

    def __init__(
        self, arrays: Sequence[zarr.Array], levels: Sequence[int], scaled_axes: Sequence[int]
    ) -> None:
        self.arrays = list(arrays)
        self._files = [ChunkFiles(array) for array in self.arrays]
        self.levels = [int(level) for level in levels]
        self.scaled_axes = tuple(scaled_axes)
        self.shape: tuple[int, ...] = tuple(int(n) for n in self.arrays[0].shape)
        self.dtype: np.dtype[Any] = np.dtype(self.arrays[0].dtype)

    @classmethod
    def halved(cls, arrays: Sequence[zarr.Array]) -> LabelArrays:
        """The arrays of a store whose levels are those of `store_levels`."""
        shape = arrays[0].shape
        scaled = tuple(range(max(0, len(shape) - 2), len(shape)))
        return cls(arrays, store_levels(shape, scaled)[: len(arrays)], scaled)

    def factors(self, level: int) -> tuple[int, ...]:
        """Downsampling factor of `level` along every axis."""
        return tuple(level if a in self.scaled_axes else 1 for a in range(len(self.shape)))

    def level_shape(self, level: int) -> tuple[int, ...]:
        """Size of the whole image at `level`, level px."""
        return tuple(
            -(-n // f) for n, f in zip(self.shape, self.factors(level), strict=True)
        )

    def read(self, level: int, start: Sequence[int], size: Sequence[int]) -> NDArray[Any]:
        """Labels of a block of `level`, (*size); 0 outside the image."""
        index = max(i for i, own in enumerate(self.levels) if level % own == 0)
        ratio = self.factors(level // self.levels[index])
        array = self.arrays[index]
        low = [s * r for s, r in zip(start, ratio, strict=True)]
        high = [(s + n) * r for s, n, r in zip(start, size, ratio, strict=True)]
        inside = tuple(
            slice(min(max(a, 0), n), min(max(b, 0), n))
            for a, b, n in zip(low, high, array.shape, strict=True)
        )
        labels = np.zeros([b - a for a, b in zip(low, high, strict=True)], self.dtype)
        place = tuple(
            slice(cut.start - a, cut.stop - a) for cut, a in zip(inside, low, strict=True)
        )
        if all(cut.stop > cut.start for cut in inside):
            block = tuple(c.start for c in inside), tuple(c.stop for c in inside)
            labels[place] = self._read_block(index, block)
        return most_frequent(labels, ratio)

    def _read_block(self, index: int, block: Block) -> NDArray[Any]:
        """Pixels of one array; chunks whose files are damaged are made anew before."""
        array = self.arrays[index]
        if self._files[index].are_missing(*block):
            return np.zeros(np.subtract(*block[::-1]), self.dtype)
        damaged = self._files[index].cut_short(*block)
        if not damaged:
            try:
                return np.asarray(array[tuple(map(slice, *block))])
            except RuntimeError:  # blosc's, as far as chunks are to blame
                damaged = self._files[index].undecodable(*block)
                if not damaged:
                    raise
        if array.read_only:
            return self._read_around(index, block, damaged)
        for chunk in damaged:
            self._renew(index, chunk)
        return self._read_block(index, block)

    def _read_around(self, index: int, block: Block, damaged: Sequence[Block]) -> NDArray[Any]:
        """The same from a store that must not be changed."""
        array, (low, high) = self.arrays[index], block
        labels = np.zeros(np.subtract(high, low), self.dtype)
        for chunk in chunk_blocks(low, high, array.chunks, array.shape):
            one, two = tuple(map(max, chunk[0], low)), tuple(map(min, chunk[1], high))
            place = tuple(slice(a - s, b - s) for a, b, s in zip(one, two, low, strict=True))
            if chunk not in damaged:
                labels[place] = self._read_block(index, (one, two))
            elif index:
                labels[place] = self.read_coarser(index, (one, two))
            else:
                self._warn_of_loss(chunk, None)
        return labels

    def _renew(self, index: int, chunk: Block) -> None:
        """Set the damaged file of a chunk aside, and go on with what the finer array holds."""
        kept = self._files[index].set_aside(chunk)
        if index:
            self._write_block(index, chunk, self.read_coarser(index, chunk))
            return
        for _ in self.update_coarse([chunk]):
            pass
        self._warn_of_loss(chunk, kept)

    def _warn_of_loss(self, chunk: Block, kept: Path | None) -> None:
        low, high = chunk
        place = " to ".join(str(list(map(int, corner))) for corner in (low, np.subtract(high, 1)))
        what_now = "Paint them again, or put back a copy of the file" + (
            "." if kept is None else f", which is kept as {kept.name}.")
        warnings.warn(
            f"{self._files[0].path(low)} is damaged, as by a power cut: the labels of the pixels "
            f"{place} are lost and count as unlabelled. {what_now}", MuvitWarning, stacklevel=4,
        )

    def _write_block(self, index: int, block: Block, labels: NDArray[Any]) -> None:
        """Set pixels within one chunk of an array."""
        array, files = self.arrays[index], self._files[index]
        (chunk,) = chunk_blocks(*block, array.chunks, array.shape)
        # Of a chunk that is set in part zarr reads the rest.
        damaged = files.cut_short(*chunk) if chunk != block else []
        if not damaged:
            try:
                array[tuple(map(slice, *block))] = labels
            except RuntimeError:
                damaged = files.undecodable(*chunk)
                if not damaged:
                    raise
            else:
                files.note_written(chunk[0])
                return
        self._renew(index, chunk)
        self._write_block(index, block, labels)

    def sync(self) -> None:
        """Wait until all labels set so far survive a power cut."""
        for files in self._files:
            files.sync()

    def apply(self, changes: Iterable[Change]) -> Iterator[list[tuple[Change, Change]]]:
        """Set labels in every array, chunk by chunk; what changed, before and after.

        Yields the changed full-resolution pixels of each chunk, then nothing more for each
        coarse chunk. Setting the same labels again changes no pixel, but mends coarse arrays
        that a crash left behind.
        """
        touched: dict[Block, None] = {}
        for change in changes:
            for block in self._touched_blocks(change):
                is_touched, pair = self._apply_block(change, block)
                if is_touched:
                    touched[block] = None
                yield [pair] if pair else []
        for _ in self.update_coarse(touched):
            yield []

    def box(self, level: int, start: Sequence[int], size: Sequence[int]) -> Block:
        """Full-resolution pixels that a block of `level` stands for."""
        factors = self.factors(level)
        low = tuple(int(s) * f for s, f in zip(start, factors, strict=True))
        return low, tuple((int(s) + int(n)) * f for s, n, f in
                          zip(start, size, factors, strict=True))

    def _touched_blocks(self, change: Change) -> Iterator[Block]:
        low, high = self.box(change.level, change.start, change.mask.shape)
        return chunk_blocks([max(0, a) for a in low], list(map(min, high, self.shape)),
                            self.arrays[0].chunks, self.shape)

    def _apply_block(
        self, change: Change, block: Block
    ) -> tuple[bool, tuple[Change, Change] | None]:
        """Whether the change sets pixels of the block, and those that it changed."""
        factors = self.factors(change.level)
        picked, inside = [], []
        for axis, (low, high) in enumerate(zip(*block, strict=True)):
            pixels = np.arange(low, high) // factors[axis] - change.start[axis]
            valid = np.flatnonzero((pixels >= 0) & (pixels < change.mask.shape[axis]))
            picked.append(pixels[valid])
            inside.append(slice(int(valid[0]), int(valid[-1]) + 1))
        shape = [b - a for a, b in zip(*block, strict=True)]
        here = change.mask[tuple(slice(p[0], p[-1] + 1) for p in picked)]
        if [len(p) for p in picked] == shape and isinstance(change.labels, int) and here.all():
            after = np.full(shape, change.labels, self.dtype)
            return True, self._store_block(block, self._read_block(0, block), after)
        mask = np.zeros(shape, bool)
        mask[tuple(inside)] = change.mask[np.ix_(*picked)]
        if not mask.any():
            return False, None
        before = self._read_block(0, block)
        after = before.copy()
        if isinstance(change.labels, int):
            after[mask] = change.labels
        else:
            view = after[tuple(inside)]
            np.copyto(view, change.labels[np.ix_(*picked)], where=mask[tuple(inside)],
                      casting="unsafe")
        return True, self._store_block(block, before, after)

    def _store_block(
        self, block: Block, before: NDArray[Any], after: NDArray[Any]
    ) -> tuple[Change, Change] | None:
        changed = before != after
        old = trim_change(1, block[0], changed, before)
        new = trim_change(1, block[0], changed, after)
        if old is None or new is None:
            return None
        # The whole chunk in one call: written beside and renamed, never half done.
        self._write_block(0, block, after)
        return old, new

    def update_coarse(self, blocks: Iterable[Block]) -> Iterator[Block]:
        """Make coarse arrays agree with full-resolution `blocks`; yields each block made."""
        dirty = list(blocks)
        for index in range(1, len(self.arrays)):
            dirty = self._coarser_blocks(dirty, self._ratio(index), self.arrays[index])
            for block in dirty:
                self._write_block(index, block, self.read_coarser(index, block))
                yield block

    def _ratio(self, index: int) -> tuple[int, ...]:
        """Pixels of the array before `index` below one of its own, along every axis."""
        return self.factors(self.levels[index] // self.levels[index - 1])

    def read_coarser(self, index: int, block: Block) -> NDArray[Any]:
        """A block of array `index`, made from the array before it."""
        ratio, shape = self._ratio(index), self.arrays[index - 1].shape
        low = tuple(a * r for a, r in zip(block[0], ratio, strict=True))
        high = tuple(min(b * r, n) for b, r, n in zip(block[1], ratio, shape, strict=True))
        return most_frequent(self._read_block(index - 1, (low, high)), ratio)

    @staticmethod
    def _coarser_blocks(
        blocks: Iterable[Block], ratio: Sequence[int], array: zarr.Array
    ) -> list[Block]:
        """The same places in a coarser array, one block for each chunk."""
        merged: dict[tuple[int, ...], Block] = {}
        for low, high in blocks:
            coarse_low = tuple(a // r for a, r in zip(low, ratio, strict=True))
            coarse_high = tuple(
                min(n, -(-b // r)) for b, r, n in zip(high, ratio, array.shape, strict=True)
            )
            for chunk_low, chunk_high in chunk_blocks(
                coarse_low, coarse_high, array.chunks, array.shape
            ):
                one = tuple(map(max, chunk_low, coarse_low))
                two = tuple(map(min, chunk_high, coarse_high))
                known = merged.get(chunk_low, (one, two))
                merged[chunk_low] = (tuple(map(min, known[0], one)), tuple(map(max, known[1], two)))
        return list(merged.values())

    def stored_blocks(self, folder: Path) -> Iterator[Block]:
        """Blocks of the full-resolution array whose chunks exist, below array folder `folder`."""
        chunks = self.arrays[0].chunks
        for file in sorted(folder.glob("/".join(["c", *["*"] * len(self.shape)]))):
            names = file.relative_to(folder / "c").parts
            if all(name.isdigit() for name in names):
                low = tuple(int(name) * c for name, c in zip(names, chunks, strict=True))
                high = tuple(min(a + c, n) for a, c, n in
                             zip(low, chunks, self.shape, strict=True))
                yield low, high

    def count(self, blocks: Iterable[Block]) -> Counter[int]:
        """Full-resolution pixels of every label but 0 in `blocks`."""
        counts: Counter[int] = Counter()
        for block in blocks:
            labels = self._read_block(0, block)
            for value, number in zip(*np.unique(labels, return_counts=True), strict=True):
                if value:
                    counts[int(value)] += int(number)
        return counts


def most_frequent(labels: NDArray[Any], ratio: Sequence[int]) -> NDArray[Any]:
    """The most frequent label other than 0 of every `ratio` block, 0 where there is none.

    Ties go to the lowest label. Blocks at the upper edge may be incomplete.

    Parameters
    ----------
    labels
        (*S) integer labels.
    ratio
        Size of a block along every axis.
    """
    if all(r == 1 for r in ratio):
        return labels
    if labels.size and (labels == labels.flat[0]).all():
        size = [-(-n // r) for n, r in zip(labels.shape, ratio, strict=True)]
        return np.full(size, labels.flat[0], labels.dtype)
    padding = [(0, -n % r) for n, r in zip(labels.shape, ratio, strict=True)]
    padded = np.pad(labels, padding) if any(after for _, after in padding) else labels
    split = [n for size, r in zip(padded.shape, ratio, strict=True) for n in (size // r, r)]
    inner = tuple(range(1, len(split), 2))
    blocks = padded.reshape(split)
    result = np.zeros([split[i] for i in range(0, len(split), 2)], labels.dtype)
    best = np.zeros(result.shape, np.int64)
    for value in np.unique(padded):
        if value:
            count = np.count_nonzero(blocks == value, axis=inner)
            better = count > best
            result[better] = value
            best[better] = count[better]
    return result


def store_levels(
    shape: Sequence[int], scaled_axes: Sequence[int], smallest: int = 512
) -> list[int]:
    """Levels 1, 2, 4, ... down to an overview of at most `smallest` pixels along scaled axes."""
    longest = max(shape[axis] for axis in scaled_axes)
    halvings = max(0, math.ceil(math.log2(longest / smallest)))
    return [2**power for power in range(halvings + 1)]


def parse_level(level: float, shape: Sequence[int], scaled_axes: Sequence[int]) -> int:
    """A window's level as a whole number.

    Raises
    ------
    InputError
        If it is not a whole number of at least 1, or larger than the image.
    """
    longest = max(shape[axis] for axis in scaled_axes)
    if not float(level).is_integer() or not 1 <= level <= longest:
        raise InputError(
            f"level is {level}; annotations are painted at whole downsampling factors from 1 to "
            f"{longest}, the image's longest side. Pass for example 4."
        )
    return int(level)

