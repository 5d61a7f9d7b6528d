"""Coarse arrays kept in memory: what every nested crop asks for again.

One cache for each process, with one budget for all pyramids; the array that was used longest
ago goes first. Worker processes have their own.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from napari_muvit.errors import InputError

DEFAULT_BUDGET = 256 * 2**20
SHARE = 8
"""An array may take at most this part of the budget."""


class ArrayCache:
    """Arrays by key, together at most `budget` bytes."""

    def __init__(self, budget: int = DEFAULT_BUDGET) -> None:
        self._budget = budget
        self._held: OrderedDict[object, NDArray[Any]] = OrderedDict()
        self._lock = threading.RLock()

    @property
    def budget(self) -> int:
        return self._budget

    @property
    def used(self) -> int:
        """Bytes that are held now."""
        with self._lock:
            return sum(array.nbytes for array in self._held.values())

    def resize(self, budget: int) -> None:
        """Set the budget in bytes; 0 keeps nothing."""
        if budget < 0:
            raise InputError(f"the budget is {budget} bytes; it must be at least 0 (none).")
        with self._lock:
            self._budget = budget
            self._shrink(0)

    def takes(self, nbytes: int) -> bool:
        """Whether an array of this size would be kept."""
        return nbytes <= self._budget // SHARE

    def get(self, key: object, load: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """The array of `key`, loaded once."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        array = load()
        with self._lock:
            if self.takes(array.nbytes):
                self._shrink(array.nbytes)
                self._held[key] = array
        return array

    def clear(self) -> None:
        with self._lock:
            self._held.clear()

    def _shrink(self, room: int) -> None:
        while self._held and self.used + room > self._budget:
            self._held.popitem(last=False)


shared_cache = ArrayCache()
"""The cache of this process."""
