"""Events as lines: one that renews itself on a terminal, one every few seconds elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

from napari_muvit.doors.shell import duration, say

QUIET_SECONDS = 10.0


class ProgressPrinter:
    """Prints the events of a run, a prediction or a conversion to stderr."""

    def __init__(self, name: str, is_quiet: bool = False) -> None:
        self.name, self.is_quiet = name, is_quiet
        self._terminal = sys.stderr.isatty()
        self._last = -QUIET_SECONDS
        self._shown = ""
        self._open_line = False
        self._begun = ""

    def show(self, event: Any) -> None:
        """Print what `event` says, if it is time to."""
        if self.is_quiet:
            return
        kind = type(event).__name__
        shower = getattr(self, f"_show_{kind}", None)
        if shower is not None:
            shower(event)

    def close(self) -> None:
        """End a line that is still being renewed."""
        if self._open_line:
            sys.stderr.write("\n")
            self._open_line = False

    def _progress(self, text: str, is_last: bool) -> None:
        now = time.monotonic()
        pause = 0.1 if self._terminal else QUIET_SECONDS
        if text == self._shown or (now - self._last < pause and not is_last):
            return
        self._last, self._shown = now, text
        if self._terminal:
            sys.stderr.write(f"\r\x1b[K{self.name}: {text}")
            sys.stderr.flush()
            self._open_line = True
        else:
            say(f"{self.name}: {text}")

    def _line(self, text: str) -> None:
        self.close()
        say(f"{self.name}: {text}")

    def _show_StepEvent(self, event: Any) -> None:
        self._progress(
            f"step {event.step}/{event.steps}  loss {event.loss:.4f}{left(event.remaining)}",
            is_last=event.step == event.steps,
        )

    def _show_ValidationEvent(self, event: Any) -> None:
        self._line(f"step {event.step} validation  {metrics_text(event.metrics)}")

    def _show_WarningEvent(self, event: Any) -> None:
        self._line(f"warning: {event.message}")

    def _show_TileEvent(self, event: Any) -> None:
        if not event.total:
            return  # nothing is left for this part
        image, share = getattr(event, "image", ""), getattr(event, "left_out", 0.0)
        if share and image != self._begun:
            self._begun = image
            self._line(f"{share:.0%} of {image} is left out as empty or outside the mask and stays "
                       "unlabelled; --tissue none predicts everything")
        self._progress(
            f"{event.done}/{event.total} tiles{left(event.remaining)}",
            is_last=event.done == event.total,
        )

    def _show_StoppingEvent(self, event: Any) -> None:
        self._line(f"step {event.step} stopping; writing a checkpoint")

    def _show_FinishedEvent(self, event: Any) -> None:
        is_failed = getattr(event, "reason", "") == "failed"  # the error that follows says it
        if getattr(event, "message", "") and not is_failed:
            self._line(event.message)
        if hasattr(event, "output"):
            self._line(finished_text(event))

    def _show_ConvertEvent(self, event: Any) -> None:
        self._progress(
            f"{event.done}/{event.total} blocks{left(event.remaining)}",
            is_last=event.done == event.total,
        )


def finished_text(event: Any) -> str:
    """How a prediction ended: what is there, and what is still to do."""
    if getattr(event, "was_complete", False):
        return f"{event.output} was complete already; nothing was computed"
    wrote = f"wrote {event.output} in {duration(event.seconds)}"
    if event.complete:
        return f"finished; {wrote}"
    if getattr(event, "part_complete", False):
        return f"this part is done, others are not; {wrote}"
    return f"unfinished, run again to go on; {wrote}"


def metrics_text(metrics: Mapping[str, float]) -> str:
    """Validation metrics by name; of classes that are in no crop, nor predicted, the names."""
    parts = [f"{name} {value:.4f}" for name, value in metrics.items() if math.isfinite(value)]
    absent = [name.removeprefix("whole_").removeprefix("dice_")
              for name, value in metrics.items() if not math.isfinite(value)]
    if absent:
        parts.append(f"(not there to score: {', '.join(absent)})")
    return "  ".join(parts)


def left(seconds: float | None) -> str:
    """What remains, in words; nothing where it is not known yet or over."""
    return f"  {duration(seconds)} left" if seconds else ""
