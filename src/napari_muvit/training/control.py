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
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
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

    def clear(self) -> None:
        """Forget what was asked, before a stopped run goes on."""
        self._stop = self._paused = False

    def _set(self, *, paused: bool | None = None, stop: bool | None = None) -> None:
        with self._changed:
            self._paused = self._paused if paused is None else paused
            self._stop = self._stop if stop is None else stop
            self._changed.notify_all()

    def check(self) -> None:
        """Raise `StoppedError` if a stop was asked for."""
        self._poll()
        if self._stop:
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
        """Take up, and take away, what another process wrote into the control file."""
        now = time.monotonic()
        if self._file is None or now - self._polled < POLL_SECONDS:
            return
        self._polled = now
        with suppress(OSError):  # no such file: nothing was asked
            asked = self._file.read_text(encoding="utf-8").strip()
            self._file.unlink()
            actions = {"pause": self.pause, "resume": self.resume, "stop": self.stop}
            if asked in actions:
                actions[asked]()

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
