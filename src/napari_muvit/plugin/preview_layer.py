"""The newest preview of a run as a layer beside the images, updated in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from napari_muvit.plugin.image_choices import RESULT_KEY

GAP = 0.05
"""Distance from the images, as a share of their height."""


def show_preview(viewer: Any, run: str, path: Path) -> Any:
    """The layer of the preview picture at `path`, as high as the images and right of them."""
    from PIL import Image

    with Image.open(path) as opened:
        picture = np.asarray(opened.convert("RGBA"))
    name = f"preview of {run}"
    if name in viewer.layers:
        layer = viewer.layers[name]
        layer.data = picture
        return layer
    top, right, height, units = _place(viewer)
    scale = height / picture.shape[0]
    active = viewer.layers.selection.active
    layer = viewer.add_image(
        picture, name=name, rgb=True, scale=(scale, scale), units=units,
        translate=(top + scale / 2, right + GAP * height + scale / 2),
        metadata={RESULT_KEY: True},
    )
    if active is not None and active in viewer.layers:
        viewer.layers.selection.active = active
    return layer


def _place(viewer: Any) -> tuple[float, float, float, Any]:
    """Upper and right edge and height of the images in viewer coordinates, and their units."""
    from napari.layers import Image

    boxes, units = [], None
    for layer in viewer.layers:
        if isinstance(layer, Image) and RESULT_KEY not in layer.metadata:
            boxes.append(np.asarray(layer.extent.world)[:, -2:])
            units = layer.units[-2:]
    if not boxes:
        return 0.0, 0.0, 512.0, None
    low, high = np.min(boxes, axis=(0, 1)), np.max(boxes, axis=(0, 1))
    return float(low[0]), float(high[1]), float(high[0] - low[0]) or 1.0, units
