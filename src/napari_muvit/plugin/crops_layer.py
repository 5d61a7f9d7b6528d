"""Nested crops in the viewer: one Shapes layer with a named box for each level."""

from __future__ import annotations

from typing import Any

import numpy as np

from napari_muvit.geometry import FloatArray
from napari_muvit.plugin import crops
from napari_muvit.plugin.layers import ViewerTransform

LAYER_NAME = "MuViT crops"
EDGE_PX = 2.0
"""Width of a box's edge in screen pixels."""


def draw_boxes(
    viewer: Any, transform: ViewerTransform, levels: tuple[float, ...], boxes: FloatArray,
    layer: Any = None,
) -> Any:
    """The Shapes layer that shows `boxes` (L, 2, A) world px; `layer` is used again if there."""
    if layer is not None and layer.ndim != transform.num_axes and layer in viewer.layers:
        viewer.layers.remove(layer)
    if layer is None or layer not in viewer.layers:
        layer = _add_layer(viewer, transform)
    colors = [crops.LEVEL_COLORS[i % len(crops.LEVEL_COLORS)] for i in range(len(boxes))]
    layer.affine = transform.matrix
    layer.data = []
    layer.add_rectangles(
        crops.box_corners(boxes), edge_color=colors, face_color="transparent",
        edge_width=edge_width(viewer, transform),
    )
    layer.features = {"level": [f"level {level:g}" for level in levels]}
    layer.text.color = {
        "encoding_type": "ManualColorEncoding", "array": colors, "default": "white",
    }
    return layer


def _add_layer(viewer: Any, transform: ViewerTransform) -> Any:
    active = viewer.layers.selection.active
    layer = viewer.add_shapes(
        name=LAYER_NAME, ndim=transform.num_axes, features={"level": np.empty(0, dtype=object)},
        text={"string": "{level}", "anchor": "upper_left", "size": 15},
        **transform.layer_kwargs(),
    )
    if active is not None:
        viewer.layers.selection.active = active
    return layer


def edge_width(viewer: Any, transform: ViewerTransform) -> float:
    """Width in world px of an edge that is `EDGE_PX` wide on the screen."""
    per_px = float(transform.viewer_per_px[-2:].mean())
    return EDGE_PX / float(viewer.scene.camera.zoom) / per_px
