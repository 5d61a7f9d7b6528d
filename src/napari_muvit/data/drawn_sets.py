"""Sets of drawn images on disk: splits by seed, pairs of OME-Zarr stores, one cohort CSV."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_muvit.data.cohort import SPLITS, CohortRow, write_cohort
from napari_muvit.data.labels import ClassTable
from napari_muvit.data.omezarr import create_pyramid

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]


@dataclass(frozen=True)
class DrawnSet:
    """What a set is made of.

    Attributes
    ----------
    name
        Of the cohort CSV.
    draw
        Makes an image and its labels from a seed and a side in px.
    classes
        What the labels mean.
    counts
        Images of each split.
    size
        Side of an image, px.
    levels
        Arrays of each pyramid.
    """

    name: str
    draw: Callable[[int, int], Pair]
    classes: ClassTable
    counts: Mapping[str, int]
    size: int
    levels: tuple[int, ...]

    def write(
        self, folder: str | Path, counts: Mapping[str, int] | None = None, seed: int = 0,
        size: int | None = None, levels: Sequence[int] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Path:
        """Write images and labels as OME-Zarr, with a cohort CSV that names them all.

        Images that are there already are kept, so an interrupted call can be repeated.

        Parameters
        ----------
        counts, size, levels
            Other than the set's own: images of each split, their side in px, and the arrays of
            each pyramid.
        seed
            Of the whole set; no two images of it share theirs.
        progress
            Called with the number of images done and of all, after each.

        Returns
        -------
        Path
            Of the cohort CSV.
        """
        folder = Path(folder)
        given = self.counts if counts is None else counts
        todo = [(split, i) for split in given for i in range(given[split])]
        rows = []
        for done, (split, number) in enumerate(todo):
            name = f"{split}_{number:04d}.ome.zarr"
            paths = folder / "images" / name, folder / "labels" / name
            if not all(path.is_dir() for path in paths):
                image, labels = self.draw(split_seed(seed, split, number), size or self.size)
                write_pair(paths, image, labels, self.classes, levels or self.levels)
            rows.append(CohortRow(str(paths[0]), str(paths[1]), split))
            if progress is not None:
                progress(done + 1, len(todo))
        cohort = folder / f"{self.name}.csv"
        write_cohort(cohort, rows)
        return cohort


def split_seed(seed: int, split: str, number: int) -> int:
    """Seed of one image of a set; no two images of a set share it."""
    return (seed * len(SPLITS) + SPLITS.index(split)) * 1_000_000 + number


def write_pair(
    paths: tuple[Path, Path], image: NDArray[np.uint8], labels: NDArray[np.uint8],
    classes: ClassTable, levels: Sequence[int],
) -> None:
    """Write an image and its labels as OME-Zarr pyramids; whole, or not at all."""
    for path, pixels, table in zip(paths, (image, labels), (None, classes), strict=True):
        partial = path.with_name(f".{path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(path, ignore_errors=True)
        side = len(pixels)
        arrays = create_pyramid(
            partial, shape=pixels.shape, axes="yx", levels=levels, dtype=np.uint8,
            chunk=min(256, side), shard=side if side % 256 == 0 else None, classes=table,
            name=path.name.split(".")[0],
        )
        for level, array in zip(levels, arrays, strict=True):
            array[:] = _shrink(pixels, level, is_labels=table is not None)
        partial.rename(path)


def _shrink(pixels: NDArray[np.uint8], level: int, is_labels: bool) -> NDArray[np.uint8]:
    """Every level-th label, or the mean of blocks of level x level pixels."""
    if level == 1:
        return pixels
    if is_labels:
        return pixels[level // 2::level, level // 2::level]
    cells = -(-len(pixels) // level)
    padded = np.pad(pixels, (0, cells * level - len(pixels)), mode="edge")
    mean = padded.reshape(cells, level, cells, level).mean(axis=(1, 3))
    shrunk: NDArray[np.uint8] = np.rint(mean).astype(np.uint8)
    return shrunk
