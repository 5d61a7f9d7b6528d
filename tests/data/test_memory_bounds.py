"""What reading takes from memory: the same for any image, and little from any damage."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from napari_muvit.data.omezarr import create_pyramid

PEAK = """
import contextlib, re, sys
import numpy as np
from napari_muvit.data.pyramid import open_pyramid
from napari_muvit.errors import MuvitError

rng = np.random.default_rng(0)
for path in sys.argv[2:]:
    with contextlib.suppress(MuvitError):
        pyramid = open_pyramid(path)
        for _ in range(int(sys.argv[1])):
            center = rng.uniform(0, pyramid.spatial_shape)
            with contextlib.suppress(MuvitError):
                pyramid.crop(center=center, levels=(1, 8, 32), size=256)
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024)
"""


def peak(crops: int, *paths: Path) -> int:
    """Largest memory, MiB, of a process that reads so many crops anywhere in each source."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the largest memory of a process is read from /proc, which Linux has")
    done = subprocess.run([sys.executable, "-c", PEAK, str(crops), *map(str, paths)],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_an_image_of_any_size_takes_the_same(tmp_path: Path) -> None:
    found = {}
    for side in (4_000, 200_000):
        path = tmp_path / f"{side}.zarr"
        create_pyramid(path, shape=(3, side, side), axes="cyx", levels=(1, 8, 32), dtype="uint8")
        found[side] = peak(60, path)
    assert found[200_000] < found[4_000] + 64
    assert found[200_000] < 300


@pytest.mark.faults
def test_damage_does_not_fill_the_memory(tmp_path: Path, real_data: Path) -> None:
    """Noise says of itself how much it is when decoded; nobody may believe it."""
    rng = np.random.default_rng(0)
    paths = []
    for fmt, chunk in (("0.4", 512), ("0.5", 512), ("0.5", 64)):
        path = tmp_path / f"{fmt}-{chunk}.zarr"
        arrays = create_pyramid(path, shape=(3, 1024, 1024), axes="cyx", levels=(1, 8, 32),
                                dtype="uint8", chunk=chunk, fmt=fmt)
        for array in arrays:
            array[:] = 7
        for file in path.rglob("*"):
            if file.is_file() and "." not in file.name:
                head = file.read_bytes()[:4]
                file.write_bytes(head + rng.bytes(4000))
        paths.append(path)
    for name in ("dapi_section.ndpi", "cmu_small_region.svs"):
        content = np.frombuffer((real_data / "slides" / name).read_bytes(), np.uint8).copy()
        for part in range(4):
            damaged = content.copy()
            begin = len(damaged) * part // 4
            damaged[begin:begin + len(damaged) // 4] = rng.integers(0, 256, len(damaged) // 4)
            paths.append(tmp_path / f"{part}_{name}")
            damaged.tofile(paths[-1])
    assert peak(4, *paths) < 500
