"""Stage 6 of 7: an image with more axes than the model reads becomes one image per plane.

A 2D model predicts every plane of a volume and every time point; a 3D model every time point.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from napari_muvit.errors import InputError

if TYPE_CHECKING:
    from napari_muvit.data.pyramid import Pyramid


@dataclass(frozen=True)
class Planes:
    """Images of equal shape and where they stand.

    Attributes
    ----------
    axes
        Letters of the axes that planes stand along, a part of ``"tz"``.
    shape
        Number of planes along each of them.
    pyramids
        One for each plane, in raster order.
    whole
        The image with all its spatial axes.
    """

    axes: str
    shape: tuple[int, ...]
    pyramids: tuple[Pyramid, ...]
    whole: Pyramid

    @property
    def indices(self) -> list[tuple[int, ...]]:
        """Place of each plane."""
        return list(itertools.product(*(range(n) for n in self.shape)))


def open_planes(
    source: Any, ndim: int, *, channels: Any = None, t: int | None = None, z: int | None = None,
    image: str | int | None = None,
) -> Planes:
    """The images of `ndim` spatial axes that `source` consists of.

    Parameters
    ----------
    t, z
        One time point or plane; all of them by default. Of a pyramid, which is open already, a
        plane can be chosen and nothing else.

    Raises
    ------
    InputError
        If the source has fewer spatial axes than the model reads, or not what is chosen.
    """
    from napari_muvit.data.pyramid import Pyramid, open_pyramid
    from napari_muvit.data.selection import parse_index

    def opened(t: int | None, z: int | None) -> Pyramid:
        return open_pyramid(source, channels=channels, t=t, z=z, image=image)

    if isinstance(source, Pyramid):
        if z is None or ndim != 2 or source.axes != "czyx":
            return _planes_of(opened(t, z), ndim)
        plane = opened(t, None).plane(parse_index("z", z, source.spatial_shape[0]))
        return Planes("", (), (plane,), plane)
    first = opened(t, z)
    is_volume = first.ndim == 3 and ndim == 2
    _check_axes(opened(t, 0) if is_volume else first, ndim)
    along = {"t": 1 if t is not None else first.num_times,
             "z": first.spatial_shape[0] if is_volume else 1}
    axes = "".join(letter for letter, count in along.items() if count > 1)
    shape = tuple(along[letter] for letter in axes)
    if not axes:
        plane = opened(t, 0) if first.ndim > ndim else first
        return Planes("", (), (plane,), plane)
    places = (
        dict(zip(axes, index, strict=True)) for index in itertools.product(*map(range, shape)))
    pyramids = tuple(opened(place.get("t", t), place.get("z", z)) for place in places)
    return Planes(axes, shape, pyramids, first)


def _planes_of(pyramid: Pyramid, ndim: int) -> Planes:
    """The planes of an image that is open already."""
    if pyramid.axes == "czyx" and ndim == 2:
        depth = pyramid.spatial_shape[0]
        return Planes("z", (depth,), tuple(map(pyramid.plane, range(depth))), pyramid)
    _check_axes(pyramid, ndim)
    return Planes("", (), (pyramid,), pyramid)


def _check_axes(pyramid: Pyramid, ndim: int) -> None:
    if pyramid.ndim != ndim:
        raise InputError(
            f"image {pyramid.name!r} has {pyramid.ndim} spatial axes and the model reads {ndim}. "
            "Choose planes that fit it with t and z, or another model."
        )
