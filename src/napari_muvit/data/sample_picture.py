"""A picture of one training sample: its crops side by side, finer boxes drawn into coarser ones."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.errors import InputError, MissingExtraError

VIEWS = {"yx": 0, "zx": 1, "zy": 2}
"""The axis of a volume that each view looks along."""

BOX_COLORS = ((228, 26, 28), (77, 175, 74), (55, 126, 184), (255, 127, 0), (152, 78, 163))


def draw_sample(
    sample: Mapping[str, Any], ndim: int, view: str = "yx", color_map: Any = None
) -> NDArray[np.uint8]:
    """Crops of a sample from fine to coarse, one below the other, labels at their right.

    Parameters
    ----------
    sample
        ``img`` (L, C, *S), ``bbox`` (L, 2, A) and, if there, ``label`` (L, *S).
    """
    if ndim not in (2, 3) or view not in VIEWS:
        raise InputError(
            f"ndim is {ndim} and view {view!r}; samples of 2 or 3 axes can be shown, as yx, zx "
            "or zy."
        )
    image, boxes = _array(sample["img"]), _array(sample["bbox"]).astype(np.float64)
    label = sample.get("label")
    labels = None if label is None else _array(label)
    if ndim == 3:
        axis = VIEWS[view]
        image = np.take(image, image.shape[axis + 2] // 2, axis=axis + 2)
        boxes = np.delete(boxes, axis, axis=2)
        if labels is not None:
            labels = np.take(labels, labels.shape[axis + 1] // 2, axis=axis + 1)
    rows = [_to_rgb(crop) for crop in image]
    columns = [_with_boxes(rows, boxes)]
    if labels is not None:
        columns.append(_with_boxes([_color(part, color_map) for part in labels], boxes))
    return np.concatenate(columns, axis=1)


def save_picture(picture: NDArray[np.uint8], path: str | Path) -> None:
    """Write a picture (H, W, 3) in the format that the name's ending says."""
    from skimage.io import imsave

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    imsave(str(path), picture, check_contrast=False)


def _array(values: Any) -> NDArray[Any]:
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _to_rgb(crop: NDArray[Any]) -> NDArray[np.uint8]:
    """One crop (C, H, W) as (H, W, 3); one channel grey, two as magenta and green."""
    values = np.nan_to_num(crop.astype(np.float32))
    low, high = values.min(), values.max()
    scaled = ((values - low) / max(float(high - low), 1e-9) * 255).astype(np.uint8)
    order = {1: (0, 0, 0), 2: (0, 1, 0)}.get(len(crop), (0, 1, 2))
    return np.stack([scaled[channel] for channel in order], axis=-1)


def _color(labels: NDArray[Any], color_map: Any) -> NDArray[np.uint8]:
    """One label crop (H, W) as (H, W, 3)."""
    if color_map is not None:
        try:
            colormaps = importlib.import_module("matplotlib").colormaps
        except ImportError:
            raise MissingExtraError(
                f"the colour map {color_map!r} needs matplotlib. Run: pip install matplotlib"
            ) from None
        colored: NDArray[np.uint8] = (colormaps[color_map](labels)[..., :3] * 255).astype(np.uint8)
        return colored
    from skimage.color import label2rgb

    painted: NDArray[np.uint8] = (label2rgb(labels.astype(np.int64), bg_label=0) * 255).astype(
        np.uint8
    )
    return painted


def _with_boxes(rows: list[NDArray[np.uint8]], boxes: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Crops one below the other; in each, the boxes of all finer levels."""
    framed = []
    for coarse, row in enumerate(rows):
        picture = row.copy()
        for fine in range(coarse):
            _draw_box(picture, boxes[coarse], boxes[fine], BOX_COLORS[fine % len(BOX_COLORS)])
        framed.append(np.pad(picture, ((1, 1), (1, 1), (0, 0)), constant_values=255))
    return np.concatenate(framed, axis=0)


def _draw_box(
    picture: NDArray[np.uint8], outer: NDArray[np.float64], inner: NDArray[np.float64],
    color: tuple[int, int, int],
) -> None:
    shape = np.asarray(picture.shape[:2])
    scale = shape / np.maximum(outer[1] - outer[0], 1e-9)
    low, high = np.rint((inner - outer[0]) * scale).astype(int)
    (y0, x0), (y1, x1) = np.clip(low, 0, shape - 1), np.clip(high - 1, 0, shape - 1)
    picture[[y0, y1], x0:x1 + 1] = color
    picture[y0:y1 + 1, [x0, x1]] = color
