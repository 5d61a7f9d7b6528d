"""The sets made by code, as OME-Zarr with a cohort CSV; made once, then found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from napari_muvit.data.cohort import CohortRow, read_cohort
from napari_muvit.data.rings import write_rings


def _landmarks(folder: Path, counts: dict[str, int], size: int, levels: tuple[int, ...]) -> Path:
    from napari_muvit.data.landmarks import write_landmarks

    return write_landmarks(folder, counts, size=size, levels=levels)


def _rings(folder: Path, counts: dict[str, int], size: int, levels: tuple[int, ...]) -> Path:
    return write_rings(folder, counts, size=size, levels=levels)


TASKS: dict[str, Callable[[Path, dict[str, int], int, tuple[int, ...]], Path]] = {
    "rings": _rings, "landmarks": _landmarks,
}


def make_set(
    task: str, folder: Path, counts: dict[str, int], size: int, levels: tuple[int, ...]
) -> Path:
    """The cohort CSV of a set; images that are there already are kept."""
    return TASKS[task](folder, counts, size, levels)


def rows_of(cohort: Path, split: str) -> list[CohortRow]:
    """Images and labels of one split."""
    return [row for row in read_cohort(cohort) if row.split == split]
