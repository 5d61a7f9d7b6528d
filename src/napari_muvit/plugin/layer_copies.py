"""Layers as files that training can read: their own, or a copy of what is only in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from napari_muvit.errors import InputError, MuvitError
from napari_muvit.plugin.image_choices import (
    CHANNEL_KEY,
    IMAGE_KEY,
    NUM_AXES,
    ImageChoice,
    file_channels,
    source_path,
)
from napari_muvit.plugin.layer_arrays import arrays_of, digest_of
from napari_muvit.plugin.layers import ResolvedImage, plane_index, resolve_image
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
    t
        The time point that the layer shows, of a series.
    """

    path: str
    name: str
    store: Callable[[], Iterator[Any]] | None = None
    channels: tuple[str, ...] = ()
    t: int | None = None


def image_source(choice: ImageChoice, backend: Any, viewer_point: ArrayLike) -> LayerSource:
    """Where training finds an image of the viewer (in the GUI thread).

    A file is taken where it is what the layers show, else a copy of their pixels.
    """
    try:
        image = whole_image(choice, backend, viewer_point)
    except MuvitError:
        if choice.path is None:
            raise
        # What is wrong with the file is said before the start.
        return LayerSource(choice.path, choice.name)
    t = image.plane.get("t")
    if image.path is not None:
        is_copy = choice.path is None
        return LayerSource(image.path, choice.name, channels=shown_channels(choice, image),
                           t=None if is_copy else t)
    path = copy_path(choice.name, image.identity, t)
    return LayerSource(
        str(path), choice.name, lambda: store_copy(backend, image.pyramid, path)
    )


def shown_channels(choice: ImageChoice, image: ResolvedImage) -> tuple[str, ...]:
    """Names of the channels that layers show of their file; empty where that is all of it."""
    noted = file_channels(choice)
    if noted is None or image.path is None or choice.path is None:
        return ()
    names = tuple(getattr(image.pyramid, "channel_names", None) or ())
    is_part = CHANNEL_KEY in choice.layers[0].metadata or names == tuple(noted)
    return names if is_part else ()


def part_options(
    source: LayerSource, values: dict[str, Any], is_first: bool
) -> tuple[dict[str, Any], str]:
    """Options of a run that reads what the layer shows of its file, and a sentence about them.

    Parameters
    ----------
    values
        The options so far.
    is_first
        Whether the run has no images yet.

    Raises
    ------
    InputError
        If the run reads another time point.
    """
    part: dict[str, Any] = {}
    said = []
    if source.channels and (is_first or values["channels"] is None):
        part["channels"] = source.channels
        said.append(f"the channel {', '.join(source.channels)} alone, as the layer does. "
                    "Empty the option Channels for all of them.")
    if source.t is not None and is_first:
        part["t"] = source.t
        said.append(f"time point {source.t} of the images, which the view shows.")
    elif source.t is not None and source.t != (values["t"] or 0):
        raise InputError(
            f"the view shows time point {source.t} of {source.name!r}; this run reads time point "
            f"{values['t'] or 0} of all its images. Move the slider there, or save the other "
            "time point as an image of its own."
        )
    return part, f"The run reads {' It reads '.join(said)}" if said else ""


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
        If annotations belong to another image, or labels in memory do not cover the image pixel
        by pixel.
    """
    path = source_path(layer)
    if path is not None:
        if not belongs(layer, choice, viewer_point):
            raise InputError(
                f"{layer.name!r} holds annotations of another image than {choice.name!r}, or of "
                "another time point. Choose an image and the labels that belong to it."
            )
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


def belongs(layer: Any, choice: ImageChoice, viewer_point: ArrayLike) -> bool:
    """Whether a labels layer may be the image's: annotations know which image is theirs."""
    whose = layer.metadata.get(IMAGE_KEY)
    if whose is None:
        return True
    t = plane_index(choice.layers[0], viewer_point).get("t")
    return tuple(whose) == (choice.key, t) or tuple(whose) == (choice.identity, t)


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
