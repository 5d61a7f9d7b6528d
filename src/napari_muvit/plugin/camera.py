"""The middle of the view, and whether the mouse moves it, whatever axes are displayed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from napari_muvit.geometry import FloatArray
from napari_muvit.plugin.layers import ViewerTransform

NAVIGATING = ("pan_zoom", "transform")
"""Modes of a layer in which a click does nothing to it."""


def view_center(viewer: Any) -> FloatArray:
    """Viewer coordinates of the middle of the view; where sliders stand for all other axes."""
    center = np.array(viewer.dims.point, np.float64)
    shown = list(viewer.dims.displayed)
    center[shown] = viewer.scene.camera.center[-len(shown):]
    return center


def center_view(viewer: Any, transform: ViewerTransform, place: ArrayLike) -> None:
    """Move the middle of the view, and the sliders, to the world position `place` (A,)."""
    middle = view_center(viewer)
    target = transform.to_viewer(place)
    middle[-len(target):] = target
    shown = list(viewer.dims.displayed)
    for axis in range(len(middle) - len(target), len(middle)):
        if axis not in shown:
            viewer.dims.set_point(axis, float(middle[axis]))
    camera = viewer.scene.camera
    camera.center = (*[0.0] * (len(camera.center) - len(shown)), *middle[shown].tolist())


def is_navigating(viewer: Any) -> bool:
    """Whether a click in the canvas is free: the chosen layer is not being painted or edited."""
    active = viewer.layers.selection.active
    return str(getattr(active, "mode", NAVIGATING[0])) in NAVIGATING
