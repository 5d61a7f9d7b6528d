"""New annotation stores and their metadata: class table, image, and where windows were."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_muvit.data.annotation_place import annotated_part, check_writable
from napari_muvit.data.label_arrays import store_levels
from napari_muvit.data.labels import ClassTable, make_classes
from napari_muvit.errors import InputError, SourceError, SourceNotFoundError

if TYPE_CHECKING:
    from napari_muvit.data.pyramid import Pyramid

UNLABELLED = 0
CHUNK = 512


def default_class_table() -> ClassTable:
    """The classes of a new store: background and one more, to be renamed."""
    return ClassTable(make_classes((1, 2), background=1), unlabelled=UNLABELLED, background=1)


def create_annotations(
    path: str | os.PathLike[str], pyramid: Pyramid, classes: ClassTable | None = None
) -> Path:
    """An empty annotation store for `pyramid` at `path`; complete or not there at all."""
    from napari_muvit.data.omezarr import create_pyramid

    path, part = Path(path), annotated_part(pyramid)
    table = check_class_table(classes or default_class_table())
    shape = tuple(int(n) for n in pyramid.spatial_shape)
    axes = str(pyramid.axes)[-len(shape):]
    scaled = tuple(i for i, axis in enumerate(axes) if axis in "yx")
    check_writable(path.parent)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    pixel_size = pyramid.pixel_size[0] if pyramid.pixel_size is not None else None
    # The image's own place, from its units to um, so that other viewers overlay the two.
    unit = np.divide(pixel_size or 1.0, pyramid.spacing)
    create_pyramid(
        unfinished, shape=shape, axes=axes, levels=store_levels(shape, scaled), dtype=np.uint8,
        chunk=CHUNK, pixel_size=pixel_size, translation=(unit * pyramid.origin).tolist(),
        name=path.name.removesuffix(".ome.zarr"), classes=table, overwrite=True,
    )
    edit_attributes(unfinished, {
        "image": pyramid.source, "part": part, "windows": [],
        "place": str(path.absolute()),
    }, table)
    unfinished.rename(path)
    return path


def check_class_table(table: ClassTable) -> ClassTable:
    """The table as an annotation store keeps it, with 0 unlabelled.

    Raises
    ------
    InputError
        If 0 means something else, or a value does not fit 8 bits.
    """
    values = table.values
    if table.unlabelled not in (None, UNLABELLED) or any(not 1 <= v <= 255 for v in values):
        raise InputError(
            f"the class table has values {values} and unlabelled {table.unlabelled}; in "
            "annotations 0 is unlabelled and classes have values from 1 to 255. Renumber them."
        )
    return ClassTable(table.classes, UNLABELLED, table.background)


def read_attributes(path: Path) -> dict[str, Any]:
    """All attributes of an annotation store's group.

    Raises
    ------
    SourceError
        If `path` is not an annotation store.
    """
    import zarr

    if not (path / "zarr.json").is_file():
        raise SourceNotFoundError(
            f"{path} is not an annotation store: it holds no zarr.json. Begin one with "
            "open_annotations(image).", source=str(path),
        )
    attributes = dict(zarr.open_group(str(path), mode="r").attrs)
    if "windows" not in (attributes.get("muvit") or {}):
        raise SourceError(
            f"{path} is no annotation store of this package. Import its labels with "
            "paint_labels into one that open_annotations(image) makes.", source=str(path),
        )
    return attributes


def read_table(attributes: dict[str, Any]) -> ClassTable:
    """The class table in `attributes`; empty where there is none."""
    image_label = (attributes.get("ome") or {}).get("image-label") or {}
    table = ClassTable.from_ngff(image_label, attributes["muvit"])
    return table if table is not None else ClassTable((), UNLABELLED, None)


def check_store(path: Path) -> None:
    """Refuse to go on where an open store was deleted or moved: missing chunks are no labels,
    and new ones would lie in a folder that is no store.

    Raises
    ------
    SourceNotFoundError
        If it is not at `path` any more.
    """
    if not (path / "zarr.json").is_file():
        raise SourceNotFoundError(f"{path} is gone. Put it back, and go on.", source=str(path))


def edit_attributes(
    path: Path, muvit: dict[str, Any], table: ClassTable | None = None
) -> dict[str, Any]:
    """Change keys of the ``muvit`` block, and the class table, in one write."""
    import zarr

    from napari_muvit.data.omezarr import image_label

    check_store(path)
    group = zarr.open_group(str(path), mode="r+")
    attributes = dict(group.attrs)
    attributes["muvit"] = {**(attributes.get("muvit") or {}), **muvit}
    if table is not None:
        attributes["muvit"]["classes"] = table.to_dict()
        ome = dict(attributes["ome"])
        ome["image-label"] = {**(ome.get("image-label") or {}), **image_label(table)}
        attributes["ome"] = ome
    group.attrs.put(attributes)
    return attributes
