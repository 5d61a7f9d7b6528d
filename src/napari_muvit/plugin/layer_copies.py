"""Layers as files that training can read: their own, or a copy of what is only in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from napari_muvit.errors import InputError, MuvitError
from napari_muvit.plugin.layer_arrays import arrays_of, digest_of
from napari_muvit.plugin.layers import (
    NUM_AXES,
    ImageChoice,
    ResolvedImage,
    resolve_image,
    source_path,
)
from napari_muvit.plugin.stored_images import copy_path, store_copy


@dataclass(frozen=True)
class LayerSource:
    """The path of a layer, and what has to be written there first.

    Attributes
    ----------
    store
        Writes the copy, with progress (runs in a thread); None where the file is there.
    channels
        Names of the channels of the file that the layer shows, where it has others too.
    """

    path: str
    name: str
    store: Callable[[], Iterator[Any]] | None = None
    channels: tuple[str, ...] = ()


def image_source(choice: ImageChoice, backend: Any, viewer_point: ArrayLike) -> LayerSource:
    """Where training finds an image of the viewer (in the GUI thread)."""
    if choice.path is not None:
        try:
            channels = shown_channels(choice, whole_image(choice, backend, viewer_point))
        except MuvitError:
            # What is wrong with the file is said before the start.
            channels = ()
        return LayerSource(choice.path, choice.name, channels=channels)
    image = whole_image(choice, backend, viewer_point)
    if image.path is not None:
        return LayerSource(image.path, choice.name)
    path = copy_path(choice.name, image.identity, image.plane.get("t"))
    return LayerSource(
        str(path), choice.name, lambda: store_copy(backend, image.pyramid, path)
    )


def shown_channels(choice: ImageChoice, image: ResolvedImage) -> tuple[str, ...]:
    """Name of the channel that a single layer shows of its file; empty where that is all of it."""
    layer = choice.layers[0]
    if len(choice.layers) > 1 or layer.rgb or image.path is None:
        return ()
    names = tuple(getattr(image.pyramid, "channel_names", None) or ())
    return names if names == (layer.name,) else ()


def whole_image(choice: ImageChoice, backend: Any, viewer_point: ArrayLike) -> ResolvedImage:
    """The image with all its planes."""
    return resolve_image(choice, backend, viewer_point, NUM_AXES + choice.has_depth)


def labels_source(
    layer: Any, choice: ImageChoice, backend: Any, viewer_point: ArrayLike
) -> LayerSource:
    """Where training finds the labels of an image (in the GUI thread).

    Raises
    ------
    InputError
        If labels in memory do not cover the image pixel by pixel.
    """
    path = source_path(layer)
    if path is not None:
        return LayerSource(path, layer.name)
    image = whole_image(choice, backend, viewer_point)
    arrays = arrays_of(layer)
    if tuple(arrays[0].shape) != tuple(image.pyramid.spatial_shape) or not _lies_on(layer, image):
        raise InputError(
            f"{layer.name!r} does not cover {choice.name!r} pixel by pixel. Open MuViT: Annotate, "
            "import the layer there, and add what that widget saves."
        )
    labels = backend.pyramid_from_arrays(
        arrays, axes=image.pyramid.axes[1:], pixel_size=image.transform.pixel_size_um,
        name=layer.name, is_labels=True,
    )
    place = copy_path(layer.name, digest_of(arrays[0]))
    if place.is_dir():
        return LayerSource(str(place), layer.name)
    return LayerSource(
        str(place), layer.name, lambda: store_copy(backend, labels, place, as_labels=True)
    )


def _lies_on(layer: Any, image: ResolvedImage) -> bool:
    """Whether the first and the last pixel of both are at the same place."""
    corners = np.stack([np.zeros(layer.ndim), np.asarray(image.pyramid.spatial_shape) - 1])
    places = [image.transform.to_world(layer.data_to_world(corner)) for corner in corners]
    return bool(np.allclose(places, corners, atol=0.25))


def store_all(sources: list[LayerSource]) -> Iterator[str]:
    """Write the copies that are missing, one after another; says what is done."""
    for source in sources:
        for event in () if source.store is None else source.store():
            share = event.done / max(1, event.total)
            yield f"Saving a copy of {source.name!r}, which is only in memory: {share:.0%}"
