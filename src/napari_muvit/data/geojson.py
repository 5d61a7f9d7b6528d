"""GeoJSON as QuPath reads and writes it, to polygons and back.

QuPath counts pixels from their corners: its point (0, 0) is the outer corner of the first
pixel, which is (-0.5, -0.5) in world px. Corners are written (x, y).
"""

from __future__ import annotations

import gzip
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.data.label_blocks import BlockArray
from napari_muvit.data.labels import PALETTE, ClassTable, LabelClass, read_class_table
from napari_muvit.data.outlines import Outline, trace_labels
from napari_muvit.data.rasterize import Polygon
from napari_muvit.errors import (
    InputError,
    MuvitError,
    MuvitWarning,
    SourceError,
    SourceNotFoundError,
)
from napari_muvit.geometry import FloatArray

HALF_PIXEL = 0.5


def read_geojson(
    path: str | os.PathLike[str], classes: ClassTable, *, add_classes: bool = True,
    default: int | None = None,
) -> tuple[list[Polygon], ClassTable]:
    """Polygons of a GeoJSON file, and the class table with the classes that it adds.

    Parameters
    ----------
    path
        ``.geojson`` or ``.json``, also gzipped: a FeatureCollection, a list of features, or one.
    classes
        Classes are matched by name, without regard to case.
    add_classes
        Whether classes of the file that the table lacks are added, with the file's colours;
        otherwise they are an error.
    default
        Label of objects without a class; they are left out, with a warning, by default.

    Raises
    ------
    SourceError
        If the file is no GeoJSON, or names classes that the table lacks.
    """
    features = _read_features(Path(path))
    reader = _Reader(classes, add_classes, default, str(path))
    polygons: list[Polygon] = []
    for number, feature in enumerate(features):
        try:
            polygons.extend(reader.polygons(feature))
        except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
            if isinstance(error, MuvitError):
                raise
            raise SourceError(
                f"object {number} of {path} cannot be read ({error}); areas are rings of at least "
                "three [x, y] with a class of name and colour. Export them again.",
                source=str(path),
            ) from None
    reader.warn()
    return polygons, reader.table()


def _read_features(path: Path) -> list[Mapping[str, Any]]:
    if not path.is_file():
        raise SourceNotFoundError(f"{path} does not exist. Name a GeoJSON file.", source=str(path))
    data = path.read_bytes()
    try:
        text = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        content = json.loads(text.decode("utf-8-sig"))
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise SourceError(
            f"{path} cannot be read as GeoJSON ({error}). Export it again, from QuPath with "
            "File > Export objects as GeoJSON.", source=str(path),
        ) from None
    if isinstance(content, Mapping) and content.get("type") == "FeatureCollection":
        content = content.get("features")
    features = content if isinstance(content, list) else [content]
    if not all(isinstance(feature, Mapping) for feature in features):
        raise SourceError(
            f"{path} holds no GeoJSON features. Export objects as a FeatureCollection.",
            source=str(path),
        )
    return features


