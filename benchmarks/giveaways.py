"""What can be had without knowing where the fine crop lies in the coarse one?

    python benchmarks/giveaways.py [--images 40] [--crops 40]

A model that is told wrong boxes can still take for every cell the class that most cells of the
coarse view have. And if the fine crop shows to which side of its line a cell lies, it can take
the class that most cells of the coarse view have that lie to the same side of theirs. How often
that is right depends on the set and on how much of the image the coarse view shows; it is what
naive boxes can reach without relating the levels at all. The column ``always one class`` is what
a single fine crop can reach that finds every cell.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from napari_muvit import api

Draw = Callable[[int, int], tuple[NDArray[np.uint8], NDArray[np.uint8]]]
CASES: tuple[tuple[str, Draw, int, int], ...] = (
    ("rings", api.rings_image, 512, 4), ("rings", api.rings_image, 512, 8),
    ("landmarks", api.landmarks_image, 1024, 8), ("landmarks", api.landmarks_image, 1024, 16),
)
CROP = 64
SAME_SIDE = 0.94
"""Cosine of the largest angle between directions that count as one: 20 degrees."""
MOST_ASKED = 2000
"""So many pixels of a coarse view are asked at most."""


def guess_classes(
    draw: Draw, size: int, level: int, images: int, crops: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Of pixels of cells: true classes, and those guessed from random coarse views.

    Guessed are the class of most cells in view, and of most of those to the same side.
    """
    rng = np.random.default_rng(0)
    found: list[tuple[NDArray[np.uint8], ...]] = []
    for seed in range(images):
        labels = draw(1_000_000 + seed, size)[1]
        sides = side_of_line(labels)
        for _ in range(crops):
            fine = rng.integers(0, size - CROP + 1, 2)
            wide = CROP * level
            coarse = rng.integers(
                np.maximum(fine + CROP - wide, 0), np.minimum(fine, size - wide) + 1)
            cells = _window(labels, fine, CROP)
            around = _window(labels, coarse, wide)
            most = 1 if (around == 1).sum() > (around == 2).sum() else 2
            true = cells[cells > 0]
            found.append((
                true, np.full(len(true), most, np.uint8),
                _most_to_the_same_side(_window(sides, fine, CROP)[cells > 0],
                                       _window(sides, coarse, wide)[around > 0],
                                       around[around > 0])))
    true, most, same_side = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return true, most, same_side


def side_of_line(labels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Direction from the nearest cell of the other class, a unit vector (size, size, 2)."""
    size = len(labels)
    away = np.zeros((size, size, 2), np.float32)
    for own, other in ((1, 2), (2, 1)):
        nearest = distance_transform_edt(
            labels != other, return_distances=False, return_indices=True)
        offset = np.moveaxis(np.indices(labels.shape) - nearest, 0, -1)[labels == own]
        away[labels == own] = offset / np.linalg.norm(offset, axis=-1, keepdims=True)
    return away


def _most_to_the_same_side(
    cells: NDArray[np.float32], around: NDArray[np.float32], classes: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """For each pixel of `cells` the class of most pixels `around` to the same side."""
    around, classes = (part[::len(part) // MOST_ASKED + 1] for part in (around, classes))
    votes = [(cells @ around[classes == c].T > SAME_SIDE).sum(axis=1) for c in (1, 2)]
    return np.where(votes[0] > votes[1], 1, 2).astype(np.uint8)


def _window(labels: NDArray[np.uint8], corner: NDArray[np.int64], side: int) -> NDArray[np.uint8]:
    y, x = corner
    return labels[y:y + side, x:x + side]


def mean_dice(true: NDArray[np.uint8], guessed: NDArray[np.uint8]) -> float:
    """Mean Dice of classes 1 and 2 where every cell was found."""
    each = [2 * ((true == c) & (guessed == c)).sum() / ((true == c).sum() + (guessed == c).sum())
            for c in (1, 2)]
    return float(np.mean(each))


def main(argv: list[str] | None = None) -> str:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--crops", type=int, default=40)
    given = parser.parse_args(argv)
    lines = ["| set | levels | always one class, mDSC | majority of the coarse view, mDSC "
             "| majority to the same side, mDSC |",
             "| --- | --- | --- | --- | --- |"]
    for name, draw, size, level in CASES:
        true, most, same_side = guess_classes(draw, size, level, given.images, given.crops)
        one = max(mean_dice(true, np.full_like(true, c)) for c in (1, 2))
        side = f"{mean_dice(true, same_side):.2f}" if name == "rings" else "no line"
        lines.append(f"| {name}, {size} px | 1, {level} | {one:.2f} | "
                     f"{mean_dice(true, most):.2f} | {side} |")
    text = "\n".join(lines)
    print(text)
    return text


if __name__ == "__main__":
    main()
