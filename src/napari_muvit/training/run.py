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
        self._driver = threading.Lock()
        self._over = threading.Event()
        self._last: FinishedEvent | None = None
        self.folder = folder
        """The run folder."""

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        if not self._driver.acquire(blocking=False):
            raise RunError(
                "this run is being iterated in another thread. Read its events there, or watch "
                "its folder with RunFolder."
            )
        try:
            event = next(self._events)
        except BaseException:
            self._over.set()
            raise
        finally:
            self._driver.release()
        if isinstance(event, FinishedEvent):
            self._last = event
        return event

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
            if self._driver.locked():
                self._over.wait(timeout=0.1)
                continue
            for _ in self:
                pass
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
