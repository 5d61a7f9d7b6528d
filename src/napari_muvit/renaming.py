"""Renaming a file into its place, also where Windows refuses it for a moment."""

from __future__ import annotations

import os
import time
from pathlib import Path

PAUSES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4)
"""Seconds between tries."""


def rename_over(source: Path, target: Path) -> None:
    """Rename `source` to `target`, which it replaces.

    Windows refuses while somebody reads the target, as live prediction does when it loads the
    model of a run, or a virus scanner; both let go soon.

    Raises
    ------
    OSError
        If it is refused for other reasons, or still after a second.
    """
    for pause in PAUSES:
        try:
            os.replace(source, target)
        except PermissionError:
            time.sleep(pause)
        else:
            return
    os.replace(source, target)
