"""What a process holds. Imports nothing that would add to it."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak_bytes() -> float:
    """Most that this process held."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would count what the parent held before this process began
        line = next(li for li in status.read_text().splitlines() if li.startswith("VmHWM"))
        return float(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
