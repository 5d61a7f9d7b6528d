"""Memory does not follow the size of the image."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHILD = Path(__file__).resolve().parents[2] / "benchmarks" / "prediction.py"


def peak(side: int, tiles: int, folder: Path) -> float:
    """MB above the start that predicting some tiles of a `side` x `side` image takes."""
    done = subprocess.run(
        [sys.executable, str(CHILD), "memory", "--side", str(side), "--tiles", str(tiles),
         "--folder", str(folder)],
        capture_output=True, text=True, timeout=280, check=False,
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[-2])


def test_a_huge_image_takes_as_little_as_a_large_one(tmp_path):
    large = peak(20_000, 120, tmp_path / "large")
    huge = peak(200_000, 120, tmp_path / "huge")
    assert huge < 1200
    assert huge < 1.1 * large + 60  # a byte for each cell and a line for each block


@pytest.mark.slow
def test_the_same_over_thousands_of_tiles(tmp_path):
    large = peak(20_000, 2000, tmp_path / "large")
    huge = peak(200_000, 2000, tmp_path / "huge")
    assert huge < 1500
    assert huge < 1.1 * large
