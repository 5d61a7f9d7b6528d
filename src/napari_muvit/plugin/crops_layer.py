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
NAME_SIZE = 15
NAME_PX = np.array([35.0, 100.0])
"""Height of a line and width of a name in screen pixels, some air included."""


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
    )
    names = [f"level {level:g}" for level in levels]
    layer.features = {"level": names, "name": names}
    layer.text.color = {
        "encoding_type": "ManualColorEncoding", "array": colors, "default": "white",
    }
    fit_to_zoom(viewer, transform, layer)
    return layer


def fit_to_zoom(viewer: Any, transform: ViewerTransform, layer: Any) -> None:
    """Edges of one width on the screen, and no name written over another."""
    if not layer.data:
        return
    screen_px = screen_px_per_world(viewer, transform)
    layer.edge_width = EDGE_PX / screen_px
    corners = np.stack([corners[:, -2:].min(axis=0) for corners in layer.data])
    levels = list(layer.features["level"])
    # a line that ends the text counts for its height only if something stands in it
    names = [f"{level}" + "\n " * line for level, line in
             zip(levels, name_lines(corners * screen_px), strict=True)]
    if names != list(layer.features["name"]):
        layer.features = {"level": levels, "name": names}


def name_lines(corners: FloatArray) -> list[int]:
    """How many lines each name is lifted above its corner (L, 2), screen px, to be legible."""
    placed: list[FloatArray] = []
    lines = []
    for corner in corners:
        line = 0
        while any((abs(corner - (line * NAME_PX[0], 0) - other) < NAME_PX).all()
                  for other in placed):
            line += 1
        placed.append(corner - (line * NAME_PX[0], 0))
        lines.append(line)
    return lines


def _add_layer(viewer: Any, transform: ViewerTransform) -> Any:
    active = viewer.layers.selection.active
    layer = viewer.add_shapes(
        name=LAYER_NAME, ndim=transform.num_axes, opacity=1.0,
        features={key: np.empty(0, dtype=object) for key in ("level", "name")},
        text={"string": "{name}", "anchor": "upper_left", "size": NAME_SIZE},
        **transform.layer_kwargs(),
    )
    if active is not None:
        viewer.layers.selection.active = active
    return layer


def screen_px_per_world(viewer: Any, transform: ViewerTransform) -> float:
    """Screen pixels that one world px takes now."""
    return float(viewer.scene.camera.zoom) * float(transform.viewer_per_px[-2:].mean())
