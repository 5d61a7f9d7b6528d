"""Where a run holds or ends as it was asked: one process at every event, several together.

Several processes must not leave the path they share: whoever waits in a sum that another one
never joins waits for ever. So they agree before each step, and on each batch that is read.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from enum import IntEnum

import torch

from napari_muvit.errors import MuvitError, RunError
from napari_muvit.training.control import POLL_SECONDS, Control, StoppedError
from napari_muvit.training.loader import Batch
from napari_muvit.training.parallel import Parallel


class Wish(IntEnum):
    """What a process wants to do next; processes agree on the highest."""

    GO = 0
    PAUSE = 1
    STOP = 2
    FAIL = 3


class Gate:
    """Lets a run go on, or not.

    Parameters
    ----------
    meeting
        The device on which processes meet, see `parallel.meeting_place`.
    """

    def __init__(self, control: Control, parallel: Parallel, meeting: torch.device) -> None:
        self.control, self.parallel, self.meeting = control, parallel, meeting

    def at_event(self) -> None:
        """Hold while paused, end if stopped; several processes do that in `together`."""
        if self.parallel.world == 1:
            self.control.gate()

    def together(self) -> None:
        """Hold while any process is asked to pause; end all if any is asked to stop.

        Raises
        ------
        StoppedError
            In every process, if a stop was asked for in one.
        """
        if self.parallel.world == 1:
            return
        while self._agree(self._wish(may_pause=True)) is Wish.PAUSE:
            time.sleep(POLL_SECONDS)

    def fetch(self, batches: Iterator[Batch]) -> Batch | None:
        """The next batch, None after the last; what one process cannot read ends all.

        Raises
        ------
        StoppedError
            In every process, if a stop was asked for in one.
        MuvitError, OSError, RuntimeError
            What went wrong here, or that it went wrong elsewhere.
        """
        if self.parallel.world == 1:
            return next(batches, None)
        batch: Batch | None = None
        problem: Exception | None = None
        try:
            batch = next(batches, None)
        except StoppedError:
            pass  # the control knows, and tells the others
        except (MuvitError, OSError, RuntimeError) as error:
            problem = error
        self._agree(Wish.FAIL if problem else self._wish(), problem)
        return batch

    def _wish(self, *, may_pause: bool = False) -> Wish:
        if self.control.is_asked_to_stop():
            return Wish.STOP
        return Wish.PAUSE if may_pause and self.control.is_paused else Wish.GO

    def _agree(self, own: Wish, problem: Exception | None = None) -> Wish:
        agreed = Wish(self.parallel.highest(own, self.meeting))
        if problem is not None:
            raise problem
        if agreed is Wish.FAIL:
            raise RunError(
                "another process of this run could not read its samples; its message says why. "
                "The last checkpoint is whole."
            )
        if agreed is Wish.STOP:
            raise StoppedError
        return agreed
