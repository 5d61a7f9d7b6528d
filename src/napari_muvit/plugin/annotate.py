"""Annotating without Qt: which level fits a view, class tables to edit, shapes to polygons."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_muvit.errors import InputError
from napari_muvit.geometry import FloatArray
from napari_muvit.plugin.label_layers import TRANSPARENT, Color
from napari_muvit.plugin.layers import ResolvedImage, ViewerTransform, viewer_place, visible_box
from napari_muvit.plugin.stored_images import copies_folder, copy_path

LARGEST_WINDOW = 4096
"""Longest side of a window in pixels of its level; napari copies them on every stroke."""

ELLIPSE_CORNERS = 96
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


def window_size(box: FloatArray, level: int) -> tuple[int, ...]:
    """Pixels of `level` that cover `box` (2, A) world px, one plane of it."""
    sides = np.ceil((box[1] - box[0])[-2:] / level - 1e-9).astype(int)
    height, width = np.clip(sides, 1, LARGEST_WINDOW).tolist()
    return (*[1] * (box.shape[1] - 2), height, width)


def label_colors(table: Any) -> dict[int | None, Color]:
    """RGBA of each class for painting: background is seen too, unlabelled is not."""
    colors: dict[int | None, Color] = {None: (0.5, 0.5, 0.5, 1.0), 0: TRANSPARENT}
    for item in table.classes:
        red, green, blue = (int(item.color[i : i + 2], 16) / 255 for i in (1, 3, 5))
        colors[item.value] = (red, green, blue, 1.0)
    return colors


# -- class tables ------------------------------------------------------------------------


def add_class(table: Any, make_class: Any, taken_values: Iterable[int] = ()) -> Any:
    """`table` with one more class, with the lowest free value, a name and a colour.

    Parameters
    ----------
    taken_values
        Values that are free in the table but not in what is painted: a new class does not
        inherit the strokes of one that was removed.

    Raises
    ------
    InputError
        If no value is left.
    """
    used = {*table.values, table.unlabelled, 0, *taken_values}
    value = next((v for v in range(1, 256) if v not in used), None)
    if value is None:
        raise InputError(
            "all 255 values that a store holds are classes, or were and may still be painted. "
            "Rename a class instead."
        )
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


class ImportHistory:
    """The imports into a store since the last stroke, to undo and redo."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._done: list[int] = []
        self._undone: list[int] = []

    def add(self, edit: int) -> None:
        """Note the number of an import's edit."""
        self._done.append(edit)
        self._undone.clear()

    def forget(self) -> None:
        """A stroke came after all of them."""
        self._done.clear()
        self._undone.clear()

    def undo(self) -> bool:
        """Take the last import back; whether there was one."""
        return self._step(self._done, self._undone)

    def redo(self) -> bool:
        """Bring the last undone import back; whether there was one."""
        return self._step(self._undone, self._done)

    def _step(self, source: list[int], target: list[int]) -> bool:
        while source:
            edit = self._store.undo(source.pop())
            if edit is not None:
                target.append(edit)
                return True
        return False


# -- places of stores --------------------------------------------------------------------


def store_path(backend: Any, image: ResolvedImage, folder: str) -> Path:
    """Where the annotations of `image` lie: beside it, or in `folder`.

    Those of an image on the web or only in memory lie in the plugin's cache folder; the latter
    beside its copy, and they are found again by its pixels. All planes of a volume share one store.
    """
    t = image.plane.get("t")
    if image.identity:
        copy = copy_path(image.name, image.identity, t, Path(folder) if folder else None)
        return Path(backend.annotation_path(str(copy))).absolute()
    is_remote = "://" in str(image.path)
    place = folder or (copies_folder() if is_remote else None)
    return Path(backend.annotation_path(image.path, place, {"t": t})).absolute()


# -- shapes ------------------------------------------------------------------------------