class _Reader:
    """Turns features into polygons and collects the classes they name."""

    def __init__(
        self, classes: ClassTable, add_classes: bool, default: int | None, path: str
    ) -> None:
        self._classes, self._added = classes, dict[str, LabelClass]()
        self._by_name = {item.name.casefold(): item.value for item in classes.classes}
        self._may_add, self._default, self._path = add_classes, default, path
        self._skipped: dict[str, int] = {}

    def polygons(self, feature: Mapping[str, Any]) -> Iterator[Polygon]:
        """The polygons of one feature; none for points and lines."""
        is_bare = "coordinates" in feature or "geometries" in feature
        geometry = feature if is_bare else feature.get("geometry")
        if not isinstance(geometry, Mapping):
            self._skip("objects without geometry")
            return
        value = self._value(feature.get("properties"))
        if value is None:
            self._skip("objects without a class")
            return
        yield from self._geometry(geometry, value)

    def _geometry(self, geometry: Mapping[str, Any], value: int) -> Iterator[Polygon]:
        kind = geometry.get("type")
        parts: Any = geometry.get("coordinates")
        if kind == "GeometryCollection":
            for inner in geometry.get("geometries") or []:
                yield from self._geometry(inner, value)
            return
        if kind not in ("Polygon", "MultiPolygon"):
            self._skip(f"objects of type {kind}")
            return
        plane = geometry.get("plane")
        z = int(plane.get("z", 0)) if isinstance(plane, Mapping) else 0
        for part in [parts] if kind == "Polygon" else parts:
            rings = tuple(_world_ring(ring) for ring in part)
            if rings:
                yield Polygon(rings, value, z)

    def _value(self, properties: Any) -> int | None:
        found = properties.get("classification") if isinstance(properties, Mapping) else None
        name = _class_name(found)
        if name is None:
            return self._default
        key = name.casefold()
        if key not in self._by_name:
            if not self._may_add:
                known = ", ".join(item.name for item in self._classes.classes)
                raise SourceError(
                    f"{self._path} has the class {name!r}; the store has {known}. Rename it, or "
                    "add the class first.", source=self._path,
                )
            self._add(name, key, found)
        return self._by_name[key]

    def _add(self, name: str, key: str, found: Any) -> None:
        used = {*self._by_name.values(), self._classes.unlabelled, 0}
        value = next((v for v in range(1, 256) if v not in used), None)
        if value is None:
            raise InputError(
                f"{self._path} has more classes than the 255 that a store holds. Merge some."
            )
        self._added[key] = LabelClass(value, name, _color(found) or PALETTE[value % len(PALETTE)])
        self._by_name[key] = value

    def _skip(self, what: str) -> None:
        self._skipped[what] = self._skipped.get(what, 0) + 1

    def warn(self) -> None:
        """Say once what was left out."""
        if self._skipped:
            what = ", ".join(f"{number} {name}" for name, number in self._skipped.items())
            warnings.warn(
                f"{self._path}: left out {what}; only areas with a class are painted.",
                MuvitWarning, stacklevel=3,
            )

    def table(self) -> ClassTable:
        """The given table with the added classes behind."""
        known = self._classes
        return ClassTable(
            (*known.classes, *self._added.values()), known.unlabelled, known.background
        )


def _class_name(classification: Any) -> str | None:
    """Name of a QuPath class: a string, ``name``, or the parts in ``names``."""
    if isinstance(classification, str):
        return classification or None
    if not isinstance(classification, Mapping):
        return None
    names = classification.get("names")
    if isinstance(names, list) and names:
        return ": ".join(str(name) for name in names)
    name = classification.get("name")
    return str(name) if name else None


def _color(classification: Any) -> str | None:
    """Colour of a QuPath class: ``color`` [r, g, b], or the older packed ``colorRGB``."""
    if not isinstance(classification, Mapping):
        return None
    parts, packed = classification.get("color"), classification.get("colorRGB")
    if isinstance(parts, list) and len(parts) >= 3:
        return "#" + "".join(f"{int(part) & 255:02x}" for part in parts[:3])
    # Java packs ARGB into a signed integer.
    return f"#{packed & 0xFFFFFF:06x}" if isinstance(packed, int) else None


def _world_ring(ring: Any) -> NDArray[np.float64]:
    corners = np.asarray([point[:2] for point in ring], np.float64)
    if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3:
        raise ValueError(f"a ring has shape {corners.shape}")
    if not np.isfinite(corners).all():
        raise ValueError("a ring has corners that are not finite")
    if (corners[0] == corners[-1]).all():
        corners = corners[:-1]
    return corners[:, ::-1] - HALF_PIXEL


def export_geojson(
    labels: Any, path: str | os.PathLike[str], classes: ClassTable | None = None, *,
    level: int = 1, plane: int | None = None,
) -> int:
    """Write the outlines of a whole label image for QuPath; returns how many.

    Those of a prediction are in full-resolution pixels of the image that was predicted, at
    whatever level its model gives labels, and without its background.

    Parameters
    ----------
    labels
        An annotation store, or a label `Pyramid` (a prediction).
    classes
        Names and colours; those of the labels by default.
    level
        Downsampling factor at which borders are followed; 1 is exact. Of a `Pyramid`, the
        array that has it.
    plane
        Index along z, needed for volumes.

    Raises
    ------
    InputError
        If there is no such level or plane.
    """
    view = _view_of(labels, level, plane)
    table = classes or view.classes or ClassTable(())
    outlines = trace_labels(view.labels, view.values, level=view.size, corner=view.corner)
    return write_geojson(path, outlines, table, plane=plane)


