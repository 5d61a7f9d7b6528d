"""How long the rest of a run will take, from how long its parts took so far."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

MEMORY = 200
"""Durations of each kind that count; older ones say little about the next."""


class RunClock:
    """Durations of the parts of a run, by kind: step, validation batch, preview, checkpoint."""

    def __init__(self) -> None:
        self._durations: dict[str, deque[float]] = {}

    @contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Count the time spent within as one duration of `kind`."""
        started = time.perf_counter()
        yield
        self.add(kind, time.perf_counter() - started)

    def add(self, kind: str, seconds: float) -> None:
        """Count one duration."""
        self._durations.setdefault(kind, deque(maxlen=MEMORY)).append(seconds)

    def last(self, kind: str) -> float:
        """The latest duration of `kind`."""
        return self._durations[kind][-1]

    def mean(self, kind: str) -> float:
        """Mean duration of `kind`; the very first is left out where there are others.

        The first of a kind also pays for what happens once: kernels, buffers, open stores.
        """
        durations = list(self._durations.get(kind, ()))
        if len(durations) > 1:
            durations = durations[1:]
        return sum(durations) / len(durations) if durations else 0.0

    def count(self, kind: str) -> int:
        """How many durations of `kind` are remembered."""
        return len(self._durations.get(kind, ()))

    def share(self, kind: str, of: str) -> float:
        """Seconds of `kind` for each duration of another kind: for what happens now and then."""
        return sum(self._durations.get(kind, ())) / max(1, self.count(of))

    def estimate(self, kind: str, guess: float | None = None) -> float:
        """Seconds that the next of `kind` will take.

        Until one was measured that is `guess`; and the first, while it is alone, counts at most
        as much, because it also pays for what happens once.
        """
        if guess is None or self.count(kind) > 1:
            return self.mean(kind)
        return min(guess, self.mean(kind)) if self.count(kind) else guess

    def remaining(self, counts: dict[str, int], guesses: dict[str, float]) -> float:
        """Seconds that `counts` more parts of each kind will take, see `estimate`."""
        return sum(
            count * self.estimate(kind, guesses.get(kind)) for kind, count in counts.items())
