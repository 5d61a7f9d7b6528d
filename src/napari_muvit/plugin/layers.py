"""napari layers as pyramids, and where their pixels lie in the viewer.

Here is what maps to and from what napari calls world. That is ``viewer_*``: the coordinates
of the canvas and of the cursor, in the layer's units. World px (full-resolution pixels, see
``geometry``) are the data coordinates of a layer's first array. Axis letter: A spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from napari_muvit.errors import InputError, MuvitError
from napari_muvit.geometry import FloatArray
from napari_muvit.plugin.image_choices import NUM_AXES, ImageChoice, file_channels, lead_names
from napari_muvit.plugin.layer_arrays import open_arrays, shape_of
from napari_muvit.plugin.stored_images import stored_copy


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

    def layer_kwargs(self, factor: ArrayLike = 1.0, offset: ArrayLike = 0.0) -> dict[str, Any]:
        """Arguments that put a new layer on the image.

        Parameters
        ----------
        factor
            World px for one pixel of the new layer, one number or (A,).
        offset
            World position of the centre of its pixel 0, one number or (A,).
        """
        return {
            "scale": np.broadcast_to(np.asarray(factor, np.float64), self.num_axes).tolist(),
            "translate": np.broadcast_to(np.asarray(offset, np.float64), self.num_axes).tolist(),
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


def viewer_place(layer: Any, point: ArrayLike, viewer_point: Sequence[float] = ()) -> FloatArray:
    """Viewer coordinates of a layer's data point, with the sliders' for axes it lacks."""
    place = np.asarray(layer.data_to_world(point), np.float64)
    missing = max(0, len(viewer_point) - len(place))
    full: FloatArray = np.concatenate([np.asarray(viewer_point, np.float64)[:missing], place])
    return full


def _cosines(linear: FloatArray) -> FloatArray:
    unit = linear / np.linalg.norm(linear, axis=0)
    cosines: FloatArray = unit.T @ unit
    return cosines


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
        Index along each axis before the pyramid's, by axis name.
    identity
        Digest of the pixels, for images in memory.
    key
        What choices for this image are remembered under.
    """

    name: str
    pyramid: Any
    transform: ViewerTransform
    display: tuple[ChannelDisplay, ...]
    path: str | None
    plane: dict[str, int] = field(default_factory=dict)
    identity: str = ""

    @property
    def key(self) -> str:
        return self.identity or str(self.path)


def resolve_image(
    choice: ImageChoice, backend: Any, viewer_point: ArrayLike, num_axes: int = NUM_AXES
) -> ResolvedImage:
    """The pyramid behind `choice`, from its file where possible, else from its arrays.

    Parameters
    ----------
    backend
        Has ``open_pyramid`` and ``pyramid_from_arrays`` as in ``napari_muvit.api``.
    viewer_point
        Where the sliders stand, viewer coordinates; chooses the plane of a volume or series.
    num_axes
        2 for the plane that is shown, 3 for the whole volume.

    Raises
    ------
    MuvitError
        If the layer cannot be used, with the reason and what to do.
    """
    first = choice.layers[0]
    if first.ndim < num_axes:
        raise InputError(f"layer {first.name!r} has {first.ndim} axes; {num_axes} are needed.")
    transform = viewer_transform(first, num_axes)
    plane = plane_index(first, viewer_point, num_axes)
    path = choice.path
    identity = choice.identity if path is None else ""
    if path is None:
        path = stored_copy(choice.name, identity, plane.get("t"))
    pyramid = _reopen(choice, path, backend, plane, num_axes)
    if pyramid is None:
        path, identity = None, choice.identity
        pyramid = open_arrays(choice, backend, plane, transform)
    display = () if first.rgb else tuple(_display(layer) for layer in choice.layers)
    return ResolvedImage(choice.name, pyramid, transform, display, path, plane, identity)


def plane_index(
    layer: Any, viewer_point: ArrayLike, num_axes: int = NUM_AXES
) -> dict[str, int]:
    """Index of what is shown along each axis before the last `num_axes`, by axis name.

    Axes without names are taken as z, or (t, z): what napari's sliders usually are.
    """
    lead = layer.ndim - num_axes
    point = np.asarray(viewer_point, np.float64)
    missing = layer.ndim - len(point)
    point = np.concatenate([np.zeros(max(0, missing)), point])
    index = np.round(layer.world_to_data(point)[:lead]).astype(int)
    top = np.asarray(shape_of(layer)[:lead]) - 1
    names = lead_names(layer)
    if len(names) < layer.ndim - NUM_AXES:
        raise InputError(
            f"layer {layer.name!r} has {layer.ndim} axes; an image may have t, z, y and x. "
            "Split its channels into layers first (right click, Split Stack)."
        )
    shown = zip(names[:lead], np.clip(index, 0, top), strict=True)
    return {name: int(i) for name, i in shown}


def _reopen(
    choice: ImageChoice, path: str | None, backend: Any, plane: dict[str, int], num_axes: int
) -> Any:
    """The pyramid read from a file of the layers; None where it shows something else."""
    if path is None:
        return None
    index = plane if choice.path is not None else {k: v for k, v in plane.items() if k != "t"}
    for arguments in ({"channels": file_channels(choice), **index}, index):
        try:
            pyramid = backend.open_pyramid(path, **arguments)
        except (MuvitError, OSError, ValueError):
            # The file may be gone, or a reader may have made the layer from a part of it:
            # then the layer's own arrays are the image.
            continue
        if _agrees(pyramid, choice, num_axes):
            return pyramid
    return None


def _agrees(pyramid: Any, choice: ImageChoice, num_axes: int) -> bool:
    first = choice.layers[0]
    channels = 3 if first.rgb else len(choice.layers)
    shape = shape_of(first)[: first.ndim][-num_axes:]
    same_type = np.dtype(pyramid.dtype) == np.dtype(first.dtype)
    fits = tuple(pyramid.spatial_shape) == tuple(shape) and pyramid.shape[0] == channels
    return bool(fits and same_type)


def _display(layer: Any) -> ChannelDisplay:
    low, high = layer.contrast_limits
    red, green, blue = np.asarray(layer.colormap.colors)[-1][:3]
    return ChannelDisplay((float(low), float(high)), (float(red), float(green), float(blue)))


def visible_box(
    layer: Any, transform: ViewerTransform, viewer_point: Sequence[float] = ()
) -> FloatArray | None:
    """World px box, (2, A), of the part of `layer` that the canvas shows; None if nothing.

    Parameters
    ----------
    transform
        Of the image; its axes are those of the box.
    viewer_point
        Where the sliders stand: an axis that is not displayed counts with its one plane.
    """
    num_axes = transform.num_axes
    corners = np.asarray(layer.corner_pixels, np.float64)[:, -num_axes:]
    factor = np.ones(num_axes)
    if layer.multiscale:
        factor = np.asarray(layer.downsample_factors)[layer.data_level][-num_axes:]
    box = np.stack([corners[0] * factor - 0.5, (corners[1] + 1) * factor - 0.5])
    if num_axes > NUM_AXES and len(viewer_point) and not corners[:, 0].any():
        # napari gives zeros for an axis that is no side of the canvas.
        shown = np.round(transform.to_world(viewer_point)[0])
        box[:, 0] = shown - 0.5, shown + 0.5
    shape = np.asarray(shape_of(layer)[: layer.ndim][-num_axes:], np.float64)
    box = np.clip(box, -0.5, shape - 0.5)
    return None if np.any(box[1] <= box[0]) else box
