"""Features as layers: colours, groups, likeness and attention, each in its place.

`show_features` and `show_attention` are for napari's console: a viewer goes in, layers come out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from napari_muvit.errors import InputError
from napari_muvit.plugin import console, engine, features
from napari_muvit.plugin.devices import DESK, Placing
from napari_muvit.plugin.image_choices import RESULT_KEY
from napari_muvit.plugin.layers import ResolvedImage, visible_box
from napari_muvit.plugin.notices import show_hint


def show_features(
    viewer: Any, model: str | Path, layer: Any = None, *, mode: str = features.COLOURS,
    count: int = 5, box: ArrayLike | None = None, device: str = "auto",
) -> list[Any]:
    """Layers of what the encoder makes of a region, one for each level.

    Parameters
    ----------
    viewer
        The napari viewer.
    model
        Run folder or model folder, pretrained or fine-tuned.
    layer
        An image layer or its name; by default the newest.
    mode, count
        ``Colours``, or ``Groups`` and how many.
    box
        (2, 2) world px; by default what the canvas shows.
    device
        auto, cpu, cuda or mps.

    Raises
    ------
    InputError
        If `mode` is neither, or the view shows no part of the image.
    """
    if mode not in features.MODES:
        raise InputError(f"mode is {mode!r}; pass one of {', '.join(features.MODES)}.")
    backend = engine.default_backend()
    image, layers = console.resolve(viewer, layer, is_whole=False)
    seen = visible_box(layers[0], image.transform) if box is None else np.asarray(box, np.float64)
    if seen is None:
        raise InputError("the view shows no part of the image. Pass box, or move the image.")
    placing = Placing(backend, DESK, device, features.WHO)
    cache = features.FeatureCache(backend, image, features.load(backend, str(model)), placing)
    maps = [found for found in cache.maps(seen)
            if isinstance(found, features.FeatureMap) and found.is_whole]
    _tell(placing)
    return [show_painting(viewer, image, painting)
            for painting in features.Painter().paint(maps, mode, count)]


def show_attention(
    viewer: Any, model: str | Path, place: ArrayLike, layer: Any = None, *,
    encoder_layer: int = -1, device: str = "auto",
) -> list[Any]:
    """Layers of where the model looks to understand a place, one for each level.

    Parameters
    ----------
    viewer, model, layer, device
        See `show_features`.
    place
        (y, x) world px.
    encoder_layer
        Layer of the encoder, the first being 0; the last by default.
    """
    backend = engine.default_backend()
    image, _ = console.resolve(viewer, layer, is_whole=False)
    loaded = features.load(backend, str(model))
    where = np.asarray(place, np.float64)
    placing = Placing(backend, DESK, device, features.WHO)
    found = features.attended(backend, image, loaded, where, encoder_layer, placing)
    _tell(placing)
    return [show_attended(viewer, image, part) for part in found]


def _tell(placing: Placing) -> None:
    """Say where it was computed, if not where one would think."""
    if placing.text:
        show_hint(placing.text)


def show_painting(viewer: Any, image: ResolvedImage, painting: features.Painting) -> Any:
    """The layer of colours or groups of one level."""
    found = painting.found
    style: dict[str, Any] = {"opacity": 0.7, "rgb": True}
    if painting.mode == features.GROUPS:
        style = {"opacity": 0.6}
    return place_layer(
        viewer, image, f"features, level {found.level:g}", painting.picture,
        found.region.factor, found.region.offset(), **style)


def hide_layers(viewer: Any, kind: str) -> None:
    """Hide the layers of another question, "alike" or "attended", which would lie over these."""
    for layer in viewer.layers:
        if RESULT_KEY in layer.metadata and layer.name.startswith(f"{kind}, level "):
            layer.visible = False


def show_alike(
    viewer: Any, image: ResolvedImage, found: features.FeatureMap, chosen: Any
) -> Any:
    """The layer of how alike all of a map is to the features (D,)."""
    values = features.likeness(found.values, chosen)
    # Features of one image have much in common: what little of it differs is to be seen.
    low = min(float(np.percentile(values, 2)), 0.99)
    return place_layer(
        viewer, image, f"alike, level {found.level:g}", values, found.region.factor,
        found.region.offset(), colormap="inferno", contrast_limits=(low, 1.0), opacity=0.7,
        blending="translucent_no_depth")


def show_attended(viewer: Any, image: ResolvedImage, part: features.AttendedLevel) -> Any:
    """The layer of what was attended to at one level."""
    return place_layer(
        viewer, image, f"attended, level {part.level:g}", part.weights, part.factor, part.offset,
        colormap="inferno", opacity=0.6, blending="translucent_no_depth",
        contrast_limits=(0.0, float(part.weights.max()) or 1.0))


def place_layer(
    viewer: Any, image: ResolvedImage, name: str, data: Any, factor: Any, offset: Any,
    **style: Any,
) -> Any:
    """A layer of one value for each patch; the one of that name takes it, if it can.

    Colours have the style ``rgb``, groups are whole numbers without it.
    """
    place = image.transform.layer_kwargs(factor, offset)
    is_labels = "rgb" not in style and data.dtype.kind == "u"
    if name in viewer.layers:
        layer = viewer.layers[name]
        if _takes(layer, is_labels, "rgb" in style):
            layer.data, layer.scale, layer.translate = data, place["scale"], place["translate"]
            layer.visible = layer.visible or name.startswith(("alike", "attended"))
            if "contrast_limits" in style:
                layer.contrast_limits = style["contrast_limits"]
            return layer
        viewer.layers.remove(name)
    active = viewer.layers.selection.active
    add = viewer.add_labels if is_labels else viewer.add_image
    layer = add(data, name=name, metadata={RESULT_KEY: True}, **place, **style)
    if active is not None and active in viewer.layers:
        viewer.layers.selection.active = active
    return layer


def _takes(layer: Any, is_labels: bool, is_rgb: bool) -> bool:
    """Whether a layer can show other data of that kind."""
    from napari.layers import Image, Labels

    if is_labels:
        return isinstance(layer, Labels)
    return isinstance(layer, Image) and layer.rgb == is_rgb
