"""Annotating without Qt: which level fits a view, class tables to edit, shapes to polygons."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_muvit.errors import InputError
from napari_muvit.geometry import FloatArray
from napari_muvit.plugin.label_layers import TRANSPARENT, Color
from napari_muvit.plugin.layers import ResolvedImage, ViewerTransform

LARGEST_WINDOW = 4096
"""Longest side of a window in pixels of its level; napari copies them on every stroke."""

ELLIPSE_CORNERS = 96
SUFFIX = "_annotations.ome.zarr"
PALETTE = (
    "#e41a1c", "#377eb8", "#4daf4a", "#984ea3", "#ff7f00", "#ffd92f", "#a65628", "#f781bf",
    "#1b9e77", "#66c2a5", "#8da0cb", "#d95f02",
)


def fitting_level(viewer_per_screen_px: float, viewer_per_px: float, longest: float) -> int:
    """The power of two at which one label pixel is about one screen pixel, or larger.

    Parameters
    ----------
    viewer_per_screen_px, viewer_per_px
        Viewer units of one screen pixel and of one world px.
    longest
        Longest side of the view, world px; a window has at most 4096 pixels there.
    """
    wanted = max(1.0, viewer_per_screen_px / viewer_per_px)
    level = int(2 ** np.floor(np.log2(wanted) + 1e-9))
    while longest / level > LARGEST_WINDOW:
        level *= 2
    return level


def window_size(box: FloatArray, level: int) -> tuple[int, int]:
    """Pixels of `level` that cover `box` (2, 2) world px."""
    sides = np.ceil((box[1] - box[0]) / level - 1e-9).astype(int)
    height, width = np.clip(sides, 1, LARGEST_WINDOW).tolist()
    return height, width


def label_colors(table: Any) -> dict[int | None, Color]:
    """RGBA of each class for painting: background is seen too, unlabelled is not."""
    colors: dict[int | None, Color] = {None: (0.5, 0.5, 0.5, 1.0), 0: TRANSPARENT}
    for item in table.classes:
        red, green, blue = (int(item.color[i : i + 2], 16) / 255 for i in (1, 3, 5))
        colors[item.value] = (red, green, blue, 1.0)
    return colors


# -- class tables ------------------------------------------------------------------------


def add_class(table: Any, make_class: Any) -> Any:
    """`table` with one more class, with the lowest free value, a name and a colour."""
    used = {*table.values, table.unlabelled, 0}
    value = next((v for v in range(1, 256) if v not in used), None)
    if value is None:
        raise InputError("there are 255 classes, as many as a store holds. Remove one first.")
    taken = {item.color for item in table.classes}
    color = next((c for c in PALETTE if c not in taken), PALETTE[value % len(PALETTE)])
    item = make_class(value, f"class {value}", color)
    return replace(table, classes=(*table.classes, item))


def change_class(table: Any, value: int, **changes: str) -> Any:
    """`table` with another name or color for the class `value`."""
    name = changes.get("name")
    if name is not None:
        name = changes["name"] = name.strip()
        others = {item.name for item in table.classes if item.value != value}
        if not name or name in others:
            raise InputError(f"the name {name!r} is empty or taken. Give each class its own name.")
    rows = tuple(
        replace(item, **changes) if item.value == value else item for item in table.classes
    )
    return replace(table, classes=rows)


def remove_class(table: Any, value: int) -> Any:
    """`table` without the class `value`."""
    rows = tuple(item for item in table.classes if item.value != value)
    if not rows:
        raise InputError("the last class cannot be removed. Rename it instead.")
    background = None if table.background == value else table.background
    return replace(table, classes=rows, background=background)


def class_rows(table: Any, counts: dict[int, int] | None) -> list[tuple[int, str, str, str]]:
    """Value, name, colour and share of the labelled pixels of every class."""
    counts = counts or {}
    total = sum(counts.values())
    rows = []
    for item in table.classes:
        number = counts.get(item.value, 0)
        share = f"{number / total:.1%}" if total else "–"
        rows.append((item.value, item.name, item.color, share))
    return rows


def balance_text(table: Any, counts: dict[int, int] | None) -> str:
    """A hint about classes that have too little, or nothing where there is none to give."""
    if not counts or not sum(counts.values()):
        return "Nothing is annotated yet."
    empty = [item.name for item in table.classes if not counts.get(item.value)]
    if empty:
        return f"Not annotated yet: {', '.join(empty)}."
    least, most = min(counts.values()), max(counts.values())
    if most > 50 * least:
        value = min(counts, key=lambda v: counts[v])
        name = next((item.name for item in table.classes if item.value == value), str(value))
        return f"{name} has {least / sum(counts.values()):.1%} of the annotation; paint more of it."
    return ""


# -- places of stores --------------------------------------------------------------------


def store_source(image: ResolvedImage) -> str:
    """What the store of `image` is named after; images in memory by their layer's name."""
    if image.path is not None:
        return image.path
    return re.sub(r"[^\w.-]+", "_", image.name) or "image"