def shape_polygons(
    layer: Any, transform: ViewerTransform, value: int, make_polygon: Any,
    viewer_point: Sequence[float] = (),
) -> list[Any]:
    """Areas of a Shapes layer as polygons in world px; lines as wide as they are drawn.

    Parameters
    ----------
    viewer_point
        Where the sliders stand: the plane of shapes that have no z of their own.
    """
    polygons: list[Any] = []
    for corners, kind, width in zip(
        layer.data, layer.shape_type, layer.edge_width, strict=True
    ):
        outline = np.asarray(corners, np.float64)
        for ring in shape_rings(outline[:, -2:], str(kind), float(width)):
            full = np.repeat(outline[:1], len(ring), axis=0)
            full[:, -2:] = ring
            points = [viewer_place(layer, point, viewer_point) for point in full]
            world = transform.to_world(points)
            plane = round(float(world[0, 0])) if transform.num_axes > 2 else 0
            polygons.append(make_polygon((world[:, -2:],), value, plane))
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
    """The part of a labels layer's full-resolution array at `index` of its first axes."""
    array = layer.data[0] if layer.multiscale else layer.data
    return array[tuple(index)] if index else array


def label_place(
    layer: Any, transform: ViewerTransform, viewer_point: Sequence[float] = (),
    tolerance: float = 0.02,
) -> tuple[int, FloatArray]:
    """Level and lower outer edge (A,), world px, of a labels layer on an image.

    Raises
    ------
    InputError
        If a pixel of the labels is not a whole number of image pixels.
    """
    ndim = layer.ndim
    low = transform.to_world(viewer_place(layer, np.zeros(ndim), viewer_point))
    high = transform.to_world(viewer_place(layer, np.ones(ndim), viewer_point))
    size, depth = (high - low)[-2:], (high - low)[:-2]
    level = round(float(size.mean()))
    is_thick = ndim > 2 and depth.size and np.abs(depth - 1).max() > tolerance
    if level < 1 or np.abs(size - level).max() > tolerance * level or is_thick:
        raise InputError(
            f"a pixel of {layer.name!r} is {size[0]:.3g} x {size[1]:.3g} image pixels; labels "
            "can be imported whose pixels are whole numbers of image pixels, plane by plane. Set "
            "the scale of the layer, or resample it."
        )
    half = np.array([0.5] * len(depth) + [level / 2] * 2)
    corner: FloatArray = low - half
    return level, corner


def distinct_values(array: Any, limit: int = 256, side: int = 2048) -> list[int] | None:
    """Values of a label array, block by block; None where there are more than `limit`."""
    found: set[int] = set()
    rows, columns = (range(0, n, side) for n in array.shape[-2:])
    for *plane, top, left in itertools.product(*map(range, array.shape[:-2]), rows, columns):
        cut = (*plane, slice(top, top + side), slice(left, left + side))
        block: NDArray[Any] = np.asarray(array[cut])
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
    """Middle of a remembered window, world px (A,)."""
    start, size = np.asarray(place.start), np.asarray(place.size)
    factors = np.array([1] * (len(start) - 2) + [place.level] * 2)
    middle: FloatArray = (start + size / 2) * factors - 0.5
    return middle


def window_text(place: Any) -> str:
    """A remembered window in the list."""
    height, width = (n * place.level for n in place.size[-2:])
    plane = f", plane {place.start[0]}" if len(place.start) > 2 else ""
    return f"{place.name}{plane}\nlevel {place.level}, {height:,} x {width:,} px"


def shown_box(layer: Any, transform: ViewerTransform, point: Sequence[float]) -> FloatArray | None:
    """World px box (2, A) of what the canvas shows, in the one plane that sliders stand at."""
    box = visible_box(layer, transform, point)
    if box is not None and transform.num_axes > 2:
        plane = np.round(transform.to_world(point)[0])
        box[:, 0] = plane - 0.5, plane + 0.5
    return box


def overlay(picture: ArrayLike, labels: NDArray[Any], table: Any) -> NDArray[np.uint8]:
    """A (H, W, 3) uint8 picture with labels (H, W) over it, for thumbnails."""
    result = np.asarray(picture, np.float64).copy()
    for value, color in label_colors(table).items():
        if value:
            here = labels == value
            result[here] = 0.4 * result[here] + 0.6 * 255 * np.asarray(color[:3])
    return result.astype(np.uint8)
