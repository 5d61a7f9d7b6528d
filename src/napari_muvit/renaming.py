"""Replacing files that others may be reading, also where Windows refuses it for a moment."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

PAUSES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4)
"""Seconds between tries."""


def rename_over(source: Path, target: Path) -> None:
    """Rename `source` to `target`, which it replaces; as `replace_patiently`."""
    replace_patiently(partial(os.replace, source, target))


def replace_patiently(replace: Callable[[], object]) -> None:
    """Do what replaces files that others may be reading at this moment.

    Windows refuses while somebody reads the file, as live prediction does when it loads the
    model of a run, the viewer a chunk, or a virus scanner anything; all let go soon.

    Parameters
    ----------
    replace
        May be called several times.

    Raises
    ------
    OSError
        If it is refused for other reasons, or still after a second.
    """
    for pause in PAUSES:
        try:
            replace()
        except PermissionError:
            time.sleep(pause)
        else:
            return
    replace()
