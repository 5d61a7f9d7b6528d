"""Strokes in a window of annotations, what of them is on disk, and what can go wrong."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np

from napari_muvit import api

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "store")
"""A full disk."""


def paint(layer: Any, value: int) -> None:
    """160 pixels of a class, through the layer and with its events, as napari paints."""
    indices = np.mgrid[10 * value : 10 * value + 8, 10:30].reshape(2, -1)
    layer.data_setitem(tuple(indices), value)


def saved(store: Path) -> dict[int, int]:
    """Pixels of each class in a store."""
    with api.AnnotationStore(store, writable=False) as opened:
        found: dict[int, int] = opened.class_counts()
    return found


def moved(place: Path) -> Path:
    """Take a file or folder away; returns where it is now."""
    return Path(place.rename(place.with_name("elsewhere")))
