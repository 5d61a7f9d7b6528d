"""A kill in the middle of painting loses at most the last two seconds and breaks nothing."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from paint_forever import draw_stroke

from napari_muvit.data.annotations import AnnotationStore, open_annotations
from napari_muvit.data.label_arrays import most_frequent

SHAPE = (900, 1400)
SAFE_SECONDS = 2.0
PAINTER = Path(__file__).with_name("paint_forever.py")

pytestmark = pytest.mark.faults


def paint_and_kill(path: Path, seed: int, seconds: float) -> tuple[int, int]:
    """Number of strokes that must be safe, and of strokes that may be there."""
    process = subprocess.Popen(
        [sys.executable, str(PAINTER), str(path), str(seed)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    times: list[float] = []
    ready = threading.Event()

    def collect() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "ready":
                ready.set()
            else:
                times.append(time.monotonic())

    reader = threading.Thread(target=collect)
    reader.start()
    is_ready = ready.wait(60)
    time.sleep(seconds)
    process.kill()
    killed = time.monotonic()
    process.wait()
    reader.join()
    assert process.stdout is not None
    assert process.stderr is not None
    errors = process.stderr.read()
    process.stdout.close()
    process.stderr.close()
    assert is_ready, errors
    # The stroke after the last one told may have been painted too.
    return sum(moment <= killed - SAFE_SECONDS for moment in times), len(times) + 1


class Replay:
    """What the painter does, in plain arrays: three windows over the whole image."""

    def __init__(self, path: Path) -> None:
        with AnnotationStore(path, writable=False) as store:
            self.windows = {
                level: store.read(level, (0, 0), store.arrays.level_shape(level))
                for level in (1, 2, 8)
            }
        self.labels = self.windows[1].copy()

    def paint(self, stroke: tuple[int, int, int, int, int]) -> None:
        level, row, column, side, label = stroke
        window = self.windows[level][row : row + side, column : column + side]
        changed = np.kron(window != label, np.ones((level, level), bool))
        window[...] = label
        below = self.labels[row * level :, column * level :][: side * level, : side * level]
        below[changed[: below.shape[0], : below.shape[1]]] = label


def check_whole_store(path: Path) -> NDArray[np.uint8]:
    """Every chunk can be read and every coarse array agrees with the finer one."""
    with AnnotationStore(path) as store:
        arrays = [np.asarray(array[...]) for array in store.arrays.arrays]
    for fine, coarse in itertools.pairwise(arrays):
        np.testing.assert_array_equal(coarse, most_frequent(fine, (2, 2)))
    assert not list(path.rglob("*.partial"))
    return arrays[0]


def kill_often(tmp_path: Path, times: int, longest: float) -> int:
    image = tmp_path / "slide.tif"
    tifffile.imwrite(image, np.zeros(SHAPE, np.uint8))
    with open_annotations(image) as store:
        path = store.path
    rng = np.random.default_rng(times)
    painted = 0
    for seed in range(times):
        # Each painter goes on with what the killed one before it left.
        replay = Replay(path)
        safe, possible = paint_and_kill(path, seed, float(rng.uniform(0.0, longest)))
        found = check_whole_store(path)
        for number in range(possible + 1):
            if number >= safe and (found == replay.labels).all():
                break
            replay.paint(draw_stroke(seed, number, SHAPE))
        else:
            pytest.fail(f"after kill {seed} the store holds no prefix of at least {safe} strokes")
        painted += number
    return painted


def test_five_kills_at_random_moments(tmp_path: Path) -> None:
    assert kill_often(tmp_path, times=5, longest=3.0) > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_kills_at_random_moments(tmp_path: Path) -> None:
    assert kill_often(tmp_path, times=50, longest=4.0) > 0
