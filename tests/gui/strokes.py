"""Strokes in a window of annotations, and what of them is on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from napari_muvit import api


def paint(layer: Any, value: int) -> None:
    """160 pixels of a class, through the layer and with its events, as napari paints."""
    indices = np.mgrid[10 * value : 10 * value + 8, 10:30].reshape(2, -1)
    layer.data_setitem(tuple(indices), value)


def saved(store: Path) -> dict[int, int]:
    """Pixels of each class in a store."""
    with api.AnnotationStore(store, writable=False) as opened:
        found: dict[int, int] = opened.class_counts()
    return found
