"""Labels layers of predictions: of a region while it is computed, of a store on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from napari_muvit.errors import InputError
from napari_muvit.plugin import predict
from napari_muvit.plugin.image_choices import RESULT_KEY, SOURCE_KEY
from napari_muvit.plugin.label_layers import class_kwargs, level_arrays
from napari_muvit.plugin.layers import ResolvedImage, visible_box

WHOLE, IN_VIEW = STILL_KINDS = "prediction", "prediction in view"
LIVE, CONFIDENCE = LIVE_KINDS = "live prediction", "live confidence"
"""What layers of predictions are called, behind the name of their image."""

OTHERS = {LIVE: STILL_KINDS, IN_VIEW: (*LIVE_KINDS, WHOLE), WHOLE: (*LIVE_KINDS, IN_VIEW)}
"""What each would be mixed up with."""


def hide_others(viewer: Any, image: str, kind: str) -> str:
    """Hide predictions of an image that one of `kind` would be mixed up with; says which."""
    hidden = []
    for layer in viewer.layers:
        if layer.name in {f"{image}: {other}" for other in OTHERS[kind]} and layer.visible:
            layer.visible = False
            hidden.append(repr(layer.name))
    verb = "is" if len(hidden) == 1 else "are"
    names = " and ".join(hidden)
    return f"{names} {verb} hidden, so that one prediction is seen at a time." if hidden else ""


def add_prediction(
    viewer: Any, data: Any, name: str, image: ResolvedImage, factor: Any, offset: Any, table: Any,
    path: Path | None = None,
) -> Any:
    """A labels layer in the colours of the classes, in the place of one of the same name.

    Parameters
    ----------
    factor, offset
        World px of one of its pixels, and world position of the first, (A,).
    path
        The store that it shows, where there is one.
    """
    if name in viewer.layers:
        viewer.layers.remove(name)
    layer = viewer.add_labels(
        data, name=name, opacity=0.5, **image.transform.layer_kwargs(factor, offset),
        metadata={RESULT_KEY: True} | ({} if path is None else {SOURCE_KEY: str(path)}),
        **class_kwargs(table),
    )
    layer.editable = False
    return layer


def show_store(viewer: Any, backend: Any, output: Path, image: ResolvedImage, table: Any) -> Any:
    """The layer of a whole prediction on disk."""
    labels = backend.open_pyramid(str(output))
    axes = labels.axes[1:]
    data = level_arrays(labels, axes)
    factor, offset = predict.place_labels(image.pyramid, labels)
    name = f"{image.name}: {WHOLE}"
    return add_prediction(viewer, data, name, image, factor, offset, table, output)


def begin_view(
    viewer: Any, image: ResolvedImage, layers: Sequence[Any], model: predict.LoadedModel
) -> RegionPainter:
    """An empty layer over what the canvas shows of an image.

    Raises
    ------
    InputError
        If it shows nothing of it.
    """
    box = visible_box(layers[0], image.transform, viewer.dims.point)
    if box is None:
        raise InputError("the view shows no part of the image. Move the image into the view.")
    shape = model.grid_shape(image.pyramid)
    region = predict.plan_region(box, shape, model.factors_in(image.pyramid))
    canvas = np.zeros(region.shape, model.label_dtype)
    layer = add_prediction(
        viewer, canvas, f"{image.name}: {IN_VIEW}", image, region.factor, region.offset(),
        model.table)
    return RegionPainter(viewer, layer, region)


class RegionPainter:
    """Puts finished blocks into the layer of a region, while the layer exists."""

    def __init__(self, viewer: Any, layer: Any, region: predict.Region) -> None:
        self._viewer, self._layer, self.region = viewer, layer, region

    @property
    def is_there(self) -> bool:
        """Whether the layer is still in the viewer."""
        return self._layer in self._viewer.layers

    def paint(self, event: predict.BlockDone) -> None:
        """Show one block."""
        self._layer.data[self.region.local(event.block)] = event.labels
        self._layer.refresh()
