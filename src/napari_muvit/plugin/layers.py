"""napari layers as pyramids, and where their pixels lie in the viewer.

The only place that knows what napari calls world. Here that is ``viewer_*``: the coordinates
of the canvas and of the cursor, in the layer's units. World px (full-resolution pixels, see
``geometry``) are the data coordinates of a layer's first array. Axis letter: A spatial axes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from napari_muvit.errors import InputError, MuvitError, SourceError
from napari_muvit.geometry import FloatArray

SOURCE_KEY = "muvit_source"
"""Key of a layer's metadata under which this plugin's readers note the path."""

NUM_AXES = 2
"""Spatial axes of what the widgets work on: a plane of the image, (y, x)."""


@dataclass(frozen=True)
class ViewerTransform:
    """Affine map from world px to viewer coordinates.

    Attributes
    ----------
    matrix
        (A+1, A+1) float64, homogeneous, world px to viewer.
    units
        Unit of each viewer axis as napari names it, ``"pixel"`` where unknown.
    """

    matrix: FloatArray
    units: tuple[str, ...]

    @property
    def num_axes(self) -> int:
        return len(self.units)

    def to_viewer(self, world: ArrayLike) -> FloatArray:
        """Viewer coordinates, (..., A), of world px (..., A)."""
        return _apply(self.matrix, world)

    def to_world(self, viewer_position: ArrayLike) -> FloatArray:
        """World px, (..., A), of viewer coordinates; leading axes beyond A are left out."""
        position = np.asarray(viewer_position, np.float64)[..., -self.num_axes :]
        return _apply(np.linalg.inv(self.matrix), position)

    @property
    def viewer_per_px(self) -> FloatArray:
        """Length of one world pixel along each axis in viewer units, (A,)."""
        lengths: FloatArray = np.linalg.norm(self.matrix[:-1, :-1], axis=0)
        return lengths

    @property
    def pixel_size_um(self) -> tuple[float, ...] | None:
        """Full-resolution pixel size in um, or None where the layer has no unit of length."""
        factors = [_micrometres(unit) for unit in self.units]
        if None in factors:
            return None
        sizes = zip(self.viewer_per_px, factors, strict=True)
        return tuple(float(size) * float(factor) for size, factor in sizes)  # type: ignore[arg-type]

    def layer_kwargs(self, factor: float = 1.0, offset: float = 0.0) -> dict[str, Any]:
        """Arguments that put a new layer on the image.

        Parameters
        ----------
        factor
            World px for one pixel of the new layer.
        offset
            World position of the centre of its pixel 0.
        """
        return {
            "scale": [factor] * self.num_axes,
            "translate": [offset] * self.num_axes,
            "affine": self.matrix,
            "units": self.units,
        }


def _apply(matrix: Any, points: ArrayLike) -> FloatArray:
    points = np.asarray(points, np.float64)
    mapped: FloatArray = points @ matrix[:-1, :-1].T + matrix[:-1, -1]
    return mapped


def _micrometres(unit: str) -> float | None:
    """Micrometres in one `unit`, or None for pixels and anything that is no length."""
    import pint

    if unit in {"pixel", "pixels", "px", ""}:
        return None
    quantity: Any = pint.get_application_registry()(unit)  # type: ignore[no-untyped-call]
    if not quantity.check("[length]"):
        return None
    return float(quantity.to("micrometer").magnitude)


def viewer_transform(layer: Any, num_axes: int = NUM_AXES) -> ViewerTransform:
    """Where the pixels of `layer` lie in the viewer, for its last `num_axes` axes.

    Raises
    ------
    InputError
        If the layer is sheared, or its planes are tilted against the axes before them.
    """
    ndim = layer.ndim
    origin = np.asarray(layer.data_to_world(np.zeros(ndim)), np.float64)
    columns = [np.asarray(layer.data_to_world(unit)) - origin for unit in np.eye(ndim)]
    linear = np.stack(columns, axis=1)
    lead = ndim - num_axes
    plane = linear[lead:, lead:]
    coupling = np.concatenate([linear[:lead, lead:].ravel(), linear[lead:, :lead].ravel()])
    tilt = np.abs(coupling).max(initial=0) / np.abs(linear).max()
    shear = np.abs(_cosines(plane) - np.eye(num_axes)).max()
    if tilt > 1e-6 or shear > 1e-4:
        raise InputError(
            f"layer {layer.name!r} is sheared or tilted, so that its pixels are no upright "
            "rectangles; boxes and predictions need them to be. Remove the shear from its affine."
        )
    matrix = np.eye(num_axes + 1)
    matrix[:-1, :-1] = plane
    matrix[:-1, -1] = origin[lead:]
    return ViewerTransform(matrix, tuple(str(unit) for unit in layer.units[lead:]))


def _cosines(linear: FloatArray) -> FloatArray:
    unit = linear / np.linalg.norm(linear, axis=0)
    cosines: FloatArray = unit.T @ unit
    return cosines


@dataclass(frozen=True)
class ImageChoice:
    """One image in the viewer: a layer, or several layers that are its channels."""

    name: str
    layers: tuple[Any, ...]

    @property
    def path(self) -> str | None:
        """File or URL that the layers were read from."""
        return source_path(self.layers[0])


def source_path(layer: Any) -> str | None:
    """File or URL that `layer` shows, None for layers made in memory."""
    path = layer.metadata.get(SOURCE_KEY) or layer.source.path
    return None if path is None else str(path)


def image_choices(layers: Iterable[Any]) -> list[ImageChoice]:
    """The images among `layers`, newest last; channels of one file come as one choice.

    Layers are channels of one image when they were read from the same path and agree in
    shape and place. Each channel alone follows its image.
    """
    from napari.layers import Image

    images = [layer for layer in layers if isinstance(layer, Image)]
    groups: dict[Any, list[Any]] = {}
    for layer in images:
        path = source_path(layer)
        key = id(layer) if path is None or layer.rgb else (path, _shape(layer), _place(layer))
        groups.setdefault(key, []).append(layer)
    choices: list[ImageChoice] = []
    for members in groups.values():
        if len(members) > 1:
            name = f"{_group_name(members)} ({len(members)} channels)"
            choices.append(ImageChoice(name, tuple(members)))
        choices += [ImageChoice(member.name, (member,)) for member in members]
    return choices


def _shape(layer: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in layer.level_shapes[0]) if layer.multiscale else layer.data.shape


def _place(layer: Any) -> tuple[float, ...]:
    corner = layer.data_to_world(np.zeros(layer.ndim))
    end = layer.data_to_world(np.ones(layer.ndim))
    return tuple(round(float(value), 9) for value in (*corner, *end))


def _group_name(members: Sequence[Any]) -> str:
    from pathlib import PurePath

    return PurePath(str(source_path(members[0]))).name


@dataclass(frozen=True)
class ChannelDisplay:
    """How the viewer shows one channel: contrast limits and the colour of its upper end."""

    limits: tuple[float, float]
    color: tuple[float, float, float]


@dataclass(frozen=True)
class ResolvedImage:
    """An image layer as the engine sees it.

    Attributes
    ----------
    pyramid
        What ``api.open_pyramid`` or ``api.pyramid_from_arrays`` gave.
    transform
        World px to viewer coordinates.
    display
        One entry per channel; empty for RGB.
    path
        What reopens the image from a script, None for images in memory.
    plane
        Index along each axis before the plane, by axis name.
    """

    name: str
    pyramid: Any
    transform: ViewerTransform
    display: tuple[ChannelDisplay, ...]
    path: str | None
    plane: dict[str, int] = field(default_factory=dict)


def resolve_image(choice: ImageChoice, backend: Any, viewer_point: ArrayLike) -> ResolvedImage:
    """The pyramid behind `choice`, from its file where possible, else from its arrays.

    Parameters
    ----------
    backend
        Has ``open_pyramid`` and ``pyramid_from_arrays`` as in ``napari_muvit.api``.
    viewer_point
        Where the sliders stand, viewer coordinates; chooses the plane of a volume or series.

    Raises
    ------
    MuvitError
        If the layer cannot be used, with the reason and what to do.
    """
    first = choice.layers[0]
    if first.ndim < NUM_AXES:
        raise InputError(f"layer {first.name!r} has {first.ndim} axis; an image needs y and x.")
    transform = viewer_transform(first)
    plane = plane_index(first, viewer_point)
    pyramid, path = _reopen(choice, backend, plane), choice.path
    if pyramid is None:
        path = None
        pyramid = _from_arrays(choice, backend, plane, transform)
    display = () if first.rgb else tuple(_display(layer) for layer in choice.layers)
    return ResolvedImage(choice.name, pyramid, transform, display, path, plane)


def plane_index(layer: Any, viewer_point: ArrayLike) -> dict[str, int]:
    """Index of the shown plane along each axis before (y, x), by axis name.

    Axes without names are taken as z, or (t, z): what napari's sliders usually are.
    """
    lead = layer.ndim - NUM_AXES
    point = np.asarray(viewer_point, np.float64)
    missing = layer.ndim - len(point)
    point = np.concatenate([np.zeros(max(0, missing)), point])
    index = np.round(layer.world_to_data(point)[:lead]).astype(int)
    top = np.asarray(_shape(layer)[:lead]) - 1
    names = [label.lower() for label in layer.axis_labels[:lead]]
    if not all(name in {"t", "z"} for name in names):
        names = ["t", "z"][-lead:] if lead else []
    if len(names) < lead:
        raise InputError(
            f"layer {layer.name!r} has {layer.ndim} axes; an image may have t, z, y and x. "
            "Split its channels into layers first (right click, Split Stack)."
        )
    return {name: int(i) for name, i in zip(names, np.clip(index, 0, top), strict=True)}


def _reopen(choice: ImageChoice, backend: Any, plane: dict[str, int]) -> Any:
    """The pyramid read from the layers' own file; None where it shows something else."""
    path = choice.path
    if path is None:
        return None
    first = choice.layers[0]
    channels = None if first.rgb or len(choice.layers) > 1 else [first.name]
    for arguments in ({"channels": channels, **plane}, plane):
        try:
            pyramid = backend.open_pyramid(path, **arguments)
        except (MuvitError, OSError, ValueError):
            # The file may be gone, or a reader may have made the layer from a part of it:
            # then the layer's own arrays are the image.
            continue
        if _agrees(pyramid, choice):
            return pyramid
    return None


