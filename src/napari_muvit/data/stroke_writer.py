"""The thread that brings changes to the disk: first to the log, then into the image."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.data.chunk_files import Block
from napari_muvit.data.label_arrays import LabelArrays
from napari_muvit.data.stroke_log import Change, StrokeLog, decode, encode, trim_change
from napari_muvit.errors import MuvitError

RETRY_SECONDS = 0.5
"""Pause before a failed write is tried again."""

FLUSH_SECONDS = 600.0
"""Longest that `flush` waits for everything to be in the image."""

LARGE_LOG = 64 << 20
"""Bytes of the log beyond which it is emptied though more is being painted."""

UNDO_BYTES = 256 << 20
"""Memory for undo; the oldest changes are forgotten first."""


class WriteError(MuvitError, OSError):
    """Strokes cannot be written at the moment; they are kept and tried again."""


class UndoHistory:
    """What each edit changed at full resolution, compressed, within a memory budget."""

    def __init__(self, max_bytes: int = UNDO_BYTES) -> None:
        self._edits: OrderedDict[int, list[tuple[bytes, bytes]]] = OrderedDict()
        self._forgotten: set[int] = set()
        self._bytes = 0
        self._max_bytes = max_bytes

    def __contains__(self, edit: int) -> bool:
        return edit in self._edits

    def is_forgotten(self, edit: int) -> bool:
        """Whether `edit` did not fit into the memory."""
        return edit in self._forgotten

    def add(self, edit: int, pairs: Iterable[tuple[Change, Change]]) -> None:
        """Remember what `edit` changed, before and after; an edit may come in parts."""
        if edit in self._forgotten:
            return  # half an edit cannot be undone
        packed = [(encode(before), encode(after)) for before, after in pairs]
        self._edits.setdefault(edit, []).extend(packed)
        self._bytes += sum(len(a) + len(b) for a, b in packed)
        while self._bytes > self._max_bytes and self._edits:
            oldest, dropped = self._edits.popitem(last=False)
            self._forgotten.add(oldest)
            self._bytes -= sum(len(a) + len(b) for a, b in dropped)

    def changes_back(self, edit: int, arrays: LabelArrays) -> list[Change]:
        """Changes that restore the pixels that still hold what `edit` wrote."""
        changes = []
        for packed_before, packed_after in reversed(self._edits.get(edit, [])):
            before, after = _unpack(packed_before), _unpack(packed_after)
            current = arrays.read(1, after.start, after.mask.shape)
            mask = after.mask & (current == after.labels)
            change = trim_change(1, before.start, mask, before.labels)
            if change is not None:
                changes.append(change)
        return changes


def _unpack(record: bytes) -> Change:
    # A record is its header of 12 bytes and the body.
    return decode(record[12:])


class StrokeWriter:
    """Takes changes from any thread at once, and writes them in the background.

    Parameters
    ----------
    arrays, log
        Where changes go.
    on_idle
        Called by the thread about once a second, for heartbeats.
    check
        Called before each chunk; raises where the image must not be written.
    """

    def __init__(
        self, arrays: LabelArrays, log: StrokeLog, on_idle: Callable[[], None] = lambda: None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.history = UndoHistory()
        self.lock = threading.RLock()
        self.counts: dict[int, int] | None = None
        self._arrays, self._log = arrays, log
        self._on_idle, self._check = on_idle, check
        self._condition = threading.Condition()
        self._waiting: deque[tuple[int, list[Change]]] = deque()
        self._boxes: deque[NDArray[np.int64]] = deque()  # of the waiting changes, (n, 2, A) each
        self._error: Exception | None = None
        self._stopping = False
        self._is_settled = True
        self._is_hurried = False  # somebody waits for it
        self._num_logged = 0
        self._thread = threading.Thread(target=self._work, name="annotation writer", daemon=True)
        self._thread.start()

    @property
    def error(self) -> Exception | None:
        """Why the last write failed, until one succeeds."""
        return self._error

    @property
    def is_pending(self) -> bool:
        """Whether something is not yet in the image."""
        return bool(self._waiting)

    def put(self, edit: int, changes: Iterable[Change]) -> None:
        """Hand over changes of one edit; returns at once."""
        changes = list(changes)
        boxes = [self._arrays.box(c.level, c.start, c.mask.shape) for c in changes]
        with self._condition:
            if self._stopping:
                raise MuvitError(
                    "the annotation store is closed; nothing can be painted. Open it again."
                )
            self._waiting.append((edit, changes))
            self._boxes.append(np.asarray(boxes, np.int64))
            self._is_settled = False
            self._condition.notify_all()

    def flush(self, timeout: float = FLUSH_SECONDS, box: Block | None = None) -> None:
        """Wait until everything handed over is in the image.

        Parameters
        ----------
        box
            Full-resolution pixels: wait only for what changes these.

        Raises
        ------
        WriteError
            If writing fails, for example because the disk is full. Nothing is lost: the
            changes are kept, and writing is tried again.
        """
        self._wait(lambda: self._is_written(box), timeout)

    def settle(self, timeout: float = FLUSH_SECONDS) -> None:
        """Wait until everything is in the image and survives a power cut there.

        Raises
        ------
        WriteError
            If writing fails; see `flush`.
        """
        with self._condition:
            self._is_hurried = True
        self._wait(lambda: self._is_settled, timeout)

    def _wait(self, is_done: Callable[[], bool], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        with self._condition:
            if is_done():
                return
            self._error = None
            self._condition.notify_all()
            while not (is_over := is_done()) and self._error is None:
                if not self._condition.wait(deadline - time.monotonic()):
                    break
            error, left = self._error, len(self._waiting)
            why = str(error).rstrip(".")
        if error is not None:
            raise WriteError(
                f"annotations cannot be written ({why}). They are kept in "
                "memory and tried again; make room on the disk or restore access to the folder."
            ) from error
        if not is_over:
            raise WriteError(
                f"annotations are not all written after {timeout:.0f} s, and {left} changes wait; "
                "the disk is too slow. They go on being written; wait before closing."
            )

    def _is_written(self, box: Block | None) -> bool:
        if box is None:
            return not self._waiting
        low, high = box
        return not any(((boxes[:, 0] < high) & (boxes[:, 1] > low)).all(axis=1).any()
                       for boxes in self._boxes)

    def stop(self) -> None:
        """End the thread; call `flush` first to be told of errors."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        # The garbage collector may end a forgotten store on the writer's own thread.
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _work(self) -> None:
        while True:
            with self._condition:
                if not self._waiting and not self._stopping and not self._is_hurried:
                    self._condition.wait(1.0)
                if self._is_settled and self._stopping:
                    return
                is_idle = not self._waiting
            try:
                self._on_idle()
                self._write_first()
                if is_idle:
                    self._settle()
            except Exception as error:  # noqa: BLE001 - flush and `error` tell it; nothing is lost
                self._fail(error)
                if self._stopping:
                    self._log_at_exit()
                    return

    def _write_first(self) -> None:
        """Bring the oldest waiting edit into the image, and all others into the log."""
        self._log_new()
        if not self._waiting:
            return
        edit, changes = self._waiting[0]
        self._apply(edit, changes)
        is_synced = self._log.num_bytes > LARGE_LOG
        if is_synced:
            self._arrays.sync()
        with self._condition:
            self._waiting.popleft()
            self._boxes.popleft()
            self._num_logged -= 1
            self._error = None
            if is_synced:
                self._forget_log()
            self._condition.notify_all()

    def _settle(self) -> None:
        """Forget the log, once what it holds survives a power cut in the image as well."""
        if not self._is_settled:
            self._arrays.sync()
        with self._condition:
            self._forget_log()
            self._is_hurried = self._is_hurried and not self._is_settled
            self._condition.notify_all()

    def _forget_log(self) -> None:
        if not self._waiting and not self._is_settled:
            self._log.clear()
            self._is_settled, self._error = True, None

    def _log_new(self) -> None:
        with self._condition:
            new = list(self._waiting)[self._num_logged:]
        if new:
            self._log.append(change for _, changes in new for change in changes)
            self._num_logged += len(new)
            # From here on these strokes survive this process.

    def _log_at_exit(self) -> None:
        """Keep for the next opening what cannot go into the image any more."""
        try:
            self._log_new()
        except OSError as error:
            self._error = error

    def _apply(self, edit: int, changes: list[Change]) -> None:
        steps = self._arrays.apply(changes)
        while True:
            # One chunk at a time, so that readers wait for a chunk and not for a stroke.
            self._check()
            with self.lock:
                pairs = next(steps, None)
                if pairs is None:
                    return
                self.history.add(edit, pairs)
                for before, after in pairs:
                    self._count(before, -1)
                    self._count(after, 1)
            # However long a stroke takes, the next ones are safe at once.
            self._log_new()

    def _count(self, change: Change, sign: int) -> None:
        if self.counts is None:
            return
        values = change.values()
        if isinstance(values, int):
            found: Iterable[tuple[Any, Any]] = [(values, np.count_nonzero(change.mask))]
        else:
            found = zip(*np.unique(values, return_counts=True), strict=True)
        for value, number in found:
            self.counts[int(value)] = self.counts.get(int(value), 0) + sign * int(number)

    def _fail(self, error: Exception) -> None:
        with self._condition:
            self._error = error
            self._condition.notify_all()
            if not self._stopping:
                self._condition.wait(RETRY_SECONDS)
