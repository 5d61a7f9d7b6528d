"""Work beside the GUI thread: the newest of many requests, and long jobs that report.

Functions given to these classes run in a thread and never touch Qt, a layer or the viewer;
results come back in the GUI thread through Qt signals.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from qtpy.QtCore import QObject, Signal


class LatestTask(QObject):  # type: ignore[misc]
    """Runs one function in a thread; of the requests that wait, only the newest is run."""

    finished = Signal(object)
    failed = Signal(object)

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self._function = function
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="muvit-latest")
        self._lock = threading.Lock()
        self._waiting: tuple[Any, ...] | None = None
        self._is_running = False
        self._is_stopped = False

    @property
    def is_busy(self) -> bool:
        return self._is_running

    def request(self, *arguments: Any) -> None:
        """Run the function with `arguments` as soon as the call in progress has ended."""
        with self._lock:
            if self._is_stopped:
                return
            self._waiting = arguments
            if not self._is_running:
                self._is_running = True
                self._pool.submit(self._work)

    def stop(self) -> None:
        """Take no more requests and report nothing more."""
        with self._lock:
            self._is_stopped, self._waiting = True, None
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _next(self) -> tuple[Any, ...] | None:
        with self._lock:
            arguments, self._waiting = self._waiting, None
            if arguments is None:
                self._is_running = False
            return arguments

    def _work(self) -> None:
        while (arguments := self._next()) is not None:
            try:
                signal, result = self.finished, self._function(*arguments)
            except Exception as error:  # noqa: BLE001 - whatever it is, the user is told
                signal, result = self.failed, error
            if not self._is_stopped:
                signal.emit(result)
            elif hasattr(result, "close"):
                # Nobody will take what was made for nothing.
                result.close()


class Job(QObject):  # type: ignore[misc]
    """A long generator in a thread: each value is reported, and it ends on request.

    A thread of its own rather than napari's worker, which is cut off when napari closes: a run
    that is stopped then can still write its checkpoint, since Python waits for this thread.

    Signals
    -------
    reported
        One value of the generator.
    ended
        None when it ran to its end or was cancelled, else the error. Always the last signal.
    """

    reported = Signal(object)
    ended = Signal(object)
    _finished = Signal(object)

    def __init__(self, generate: Callable[[], Iterator[Any]]) -> None:
        super().__init__()
        self._generate = generate
        self._thread: threading.Thread | None = None
        self._cancelled = False
        self._finished.connect(self._on_finished)

    @property
    def is_running(self) -> bool:
        return self._thread is not None

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._work, name="muvit-job")
        self._thread.start()

    def cancel(self) -> None:
        """Let the generator end at its next value."""
        self._cancelled = True

    def _work(self) -> None:
        failure: BaseException | None = None
        try:
            values = self._generate()
            try:
                for value in values:
                    self.reported.emit(value)
                    if self._cancelled:
                        break
            finally:
                close = getattr(values, "close", None)
                if close is not None:
                    close()
        except Exception as error:  # noqa: BLE001 - whatever it is, the user is told
            failure = error
        self._finished.emit(failure)

    def _on_finished(self, failure: BaseException | None) -> None:
        self._thread = None
        self.ended.emit(failure)
