"""A second set made by code: cells that belong to the nearest of two kinds of landmark.

A fine crop rarely holds a landmark, the wide view always does, and where a cell lies between
two landmarks decides its class. Learned within minutes on one core, so it serves to compare
ways of training where the rings take hours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_muvit.data.drawn_cells import CellOptions, cell_classes, draw_scene, pixel_centres
from napari_muvit.data.drawn_sets import DrawnSet
from napari_muvit.geometry import FloatArray

SIZE = 1024
COUNTS = {"train": 90, "val": 10, "test": 20}
"""Images of each split by default."""

DISC, FRAME = 1, 2
CLASSES = cell_classes("near a disc", "near a frame")


@dataclass(frozen=True)
class LandmarkOptions(CellOptions):
    """Lengths as shares of the image's side, brightness from 0 to 1.

    Attributes
    ----------
    count
        Landmarks of an image, half of each kind.
    apart
        Smallest distance of two landmarks.
    radius
        Half the side of a landmark.
    margin
        A cell whose two nearest kinds differ less than this in distance is left out.
    """

    count: int = 8
    apart: float = 0.22
    radius: float = 0.03
    margin: float = 0.02
    cell: tuple[float, float] = (0.005, 0.008)
    pitch: float = 0.025


def landmarks_image(
    seed: int, size: int = SIZE, options: LandmarkOptions | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One image and its labels, (size, size) uint8 each; the same for the same seed.

    Returns
    -------
    image, labels
        Labels: 0 background, 1 and 2 cells nearest to a disc or a square frame (see `CLASSES`).
    """
    options = options or LandmarkOptions()
    rng = np.random.default_rng([seed, 0x4C616E64])
    nearest, shapes = _draw_landmarks(rng, pixel_centres(size), options)
    classes = np.where(nearest[0] < nearest[1], DISC, FRAME)
    unclear = np.abs(nearest[0] - nearest[1]) < options.margin
    covered = nearest.min(axis=0) < options.radius * 1.5 + options.cell[1]
    classes = np.where(unclear | covered, 0, classes)
    return draw_scene(rng, classes, 0.15 + 0.45 * shapes, options)


def _draw_landmarks(
    rng: np.random.Generator, place: FloatArray, options: LandmarkOptions
) -> tuple[FloatArray, FloatArray]:
    """Distance to the nearest disc and the nearest frame (2, size, size), and their brightness."""
    size = len(place)
    points = scatter_points(rng, options.count, options.apart, options.radius)
    kinds = rng.permutation(np.arange(options.count) % 2)
    nearest = np.full((2, size, size), np.inf)
    shapes = np.zeros((size, size))
    for (y, x), kind in zip(points, kinds, strict=True):
        dy, dx = np.abs(place - y)[:, None], np.abs(place - x)[None, :]
        distance = np.hypot(dy, dx)
        nearest[kind] = np.minimum(nearest[kind], distance)
        reach = distance if kind == 0 else np.maximum(dy, dx)
        shape = np.clip((options.radius - reach) * size + 0.5, 0, 1)
        if kind == 1:
            shape *= np.clip((reach - options.radius / 2) * size + 0.5, 0, 1)
        shapes = np.maximum(shapes, shape)
    return nearest, shapes


def scatter_points(
    rng: np.random.Generator, count: int, apart: float, margin: float
) -> FloatArray:
    """Points (count, 2) in the unit square, `apart` from each other where there is room."""
    points: list[FloatArray] = []
    needed = apart
    while len(points) < count:
        tries = rng.uniform(margin, 1 - margin, (200, 2))
        for point in tries:
            if all(np.hypot(*(point - other)) >= needed for other in points):
                points.append(point)
                break
        else:
            needed *= 0.9
    return np.stack(points)


LANDMARKS = DrawnSet("landmarks", landmarks_image, CLASSES, COUNTS, SIZE, (1, 8))
write_landmarks = LANDMARKS.write
