"""Pause, resume and stop a run from another thread, also in the middle of a long step."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


class StoppedError(Exception):
    """The run was asked to stop; never seen outside of the engine."""


class Control:
    """What the user asked for. Every method may be called from any thread, or a signal handler."""

    def __init__(self) -> None:
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
        if self._stop:
            raise StoppedError

    def gate(self) -> None:
        """Sleep while paused, then raise `StoppedError` if a stop was asked for."""
        with self._changed:
            while self._paused and not self._stop:
                # The timeout lets a signal handler run on platforms that delay it in a wait.
                self._changed.wait(timeout=0.5)
        self.check()

    @contextmanager
    def interruptible(self, module: nn.Module) -> Iterator[None]:
        """Within, a stop ends the forward or backward pass of `module` at its next layer.

        Forward passes look before every module, backward passes after every gradient.
        """
        def look(*_: Any) -> None:
            self.check()

        handles = [part.register_forward_pre_hook(look) for part in module.modules()]
        handles += [p.register_post_accumulate_grad_hook(look)  # type: ignore[no-untyped-call]
                    for p in module.parameters() if p.requires_grad]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