@dataclass(frozen=True)
class _View:
    """One plane of labels at one level, and what tracing it needs to know.

    Attributes
    ----------
    classes, values
        Those that the labels bring, and the labels to trace; None where all are.
    size, corner
        Of a pixel, and the lower outer edge, (y, x) each, world px.
    """

    labels: BlockArray
    classes: ClassTable | None
    values: tuple[int, ...] | None
    size: FloatArray
    corner: FloatArray


def _view_of(labels: Any, level: int, plane: int | None) -> _View:
    """One plane of a store or pyramid at a level."""
    values = None
    if hasattr(labels, "class_counts"):
        shape, read = labels.arrays.level_shape(level), partial(labels.read, level)
        dtype, classes = labels.arrays.dtype, labels.classes
        size, corner = np.full(2, float(level)), np.full(2, -0.5)
    else:
        index = _array_of(labels, level)
        shape, read = labels.shapes[index], partial(labels.read, index)
        dtype, classes = labels.dtype, read_class_table(labels)
        size = np.asarray(labels.factors[index][-2:])
        corner = np.asarray(labels.offsets[index][-2:]) - size / 2
        grid = _image_grid(labels)
        if grid is not None:
            size, corner = size * grid[0], grid[1] + corner * grid[0]
            values = None if classes is None else tuple(
                item.value for item in classes.classes if item.value != classes.background)
    if len(shape) == 3 and plane is None:
        raise InputError("the labels are a volume; QuPath takes one plane. Pass plane.")
    lead = (plane,) if len(shape) == 3 and plane is not None else ()
    return _View(BlockArray(shape[-2:], dtype, read, lead), classes, values, size, corner)


def _image_grid(pyramid: Any) -> tuple[FloatArray, FloatArray] | None:
    """World px of the image in a pixel of its prediction, and where pixel 0 lies, (y, x) each.

    None for labels that are no prediction: those lie on their image.
    """
    muvit = (pyramid.label_metadata or {}).get("muvit")
    facts = muvit.get("prediction") if isinstance(muvit, Mapping) else None
    grid = facts.get("grid") if isinstance(facts, Mapping) else None
    if not isinstance(grid, Mapping):
        return None
    scale, offset = (np.asarray(grid[key][-2:], np.float64) for key in ("scale", "offset"))
    return scale, offset


def _array_of(pyramid: Any, level: int) -> int:
    """The array of a pyramid that has a level."""
    factors = [row[-1] for row in pyramid.factors]
    index = next((i for i, f in enumerate(factors) if abs(f - level) < 1e-6), None)
    if index is None:
        raise InputError(
            f"level is {level}; {pyramid.name!r} has the levels "
            f"{', '.join(f'{f:g}' for f in factors)}. Pass one of them."
        )
    return index


def write_geojson(
    path: str | os.PathLike[str], outlines: Iterable[Outline], classes: ClassTable,
    *, plane: int | None = None,
) -> int:
    """Write outlines as QuPath annotations, one feature each; returns how many.

    The file is written beside and renamed, one feature at a time.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    known = {item.value: item for item in classes.classes}
    number = 0
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            file.write('{"type": "FeatureCollection", "features": [')
            for number, outline in enumerate(outlines, start=1):
                file.write(",\n" if number > 1 else "\n")
                json.dump(_feature(outline, known.get(outline.value), plane), file)
            file.write("\n]}\n")
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    return number


def _feature(outline: Outline, item: LabelClass | None, plane: int | None) -> dict[str, Any]:
    name = item.name if item is not None else f"class {outline.value}"
    color = item.color if item is not None else PALETTE[outline.value % len(PALETTE)]
    geometry: dict[str, Any] = {
        "type": "Polygon", "coordinates": [_file_ring(ring) for ring in outline.rings],
    }
    if plane is not None:
        geometry["plane"] = {"c": -1, "z": plane, "t": 0}
    classification = {"name": name, "color": list(bytes.fromhex(color[1:]))}
    return {
        "type": "Feature", "geometry": geometry,
        "properties": {"objectType": "annotation", "classification": classification},
    }


def _file_ring(ring: NDArray[np.float64]) -> Sequence[Sequence[float]]:
    closed = np.concatenate([ring, ring[:1]])[:, ::-1] + HALF_PIXEL
    return [[_short(x), _short(y)] for x, y in closed.tolist()]


def _short(number: float) -> float | int:
    return int(number) if number.is_integer() else number
