"""Pause, resume and stop a run from another thread or process, also within a long step."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import nn

POLL_SECONDS = 0.5
"""How often the control file is looked at."""


class StoppedError(Exception):
    """The run was asked to stop; never seen outside of the engine."""


class Control:
    """What the user asked for. Every method may be called from any thread, or a signal handler.

    Parameters
    ----------
    file
        Where other processes write "pause", "resume" or "stop" (see `RunFolder.ask`).
    is_owner
        Whether this process takes what is asked there; the others of a run only look whether
        it should stop, so that each of them abandons its part of a step.
    """

    def __init__(self, file: Path | None = None, *, is_owner: bool = True) -> None:
        self._file, self._is_owner = file, is_owner
        self._is_closed = False
        self._polled = 0.0
        # A reentrant lock: a signal handler may interrupt the very thread that holds it.
        self._changed = threading.Condition(threading.RLock())
        self._paused = False
        self._stop = False

    @property
    def is_stopping(self) -> bool:
        """Whether a stop was asked for."""
        return self._stop

    @property
    def is_paused(self) -> bool:
        """Whether the run holds, or will at its next event."""
        return self._paused

    def pause(self) -> None:
        """Hold at the next event."""
        self._set(paused=True)

    def resume(self) -> None:
        """Go on after `pause`."""
        self._set(paused=False)

    def stop(self) -> None:
        """End at the next event; a step under way is abandoned."""
        self._set(stop=True)

    def close(self) -> None:
        """The run is ending: what was asked is being done, what is asked from here on is late."""
        with self._changed:
            self._is_closed = True
            self._stop = self._paused = False
            self._changed.notify_all()
        if self._file is not None and self._is_owner:
            with suppress(OSError):
                self._file.unlink(missing_ok=True)

    def is_asked_to_stop(self) -> bool:
        """Whether a stop was asked for, here or in the file."""
        self._poll()
        return self._stop

    def _set(self, *, paused: bool | None = None, stop: bool | None = None) -> None:
        with self._changed:
            if self._is_closed:
                return
            self._paused = self._paused if paused is None else paused
            self._stop = self._stop if stop is None else stop
            self._changed.notify_all()

    def check(self) -> None:
        """Raise `StoppedError` if a stop was asked for."""
        if self.is_asked_to_stop():
            raise StoppedError

    def gate(self) -> None:
        """Sleep while paused, then raise `StoppedError` if a stop was asked for."""
        self._poll()
        with self._changed:
            while self._paused and not self._stop:
                self._changed.wait(timeout=POLL_SECONDS)
                self._poll()
        self.check()

    def _poll(self) -> None:
        """Take up what another process wrote into the control file.

        A stop stays there until the run has ended, for every process of the run to see.
        """
        now = time.monotonic()
        if self._file is None or self._is_closed or now - self._polled < POLL_SECONDS:
            return
        self._polled = now
        with suppress(OSError):  # no such file: nothing was asked
            asked = self._file.read_text(encoding="utf-8").strip()
            if asked == "stop":
                self.stop()
            elif self._is_owner:
                actions = {"pause": self.pause, "resume": self.resume}
                if asked in actions:
                    actions[asked]()
                self._file.unlink()

    @contextmanager
    def interruptible(self, module: nn.Module) -> Iterator[None]:
        """Within, a stop ends the forward or backward pass of `module` at its next layer.

        Forward passes look before every module, backward passes after every gradient.
        """
        def look(*_: Any) -> None:
            self.check()

        handles = [part.register_forward_pre_hook(look) for part in module.modules()]
        handles += [p.register_post_accumulate_grad_hook(look)
                    for p in module.parameters() if p.requires_grad]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
