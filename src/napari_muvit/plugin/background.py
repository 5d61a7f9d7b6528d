"""Work beside the GUI thread: the newest of many requests, and long jobs that report.

Functions given to these classes run in a thread and never touch Qt, a layer or the viewer;
results come back in the GUI thread through Qt signals.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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


@dataclass(frozen=True)
class _Failure:
    """How a job's error comes to the GUI thread."""

    error: BaseException


class Job(QObject):  # type: ignore[misc]
    """A long generator in a thread: each value is reported, and it ends on request.

    Signals
    -------
    reported
        One value of the generator.
    ended
        None when it ran to its end or was cancelled, else the error. Always the last signal.
    """

    reported = Signal(object)
    ended = Signal(object)

    def __init__(self, generate: Callable[[], Iterator[Any]]) -> None:
        super().__init__()
        self._generate = generate
        self._worker: Any = None
        self._cancelled = False
        self._error: BaseException | None = None

    @property
    def is_running(self) -> bool:
        return self._worker is not None

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled

    def start(self) -> None:
        """Start the thread; napari asks before it closes while the job runs."""
        from napari.qt.threading import create_worker

        worker = create_worker(self._values, _start_thread=False, _ignore_errors=True)
        worker.yielded.connect(self._on_value)
        worker.finished.connect(self._on_finished)
        self._worker = worker
        worker.start()

    def cancel(self) -> None:
        """Let the generator end at its next value."""
        self._cancelled = True
        if self._worker is not None:
            self._worker.quit()

    def _values(self) -> Iterator[Any]:
        # Errors travel as values: napari's worker swallows every kind of RuntimeError.
        try:
            yield from self._until_cancelled(self._generate())
        except Exception as error:  # noqa: BLE001 - whatever it is, the user is told
            yield _Failure(error)

    def _until_cancelled(self, values: Iterator[Any]) -> Iterator[Any]:
        try:
            for value in values:
                yield value
                if self._cancelled:
                    return
        finally:
            close = getattr(values, "close", None)
            if close is not None:
                close()

    def _on_value(self, value: Any) -> None:
        if isinstance(value, _Failure):
            self._error = value.error
        else:
            self.reported.emit(value)

    def _on_finished(self) -> None:
        self._worker = None
        self.ended.emit(self._error)
