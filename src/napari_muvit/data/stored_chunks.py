"""Which chunks of an array exist: a few strokes on a gigapixel image are found by file names.

Chunks that were never written hold the fill value, so only the others need to be read.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from napari_muvit.data.sources.remote import is_url
from napari_muvit.data.sources.stores import ZarrArray, open_store

if TYPE_CHECKING:
    from napari_muvit.data.pyramid import Pyramid

Block = tuple[tuple[int, ...], tuple[int, ...]]
"""Start and size along the spatial axes, px of an array."""


def stored_blocks(pyramid: Pyramid, index: int) -> list[Block] | None:
    """The blocks (chunks, or shards) of array `index` that exist, in raster order.

    Of a selected part of the image they are cut to that part. None where it is not known which
    exist: for arrays that are no local zarr arrays.
    """
    handle = pyramid._handles[index]
    if not isinstance(handle, ZarrArray) or is_url(handle.store):
        return None
    array = open_store(handle.store, handle.path)
    steps = getattr(array, "shards", None) or array.chunks
    grid = tuple(-(-n // k) for n, k in zip(array.shape, steps, strict=True))
    begins, ends, spatial = _selected(pyramid, index)
    found: set[Block] = set()
    for key in _chunk_keys(Path(handle.store) / handle.path):
        if len(key) != len(grid) or any(k >= n for k, n in zip(key, grid, strict=True)):
            continue
        spans = [(max(k * step, low), min((k + 1) * step, high))
                 for k, step, low, high in zip(key, steps, begins, ends, strict=True)]
        if all(low < high for low, high in spans):
            kept = [(spans[axis], begins[axis]) for axis in spatial]
            found.add((tuple(span[0] - begin for span, begin in kept),
                       tuple(span[1] - span[0] for span, _ in kept)))
    return sorted(found)


def _selected(pyramid: Pyramid, index: int) -> tuple[list[int], list[int], list[int]]:
    """What a pyramid shows of array `index`: first pixel and one past the last, along every
    stored axis; and which of these axes are its spatial ones.
    """
    letters, placed = pyramid.stored_axes, pyramid._placed
    begins, ends = [0] * len(letters), list(pyramid._handles[index].shape)
    for letter, place in placed.fixed[index]:
        begins[letters.index(letter)], ends[letters.index(letter)] = place, place + 1
    spatial = [letters.index(letter) for letter in pyramid.axes[1:]]
    for axis, start, size in zip(spatial, placed.starts[index], placed.shapes[index], strict=True):
        begins[axis], ends[axis] = start, start + size
    return begins, ends, spatial


def _chunk_keys(folder: Path) -> Iterator[tuple[int, ...]]:
    """Grid positions that the file names below an array's folder stand for."""
    for parent, _, names in os.walk(folder):
        above = Path(parent).relative_to(folder).parts
        for name in names:
            parts = [p for p in re.split(r"[/.]", "/".join((*above, name))) if p != "c"]
            if parts and all(part.isdigit() for part in parts):
                yield tuple(int(part) for part in parts)


def block_pixels(blocks: list[Block]) -> int:
    """Pixels in all blocks together."""
    return sum(math.prod(size) for _, size in blocks)


def fill_value(pyramid: Pyramid, index: int) -> int:
    """What the chunks of a label array hold that were never written."""
    handle = pyramid._handles[index]
    if not isinstance(handle, ZarrArray):
        return 0
    return int(getattr(open_store(handle.store, handle.path), "fill_value", 0) or 0)


def scan_blocks(pyramid: Pyramid, max_pixels: int) -> tuple[int, list[Block]]:
    """The array to look through for what a label image holds, and its blocks.

    It is the finest array whose stored blocks have at most `max_pixels` pixels; else the
    coarsest.
    """
    last = len(pyramid.factors) - 1
    for index, shape in enumerate(pyramid.shapes):
        stored = stored_blocks(pyramid, index)
        if stored is None and math.prod(shape) > max_pixels and index < last:
            continue
        blocks = list(array_blocks(shape)) if stored is None else stored
        if block_pixels(blocks) <= max_pixels:
            return index, blocks
    return last, blocks


def array_blocks(shape: Sequence[int], side: int = 2048) -> Iterator[Block]:
    """Start and size of blocks that cover an array once, in raster order."""
    steps = [min(side, n) if i >= len(shape) - 2 else 1 for i, n in enumerate(shape)]
    ranges = [range(0, n, step) for n, step in zip(shape, steps, strict=True)]
    for start in itertools.product(*ranges):
        size = (min(k, n - s) for s, k, n in zip(start, steps, shape, strict=True))
        yield start, tuple(size)
