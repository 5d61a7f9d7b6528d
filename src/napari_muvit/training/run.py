"""A run: iterate over its events here, pause or stop it from anywhere."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from napari_muvit.errors import RunError
from napari_muvit.training.control import Control
from napari_muvit.training.events import Event, FinishedEvent


class _BusyError(RunError):
    """Another thread iterates over the run."""


class Run:
    """One training run; iterating over it trains.

    Iterate in the thread that shall do the work; `pause`, `resume` and `stop` may be called
    from any other, and from signal handlers. A loop that is left early leaves the run where
    it is: iterate again to go on, or `close` it.

    Parameters
    ----------
    events
        The engine's stream of events.
    """

    def __init__(self, events: Iterator[Event], folder: Path, control: Control) -> None:
        self._events = events
        self._control = control
        self._guard = threading.Lock()
        self._driver: threading.Thread | None = None
        self._depth = 0
        self._over = threading.Event()
        self._last: FinishedEvent | None = None
        self.folder = folder
        """The run folder."""

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def __iter__(self) -> Iterator[Event]:
        with self._driving():  # as long as the loop lasts, between its events too
            while True:
                try:
                    event = next(self)
                except StopIteration:
                    return
                yield event

    def __next__(self) -> Event:
        with self._driving():
            try:
                event = next(self._events)
            except BaseException:
                self._over.set()
                raise
        if isinstance(event, FinishedEvent):
            self._last = event
        return event

    @contextmanager
    def _driving(self) -> Iterator[None]:
        """Within, this thread is the one that iterates."""
        own = threading.current_thread()
        with self._guard:
            driver = self._driver
            if driver is not None and driver is not own and driver.is_alive():
                raise _BusyError(
                    "this run is being iterated in another thread. Read its events there, or watch "
                    "its folder with RunFolder."
                )
            self._driver, self._depth = own, self._depth + 1 if driver is own else 1
        try:
            yield
        finally:
            with self._guard:
                if self._driver is own:  # else it ended in the middle, and another went on
                    self._depth -= 1
                    self._driver = own if self._depth else None

    @property
    def is_over(self) -> bool:
        """Whether the last event was given."""
        return self._over.is_set()

    def wait(self) -> FinishedEvent:
        """Train to the end, or wait while another thread does; the last event.

        Raises
        ------
        MuvitError
            If the run fails.
        """
        while not self._over.is_set():
            try:
                for _ in self:
                    pass
            except _BusyError:
                self._over.wait(timeout=0.1)
        if self._last is None:
            raise RunError(
                f"the run {str(self.folder)!r} was closed before its end. Resume it to go on."
            )
        return self._last

    def pause(self) -> None:
        """Hold at the next event, without using the processor, until `resume` or `stop`.

        Several processes hold together before their next step, while any of them is asked to.
        """
        self._control.pause()

    def resume(self) -> None:
        """Go on after `pause`."""
        self._control.resume()

    @property
    def is_paused(self) -> bool:
        """Whether the run holds, or will at its next event."""
        return self._control.is_paused

    def stop(self) -> None:
        """End the run soon: a step under way is abandoned, then a checkpoint is written.

        The loop over the events goes on to the `FinishedEvent`; `resume_run` continues.
        """
        self._control.stop()

    def close(self) -> None:
        """Give up at once, without a checkpoint, and release the folder."""
        close = getattr(self._events, "close", None)
        if close is not None:
            close()
        self._over.set()

    @contextmanager
    def stopping_on_signals(self) -> Iterator[None]:
        """Within, SIGTERM, SIGUSR1 and Ctrl-C stop the run, as a cluster's scheduler asks.

        To be entered in the main thread, by a program that owns its process.
        """
        names = ("SIGTERM", "SIGUSR1", "SIGINT")
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]

        def stop(number: int, frame: FrameType | None) -> None:
            self.stop()

        before = {number: signal.signal(number, stop) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
