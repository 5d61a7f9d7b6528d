"""Moving the view to a place of an image."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike

from napari_muvit.plugin.layers import ViewerTransform


def center_view(viewer: Any, transform: ViewerTransform, place: ArrayLike) -> None:
    """Move the middle of the view, and the sliders, to the world position `place` (A,)."""
    middle = transform.to_viewer(place)
    for axis, value in enumerate(middle[:-2], start=viewer.dims.ndim - len(middle)):
        viewer.dims.set_point(axis, float(value))
    camera = viewer.scene.camera
    camera.center = (*[0.0] * (len(camera.center) - 2), *middle[-2:].tolist())
