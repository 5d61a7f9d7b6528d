"""Training gives way to the viewer: it takes what the viewer leaves of the processor."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

NICENESS = 10
"""Unix' measure of how far something gives way, 0 to 19: a weight in the competition for a
processor, so that whoever gives way still gets all that nobody else wants."""


def lower_process(number: int) -> None:
    """Let the process of this number, and what it starts, give way to others."""
    _lower_session(number)
    import psutil  # comes with napari

    lower = getattr(psutil, "BELOW_NORMAL_PRIORITY_CLASS", NICENESS)
    try:
        process = psutil.Process(number)
        if os.name == "nt" or process.nice() < lower:
            process.nice(lower)
    except psutil.Error:
        # It has ended already, or may not be changed: it runs as it did.
        return


def _lower_session(number: int) -> None:
    """Where Linux shares processors out among sessions, let that of the process give way.

    Between sessions niceness does not count there (man 7 sched, the autogroup feature). Only
    a session of its own is lowered: another one may be that of the viewer.
    """
    group = Path(f"/proc/{number}/autogroup")
    try:
        if sys.platform == "linux" and group.exists() and os.getsid(number) == number:
            group.write_text(str(NICENESS), encoding="ascii")
    except OSError:
        # It has ended already, or a container forbids it: it runs as it did.
        return


def lower_thread() -> None:
    """Let this thread, and those it starts, give way; only Linux does that for threads."""
    if sys.platform == "linux":
        number = threading.get_native_id()
        now = os.getpriority(os.PRIO_PROCESS, number)
        os.setpriority(os.PRIO_PROCESS, number, max(now, NICENESS))
