"""Paints reproducible strokes into an annotation store until somebody kills it.

Usage: paint_forever.py STORE SEED. Prints the number of each stroke once it is painted.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from napari_muvit.data.annotation_window import AnnotationWindow
from napari_muvit.data.annotations import AnnotationStore


def draw_stroke(seed: int, number: int, shape: tuple[int, int]) -> tuple[int, int, int, int, int]:
    """Level, row, column, side in level px, and label of stroke `number`."""
    rng = np.random.default_rng([seed, number])
    level = int(rng.choice([1, 2, 8]))
    row, column = (int(rng.integers(0, n // level - 1)) for n in shape)
    return level, row, column, int(rng.integers(2, 60)), number % 250 + 1


def main() -> None:
    path, seed = sys.argv[1], int(sys.argv[2])
    store = AnnotationStore(path)
    windows: dict[int, AnnotationWindow] = {
        level: store.window(corner=(-0.5, -0.5), level=level, size=store.shape, name=f"at {level}")
        for level in (1, 2, 8)
    }
    print("ready", flush=True)
    number = 0
    while True:
        level, row, column, side, label = draw_stroke(seed, number, store.shape)
        windows[level].labels[row : row + side, column : column + side] = label
        windows[level].commit()
        print(number, flush=True)
        number += 1
        time.sleep(0.02)


if __name__ == "__main__":
    main()
