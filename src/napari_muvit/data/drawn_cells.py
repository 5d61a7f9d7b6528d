"""Cells for sets made by code: all alike, whatever their class, so that only their place tells."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_muvit.data.labels import ClassTable
from napari_muvit.data.omezarr import create_pyramid
from napari_muvit.geometry import FloatArray


def draw_cells(
    rng: np.random.Generator, classes: ArrayLike, pitch: float, radii: tuple[float, float],
) -> tuple[FloatArray, NDArray[np.uint8]]:
    """Brightness 0..1 and labels of cells on a shaken grid.

    Parameters
    ----------
    classes
        (size, size) label that a cell at each place gets; 0 means none there.
    pitch
        Mean distance between cells, share of the side.
    radii
        Smallest and largest radius of a cell, share of the side.
    """
    classes = np.asarray(classes)
    size = len(classes)
    cells, labels = np.zeros(classes.shape), np.zeros(classes.shape, dtype=np.uint8)
    count = int(1 / pitch)
    shake = rng.uniform(0.25, 0.75, (count, count, 2))
    places = (np.moveaxis(np.indices((count, count)), 0, -1) + shake).reshape(-1, 2) / count
    sizes = rng.uniform(*radii, len(places)) * size
    ratios = rng.uniform(0.85, 1.15, len(places))
    for place, radius, ratio in zip(places * size, sizes, ratios, strict=True):
        middle = np.minimum(place.astype(int), size - 1)
        kind = classes[tuple(middle)]
        if kind == 0:
            continue
        reach = int(np.ceil(radius * 1.3)) + 1
        low, high = np.maximum(middle - reach, 0), np.minimum(middle + reach + 1, size)
        y = (np.arange(low[0], high[0]) + 0.5 - place[0])[:, None] * ratio
        x = (np.arange(low[1], high[1]) + 0.5 - place[1])[None, :] / ratio
        inside = np.clip(radius - np.hypot(y, x) + 0.5, 0, 1)
        window = slice(low[0], high[0]), slice(low[1], high[1])
        cells[window] = np.maximum(cells[window], inside)
        labels[window][inside >= 0.5] = kind
    return cells, labels


def finish_image(
    rng: np.random.Generator, background: FloatArray, cells: FloatArray,
    cell_brightness: float, noise: float,
) -> NDArray[np.uint8]:
    """Cells over a background, both 0..1, with camera noise; uint8."""
    image = background * (1 - cells) + cell_brightness * cells
    image += noise * rng.standard_normal(image.shape, dtype=np.float32)
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


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
