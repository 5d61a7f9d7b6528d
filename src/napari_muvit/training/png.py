"""Pictures of what a model sees and gives, as arrays and PNG bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

GAP = 4
"""Pixels between the panels of a picture."""

Picture = NDArray[np.uint8]
"""(height, width, 3)."""


def encode_png(picture: Picture) -> bytes:
    """`picture` (height, width, 3) uint8 as the bytes of a PNG file."""
    import imagecodecs

    return bytes(imagecodecs.png_encode(np.ascontiguousarray(picture)))


def to_picture(image: NDArray[np.floating], low: float, high: float) -> Picture:
    """An image (C, *S) with `low` black and `high` white; volumes by their middle plane.

    Three channels are shown as red, green, blue; two as magenta and green; else the first.
    """
    image = np.asarray(image, np.float32)
    while image.ndim > 3:
        image = image[:, image.shape[1] // 2]
    scaled = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
    if len(scaled) == 2:
        scaled = scaled[[0, 1, 0]]
    elif len(scaled) != 3:
        scaled = np.repeat(scaled[:1], 3, axis=0)
    picture: Picture = (np.moveaxis(scaled, 0, -1) * 255).round().astype(np.uint8)
    return picture


def paint_classes(index: NDArray[np.integer], colors: Sequence[str]) -> Picture:
    """Class indices (*S) in the colours of the class table; negative ones are dark grey."""
    while index.ndim > 2:
        index = index[index.shape[0] // 2]
    table = [[int(color[i:i + 2], 16) for i in (1, 3, 5)] for color in colors]
    table.append([40, 40, 40])  # what -1 takes: not judged
    painted: Picture = np.asarray(table, np.uint8)[index]
    return painted


def paint_grey(values: NDArray[np.floating]) -> Picture:
    """Values (*S) from 0 to 1 as grey."""
    while values.ndim > 2:
        values = values[values.shape[0] // 2]
    grey = (np.clip(values, 0, 1) * 255).round().astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def tile_pictures(rows: Sequence[Sequence[Picture]]) -> Picture:
    """Rows of equally large panels as one picture, with white gaps."""
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    shape = (len(rows) * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3)
    whole = np.full(shape, 255, np.uint8)
    for r, row in enumerate(rows):
        for c, panel in enumerate(row):
            top, left = r * (height + GAP), c * (width + GAP)
            whole[top:top + height, left:left + width] = panel
    return whole