def store_path(backend: Any, image: ResolvedImage, folder: str) -> Path:
    """Where the annotations of the shown plane of `image` lie.

    Raises
    ------
    InputError
        If the image has no place on disk and no folder is chosen.
    """
    if image.path is None and not folder:
        raise InputError(
            f"{image.name!r} is only in memory, so its annotations have no place beside it. "
            "Choose a folder for them."
        )
    path = Path(backend.annotation_path(store_source(image), folder or None))
    plane = "".join(f"_{axis}{index}" for axis, index in image.plane.items())
    return path.with_name(path.name.replace(SUFFIX, f"{plane}{SUFFIX}")).absolute()


# -- shapes ------------------------------------------------------------------------------


def shape_polygons(
    layer: Any, transform: ViewerTransform, value: int, make_polygon: Any
) -> list[Any]:
    """Areas of a Shapes layer as polygons in world px; lines as wide as they are drawn."""
    polygons: list[Any] = []
    for corners, kind, width in zip(
        layer.data, layer.shape_type, layer.edge_width, strict=True
    ):
        outline = np.asarray(corners, np.float64)
        for ring in shape_rings(outline[:, -2:], str(kind), float(width)):
            full = np.repeat(outline[:1], len(ring), axis=0)
            full[:, -2:] = ring
            viewer_points = np.asarray([layer.data_to_world(point) for point in full])
            polygons.append(make_polygon((transform.to_world(viewer_points),), value))
    return polygons


def shape_rings(corners: FloatArray, kind: str, width: float) -> list[FloatArray]:
    """Rings (n, 2) of one shape in its layer's own pixels."""
    if kind == "ellipse":
        centre, first, second = corners.mean(0), corners[1] - corners[0], corners[3] - corners[0]
        angle = np.linspace(0, 2 * np.pi, ELLIPSE_CORNERS, endpoint=False)[:, None]
        return [centre + np.sin(angle) * first / 2 + np.cos(angle) * second / 2]
    if kind in ("line", "path"):
        return [_wide_line(a, b, width) for a, b in itertools.pairwise(corners)]
    return [corners]


def _wide_line(begin: FloatArray, end: FloatArray, width: float) -> FloatArray:
    along = end - begin
    length = float(np.linalg.norm(along)) or 1.0
    aside = np.array([-along[1], along[0]]) / length * width / 2
    # Half a width further at both ends, so that the pieces of a path join.
    ahead = along / length * width / 2
    return np.array([begin - ahead + aside, end + ahead + aside, end + ahead - aside,
                     begin - ahead - aside])


def layer_plane(layer: Any, index: Sequence[int]) -> Any:
    """The plane (y, x) of a labels layer's full-resolution array."""
    array = layer.data[0] if layer.multiscale else layer.data
    return array[tuple(index)] if index else array


def label_place(
    layer: Any, transform: ViewerTransform, tolerance: float = 0.02
) -> tuple[int, FloatArray]:
    """Level and lower outer edge, world px, of a labels layer on an image.

    Raises
    ------
    InputError
        If a pixel of the labels is not a whole number of image pixels.
    """
    ndim = layer.ndim
    origin, one = np.zeros(ndim), np.zeros(ndim)
    one[-2:] = 1
    low = transform.to_world(layer.data_to_world(origin))
    size = transform.to_world(layer.data_to_world(one)) - low
    level = round(float(size.mean()))
    if level < 1 or np.abs(size - level).max() > tolerance * level:
        raise InputError(
            f"a pixel of {layer.name!r} is {size[0]:.3g} x {size[1]:.3g} image pixels; labels "
            "can be imported whose pixels are whole numbers of image pixels. Set the scale of "
            "the layer, or resample it."
        )
    corner: FloatArray = low - level / 2
    return level, corner


def distinct_values(array: Any, limit: int = 256, side: int = 2048) -> list[int] | None:
    """Values of a label array, block by block; None where there are more than `limit`."""
    found: set[int] = set()
    for top in range(0, array.shape[0], side):
        for left in range(0, array.shape[1], side):
            block: NDArray[Any] = np.asarray(array[top : top + side, left : left + side])
            found.update(int(v) for v in np.unique(block))
            if len(found) > limit:
                return None
    return sorted(found)


def extend_table(table: Any, values: Iterable[int], make_class: Any) -> Any:
    """`table` with a class for each of `values` that it lacks."""
    for value in values:
        if value not in (0, *table.values):
            color = PALETTE[value % len(PALETTE)]
            table = replace(
                table, classes=(*table.classes, make_class(value, f"class {value}", color))
            )
    return table


def centre_of(place: Any) -> FloatArray:
    """Middle of a remembered window, world px (y, x)."""
    start, size = np.asarray(place.start[-2:]), np.asarray(place.size[-2:])
    middle: FloatArray = (start + size / 2) * place.level - 0.5
    return middle


def window_text(place: Any) -> str:
    """A remembered window in the list."""
    height, width = (n * place.level for n in place.size[-2:])
    return f"{place.name}\nlevel {place.level}, {height:,} x {width:,} px"


def overlay(picture: ArrayLike, labels: NDArray[Any], table: Any) -> NDArray[np.uint8]:
    """A (H, W, 3) uint8 picture with labels (H, W) over it, for thumbnails."""
    result = np.asarray(picture, np.float64).copy()
    for value, color in label_colors(table).items():
        if value:
            here = labels == value
            result[here] = 0.4 * result[here] + 0.6 * 255 * np.asarray(color[:3])
    return result.astype(np.uint8)
