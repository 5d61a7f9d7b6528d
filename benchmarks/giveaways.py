"""What can be had without knowing where the fine crop lies in the coarse one?

    python benchmarks/giveaways.py [--images 40] [--crops 40]

A model that is told wrong boxes can still take for every cell the class that most cells of the
coarse view have. How often that is right depends on the set and on how much of the image the
coarse view shows; it is what naive boxes can reach without relating the levels at all. The row
``always one class`` is what a single fine crop can reach that finds every cell.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from napari_muvit import api

Draw = Callable[[int, int], tuple[NDArray[np.uint8], NDArray[np.uint8]]]
CASES: tuple[tuple[str, Draw, int, int], ...] = (
    ("rings", api.rings_image, 512, 4), ("rings", api.rings_image, 512, 8),
    ("landmarks", api.landmarks_image, 1024, 8), ("landmarks", api.landmarks_image, 1024, 16),
)
CROP = 64


def guess_majority(
    draw: Draw, size: int, level: int, images: int, crops: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """True and guessed classes of the pixels of cells, by the majority of random coarse views."""
    rng = np.random.default_rng(0)
    true, guessed = [], []
    for seed in range(images):
        labels = draw(1_000_000 + seed, size)[1]
        for _ in range(crops):
            fine = rng.integers(0, size - CROP + 1, 2)
            wide = CROP * level
            coarse = rng.integers(
                np.maximum(fine + CROP - wide, 0), np.minimum(fine, size - wide) + 1)
            cells = _window(labels, fine, CROP)
            around = _window(labels, coarse, wide)
            true.append(cells[cells > 0])
            most = 1 if (around == 1).sum() > (around == 2).sum() else 2
            guessed.append(np.full(len(true[-1]), most, np.uint8))
    return np.concatenate(true), np.concatenate(guessed)


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
    lines = ["| set | levels | always one class, mDSC | majority of the coarse view, mDSC |",
             "| --- | --- | --- | --- |"]
    for name, draw, size, level in CASES:
        true, guessed = guess_majority(draw, size, level, given.images, given.crops)
        one = max(mean_dice(true, np.full_like(true, c)) for c in (1, 2))
        lines.append(f"| {name}, {size} px | 1, {level} | {one:.2f} | "
                     f"{mean_dice(true, guessed):.2f} |")
    text = "\n".join(lines)
    print(text)
    return text


if __name__ == "__main__":
    main()
