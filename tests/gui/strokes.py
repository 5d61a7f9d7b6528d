"""Strokes in a window of annotations, what of them is on disk, and what can go wrong."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
from skimage.io import imsave

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


def open_colours(viewer: Any, folder: Path) -> None:
    """Open a picture of three channels, where a model for one will not do."""
    colours = np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)
    imsave(folder / "colours.png", colours, check_contrast=False)
    viewer.open(str(folder / "colours.png"), plugin="napari")
