"""The demo's image and labels: written once as OME-Zarr, as a user's own would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.demo.stains import CLASSES, REST, stain_labels

TRAIN_COLUMNS = 320
"""Columns of the demo image whose labels train; the rest is held out for the scores."""


def write_image(folder: Path) -> tuple[Path, NDArray[np.uint8]]:
    """Write the immunohistochemistry image of scikit-image as a pyramid; its path and pixels."""
    from skimage.data import immunohistochemistry

    from napari_muvit import api

    rgb = immunohistochemistry()
    path = folder / "image.ome.zarr"
    source = api.pyramid_from_arrays([rgb], axes="yxc", is_rgb=True, name="immunohistochemistry")
    for _ in api.convert(source, path, levels=(1, 2, 4, 8), chunk=128):
        pass
    return path, rgb


def write_labels(folder: Path, rgb: NDArray[np.uint8]) -> tuple[Path, Path, NDArray[np.uint8]]:
    """Write labels of one part for training and of the rest for scoring; paths and all labels.

    Both are full-size label images in which 0 means unlabelled.
    """
    labels = stain_labels(rgb)
    train, held_out = labels.copy(), labels.copy()
    train[:, TRAIN_COLUMNS:] = 0
    held_out[:, :TRAIN_COLUMNS] = 0
    paths = []
    for name, part in (("labels", train), ("held_out", held_out)):
        paths.append(folder / f"{name}.ome.zarr")
        write_label_image(paths[-1], part)
    return paths[0], paths[1], labels


def write_label_image(path: Path, labels: NDArray[np.uint8]) -> None:
    """Write `labels` (Y, X) with the demo's class table."""
    from napari_muvit import api

    source = api.pyramid_from_arrays([labels], axes="yx", is_labels=True, name=path.stem[:-4])
    for _ in api.convert(source, path, levels=(1, 2, 4, 8), chunk=128, classes=class_table()):
        pass


def class_table() -> Any:
    """The classes of the demo: rest is background, 0 is unlabelled."""
    from napari_muvit import api

    classes = tuple(api.LabelClass(*c) for c in CLASSES)
    return api.ClassTable(classes, unlabelled=0, background=REST)
