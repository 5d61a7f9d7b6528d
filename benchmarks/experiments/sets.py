"""The images of a table as a cohort CSV: sets made by code, once, and real sections by donor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from experiments.sections import DONORS, UNLABELLED, default_data, write_fold
from napari_muvit.data.cohort import CohortRow, read_cohort
from napari_muvit.data.rings import write_rings

Maker = Callable[[Path, dict[str, int], int, tuple[int, ...]], Path]


def _landmarks(folder: Path, counts: dict[str, int], size: int, levels: tuple[int, ...]) -> Path:
    from napari_muvit.data.landmarks import write_landmarks

    return write_landmarks(folder, counts, size=size, levels=levels)


def _rings(folder: Path, counts: dict[str, int], size: int, levels: tuple[int, ...]) -> Path:
    return write_rings(folder, counts, size=size, levels=levels)


def _cortex(tested: int) -> Maker:
    """Sections of human cortex, of which those of donor `tested` (from 1) are for the test."""

    def make(folder: Path, counts: dict[str, int], size: int, levels: tuple[int, ...]) -> Path:
        return write_fold(folder, default_data(), tested, max(map(len, DONORS)))

    return make


CORTEX = {f"cortex_donor{number}": number for number in range(1, len(DONORS) + 1)}
"""Tasks on sections of human cortex, and the donor whose sections are the test images."""

TASKS: dict[str, Maker] = {
    "rings": _rings, "landmarks": _landmarks,
    **{task: _cortex(number) for task, number in CORTEX.items()},
}


def unlabelled_of(task: str) -> int | None:
    """Label value that means unlabelled; None where everything is labelled."""
    return UNLABELLED if task in CORTEX else None


def make_set(
    task: str, folder: Path, counts: dict[str, int], size: int, levels: tuple[int, ...]
) -> Path:
    """The cohort CSV of a set; images that are there already are kept."""
    return TASKS[task](folder, counts, size, levels)


def rows_of(cohort: Path, split: str) -> list[CohortRow]:
    """Images and labels of one split."""
    return [row for row in read_cohort(cohort) if row.split == split]
