"""The images that the layers of a viewer are: one layer, or several that are channels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from napari_muvit.plugin.layer_arrays import arrays_of, identity_of, shape_of

SOURCE_KEY = "muvit_source"
"""Key of a layer's metadata under which this plugin's readers note the path."""

CHANNEL_KEY = "muvit_channel"
"""Key under which they note which of the channels of its file a layer is: (index, number)."""

IMAGE_KEY = "muvit_image"
"""Key under which layers of annotations note whose they are: the image's key and time point."""

RESULT_KEY = "muvit_result"
"""Key of the metadata of layers that show a result, which are no images or labels to work on."""

NUM_AXES = 2
"""Spatial axes of a plane of the image, (y, x); a volume has three."""


@dataclass(frozen=True)
class ImageChoice:
    """One image in the viewer: a layer, or several layers that are its channels."""

    name: str
    layers: tuple[Any, ...]

    @property
    def path(self) -> str | None:
        """File or URL that the layers were read from; None for memory and for several files."""
        paths = {source_path(layer) for layer in self.layers}
        return paths.pop() if len(paths) == 1 else None

    @property
    def has_depth(self) -> bool:
        """Whether the image is a stack of planes along z."""
        layer = self.layers[0]
        lead = layer.ndim - NUM_AXES
        return "z" in lead_names(layer)[:lead] and shape_of(layer)[lead - 1] > 1

    @property
    def key(self) -> str:
        """What choices for this image are remembered under."""
        return self.path or self.identity

    @property
    def identity(self) -> str:
        """A digest of the pixels (of a sample of them), which names images without a file."""
        return identity_of([array for layer in self.layers for array in arrays_of(layer)[:1]])


def source_path(layer: Any) -> str | None:
    """File or URL that `layer` shows, None for layers made in memory."""
    path = layer.metadata.get(SOURCE_KEY) or layer.source.path
    return None if path is None else str(path)


def image_choices(layers: Iterable[Any]) -> list[ImageChoice]:
    """The images among `layers`, newest last; channels come as one choice as well.

    Layers are channels of one image when they were read from the same path and agree in
    shape and place; they come in the order of the file. All layers that agree in shape, type
    and place can be taken as the channels of one image too, otherwise in the order of the
    viewer. Each layer alone follows.
    """
    from napari.layers import Image

    images = [layer for layer in layers
              if isinstance(layer, Image) and RESULT_KEY not in layer.metadata]
    files: dict[Any, list[Any]] = {}
    alike: dict[Any, list[Any]] = {}
    for layer in images:
        path, place = source_path(layer), (shape_of(layer), _place(layer))
        is_channel = not layer.rgb
        files.setdefault((path, place) if path and is_channel else id(layer), []).append(layer)
        if is_channel:
            alike.setdefault((place, str(layer.dtype), len(arrays_of(layer))), []).append(layer)
    for members in (*files.values(), *alike.values()):
        members.sort(key=lambda layer: layer.metadata.get(CHANNEL_KEY, (0, 1)))
    stacks = [members for members in alike.values() if len(members) > 1]
    choices = [ImageChoice(f"{len(members)} layers as channels", tuple(members))
               for members in stacks if members not in files.values()]
    for members in files.values():
        if len(members) > 1:
            name = f"{PurePath(str(source_path(members[0]))).name} ({len(members)} channels)"
            choices.append(ImageChoice(name, tuple(members)))
        choices += [ImageChoice(member.name, (member,)) for member in members]
    return choices


def _place(layer: Any) -> tuple[float, ...]:
    corner = layer.data_to_world(np.zeros(layer.ndim))
    end = layer.data_to_world(np.ones(layer.ndim))
    return tuple(round(float(value), 9) for value in (*corner, *end))


def lead_names(layer: Any) -> list[str]:
    """Names of the axes before (y, x): t or z."""
    lead = layer.ndim - NUM_AXES
    names = [str(label).lower() for label in layer.axis_labels[:lead]]
    if not all(name in {"t", "z"} for name in names):
        names = ["t", "z"][-lead:] if lead else []
    return names


def file_channels(choice: ImageChoice) -> list[Any] | None:
    """Which channels of their file the layers show, by index or name; None for all of them."""
    noted = [layer.metadata.get(CHANNEL_KEY) for layer in choice.layers]
    if None not in noted:
        indices = [index for index, _ in noted]
        return indices if indices != list(range(noted[0][1])) else None
    first = choice.layers[0]
    return None if first.rgb or len(choice.layers) > 1 else [first.name]