def _agrees(pyramid: Any, choice: ImageChoice) -> bool:
    first = choice.layers[0]
    channels = 3 if first.rgb else len(choice.layers)
    shape = _shape(first)[: first.ndim][-NUM_AXES:]
    same_type = np.dtype(pyramid.dtype) == np.dtype(first.dtype)
    fits = tuple(pyramid.spatial_shape) == tuple(shape) and pyramid.shape[0] == channels
    return bool(fits and same_type)


def _from_arrays(
    choice: ImageChoice, backend: Any, plane: dict[str, int], transform: ViewerTransform
) -> Any:
    stacks = [_planes(layer, plane) for layer in choice.layers]
    if any(len(stack) != len(stacks[0]) for stack in stacks):
        raise SourceError(f"the channels of {choice.name!r} have different numbers of levels.")
    first = choice.layers[0]
    if len(stacks) == 1:
        arrays: list[Any] = stacks[0]
        axes = "yxc" if first.rgb else "yx"
    else:
        arrays = [ChannelStack(list(members)) for members in zip(*stacks, strict=True)]
        axes = "cyx"
    names = None if first.rgb else [layer.name for layer in choice.layers]
    return backend.pyramid_from_arrays(
        arrays, axes=axes, pixel_size=transform.pixel_size_um, channel_names=names,
        name=choice.name,
    )


