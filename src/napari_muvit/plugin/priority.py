"""Training gives way to the viewer: it takes what the viewer leaves of the processor."""

from __future__ import annotations

import os
import sys
import threading

NICENESS = 10
"""Unix' measure of how far something gives way, 0 to 19."""


def lower_process(number: int) -> None:
    """Let the process of this number, and what it starts, give way to others."""
    import psutil  # comes with napari

    lower = getattr(psutil, "BELOW_NORMAL_PRIORITY_CLASS", NICENESS)
    try:
        process = psutil.Process(number)
        if os.name == "nt" or process.nice() < lower:
            process.nice(lower)
    except psutil.Error:
        # It has ended already, or may not be changed: it runs as it did.
        return


def lower_thread() -> None:
    """Let this thread, and those it starts, give way; only Linux does that for threads."""
    if sys.platform == "linux":
        number = threading.get_native_id()
        now = os.getpriority(os.PRIO_PROCESS, number)
        os.setpriority(os.PRIO_PROCESS, number, max(now, NICENESS))
