"""Cells for sets made by code: all alike, whatever their class, so that only their place tells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_muvit.data.labels import ClassTable, LabelClass
from napari_muvit.geometry import FloatArray


@dataclass(frozen=True)
class CellOptions:
    """How cells look, whatever their class: lengths as shares of the image's side.

    Attributes
    ----------
    cell
        Smallest and largest radius of a cell.
    pitch
        Mean distance between cells.
    cell_brightness, noise
        Brightness from 0 to 1, and the standard deviation of the camera's noise on it.
    """

    cell: tuple[float, float] = (0.006, 0.009)
    pitch: float = 0.04
    cell_brightness: float = 0.8
    noise: float = 0.05


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


def draw_scene(
    rng: np.random.Generator, classes: ArrayLike, background: FloatArray, look: CellOptions,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image (size, size) of cells over `background`, 0..1, with camera noise; their labels.

    Parameters
    ----------
    classes
        (size, size) label that a cell at each place gets; 0 means none there.
    """
    cells, labels = draw_cells(rng, classes, look.pitch, look.cell)
    image = background * (1 - cells) + look.cell_brightness * cells
    image += look.noise * rng.standard_normal(image.shape, dtype=np.float32)
    return (np.clip(image, 0, 1) * 255).astype(np.uint8), labels


def cell_classes(first: str, second: str) -> ClassTable:
    """Background 0 and two kinds of cell, 1 and 2, by their names."""
    rows = ((0, "background", "#808080"), (1, first, "#377eb8"), (2, second, "#e41a1c"))
    return ClassTable(tuple(LabelClass(*row) for row in rows), background=0)


def pixel_centres(size: int) -> FloatArray:
    """Places of pixel centres along one side, as shares of it."""
    centres: FloatArray = (np.arange(size) + 0.5) / size
    return centres