def _planes(layer: Any, plane: dict[str, int]) -> list[Any]:
    arrays = list(layer.data) if layer.multiscale else [layer.data]
    if not plane:
        return arrays
    lead = tuple(plane.values())
    top = _shape(layer)
    return [PlaneView(array, _scaled(lead, array.shape, top)) for array in arrays]


def _scaled(index: tuple[int, ...], shape: Sequence[int], top: Sequence[int]) -> tuple[int, ...]:
    """The plane's index in an array whose leading axes may be downsampled too."""
    return tuple(min(i * shape[a] // top[a], shape[a] - 1) for a, i in enumerate(index))


class PlaneView:
    """One plane of an array that is only read where it is asked for."""

    def __init__(self, array: Any, index: tuple[int, ...]) -> None:
        self.array, self.index = array, index
        self.shape = tuple(array.shape[len(index) :])
        self.dtype = np.dtype(array.dtype)
        self.ndim = len(self.shape)

    def __getitem__(self, key: Any) -> np.ndarray[Any, Any]:
        key = key if isinstance(key, tuple) else (key,)
        return np.asarray(self.array[(*self.index, *key)])


class ChannelStack:
    """Several (y, x) arrays as one (c, y, x) array that is only read where it is asked for."""

    def __init__(self, members: list[Any]) -> None:
        self.members = members
        self.shape = (len(members), *members[0].shape)
        self.dtype = np.dtype(members[0].dtype)
        self.ndim = len(self.shape)

    def __getitem__(self, key: Any) -> np.ndarray[Any, Any]:
        key = key if isinstance(key, tuple) else (key,)
        rest = key[1:]
        if isinstance(key[0], slice):
            return np.stack([np.asarray(member[rest]) for member in self.members[key[0]]])
        return np.asarray(self.members[key[0]][rest])


def _display(layer: Any) -> ChannelDisplay:
    low, high = layer.contrast_limits
    red, green, blue = np.asarray(layer.colormap.colors)[-1][:3]
    return ChannelDisplay((float(low), float(high)), (float(red), float(green), float(blue)))


def visible_box(layer: Any, transform: ViewerTransform) -> FloatArray | None:
    """World px box, (2, A), of the part of `layer` that the canvas shows; None if nothing."""
    corners = np.asarray(layer.corner_pixels, np.float64)[:, -NUM_AXES:]
    factor = 1.0
    if layer.multiscale:
        factors = np.asarray(layer.downsample_factors)[layer.data_level]
        factor = factors[-NUM_AXES:]
    box = np.stack([corners[0] * factor - 0.5, (corners[1] + 1) * factor - 0.5])
    shape = np.asarray(_shape(layer)[: layer.ndim][-NUM_AXES:], np.float64)
    box = np.clip(box, -0.5, shape - 0.5)
    return None if np.any(box[1] <= box[0]) else box

