"""Decoded tiles of what the canvas shows, kept ready: moving the view reads only what is new.

napari asks for the whole visible region whenever the view moves. Reading, decoding and turning
colours to the end of every pixel take 30 ms for a screen; putting kept tiles together takes 3.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.plugin.priority import lower_thread

KEPT_BYTES = 256 * 2**20
TILE = 256
"""Pixels along a side of a tile where the store does not say."""
LARGEST_TILE = 1024
REST_SECONDS = 0.3
"""How long a view must stay before tiles of other levels are read ahead."""
MOST_PIXELS = 1 << 24
"""Regions with more are read as they are: no screen shows so many."""


class TileCache:
    """The arrays that were asked for last, up to a number of bytes; any thread may ask."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._bytes = 0
        self._guard = threading.Lock()
        self._kept: OrderedDict[Hashable, NDArray[Any]] = OrderedDict()

    def get(self, key: Hashable, read: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """What `key` means, from `read` if it is not kept."""
        with self._guard:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        found = read()
        with self._guard:
            if key not in self._kept:
                self._kept[key] = found
                self._bytes += found.nbytes
            while self._bytes > self._most and len(self._kept) > 1:
                _, old = self._kept.popitem(last=False)
                self._bytes -= old.nbytes
        return found


    def has(self, key: Hashable) -> bool:
        """Whether `key` is kept."""
        with self._guard:
            return key in self._kept


Read = tuple[Hashable, Callable[[], NDArray[Any]]]
"""A key and how what it means is read."""


class Prefetcher:
    """Reads what may be shown next, in a thread that gives way; the newest wishes count."""

    def __init__(self, cache: TileCache) -> None:
        self._cache = cache
        self._changed = threading.Condition()
        self._soon: list[Read] = []
        self._later: list[Read] = []
        self._thread: threading.Thread | None = None

    def want(self, soon: list[Read], later: list[Read]) -> None:
        """Read `soon` now, and `later` when nothing else was wanted for a moment."""
        with self._changed:
            self._soon, self._later = soon, later
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="muvit-ahead", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _work(self) -> None:
        lower_thread()
        while True:
            self._read(*self._next())

    def _read(self, key: Hashable, read: Callable[[], NDArray[Any]]) -> None:
        try:
            if not self._cache.has(key):
                self._cache.get(key, read)
        except Exception:  # noqa: BLE001 - the canvas reads it again, and says why
            return

    def _next(self) -> Read:
        with self._changed:
            while not self._soon:
                if self._later and not self._changed.wait(REST_SECONDS):
                    self._soon, self._later = self._later, []
                elif not self._later and not self._soon:
                    self._changed.wait()
            return self._soon.pop(0)


SHOWN = TileCache(KEPT_BYTES)
"""Of all layers together."""

AHEAD = Prefetcher(SHOWN)


def tile_side(chunk: tuple[int, ...] | None) -> int:
    """Side of the tiles that suit a store's chunks."""
    if chunk is None or not TILE <= min(chunk[-2:]) <= max(chunk[-2:]) <= LARGEST_TILE:
        return TILE
    return max(chunk[-2:])


def assemble(
    rows: tuple[int, int], columns: tuple[int, int], shape: tuple[int, int], side: int,
    tile: Callable[[int, int], NDArray[Any]], axes: tuple[int, int],
) -> NDArray[Any]:
    """The region of an array that is served as tiles.

    Parameters
    ----------
    rows, columns
        First pixel and the one past the last.
    shape
        Of the array along y and x.
    side
        Of a tile.
    tile
        From a tile's row and column to its values.
    axes
        Where y and x are in the values.
    """
    out: NDArray[Any] | None = None
    for i in range(rows[0] // side, -(-rows[1] // side)):
        for j in range(columns[0] // side, -(-columns[1] // side)):
            spans = [(i * side, min((i + 1) * side, shape[0])),
                     (j * side, min((j + 1) * side, shape[1]))]
            values = tile(i, j)
            if out is None:
                size = list(values.shape)
                size[axes[0]], size[axes[1]] = rows[1] - rows[0], columns[1] - columns[0]
                out = np.empty(size, values.dtype)
            source, target = [slice(None)] * values.ndim, [slice(None)] * values.ndim
            for axis, (low, high), wanted in zip(axes, spans, (rows, columns), strict=True):
                first, last = max(low, wanted[0]), min(high, wanted[1])
                source[axis] = slice(first - low, last - low)
                target[axis] = slice(first - wanted[0], last - wanted[0])
            out[tuple(target)] = values[tuple(source)]
    if out is None:
        raise ValueError("an empty region has no tiles")
    return out
