"""Sections of human cortex by donor: one donor is tested, the others train and validate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from cortex_layers import DONORS, UNLABELLED, default_data
from numpy.typing import NDArray

from napari_muvit import api
from napari_muvit.data.cohort import CohortRow, write_cohort
from napari_muvit.data.normalize import NormalizationRule, measure

__all__ = ["DONORS", "UNLABELLED", "default_data", "read_labels", "read_scaled", "write_fold"]


def write_fold(folder: Path, data: Path, tested: int, count: int) -> Path:
    """The cohort CSV in which a donor, counted from 1, is tested.

    Of each other donor the last of its first `count` sections validates and the rest train.

    Raises
    ------
    SystemExit
        If the sections are not where `data` says.
    """
    if not (data / "images").is_dir():
        raise SystemExit(
            f"there are no sections at {data}. Pass --data, or set MUVIT_TEST_DATA to the folder "
            "that holds segmentation/human_cortex_layers.")
    rows = []
    for number, sections in enumerate(DONORS, 1):
        for place, name in enumerate(sections[:count], 1):
            split = "test" if number == tested else "val" if place == count else "train"
            paths = [str((data / kind / f"{name}.png").absolute()) for kind in ("images", "labels")]
            rows.append(CohortRow(*paths, split, f"donor {number}"))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"donor{tested}.csv"
    write_cohort(path, rows)
    return path


def read_scaled(source: str) -> NDArray[np.float32]:
    """All of an image (C, H, W), by the normalisation that every run has by default."""
    pyramid = api.open_pyramid(source)
    image = pyramid.read(0, (0, 0), pyramid.spatial_shape)
    return np.asarray(measure(NormalizationRule(), pyramid).apply(image), np.float32)


def read_labels(row: CohortRow) -> NDArray[Any]:
    """Label values (H, W) of a section."""
    pyramid = api.open_pyramid(str(row.labels))
    return np.asarray(pyramid.read(0, (0, 0), pyramid.spatial_shape))[0]
