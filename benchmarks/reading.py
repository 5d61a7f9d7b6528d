"""How fast nested crops are read: against dask, against raw zarr, with one and two workers.

    python benchmarks/reading.py [--side 8192] [--samples 300] [--output reading.json]

Everything is measured in one run on one store, in turns, so that a busy computer disturbs all
ways alike. A sample is three crops of 256 px, at levels 1, 8 and 32. Memory is measured in fresh
processes on sparse stores from 4 000 to 200 000 px per side.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from experiments.memory import peak_bytes

from napari_muvit.data.memory import shared_cache
from napari_muvit.data.omezarr import create_pyramid
from napari_muvit.data.pyramid import Pyramid, open_pyramid

LEVELS = (1, 8, 32)
SIZE = 256
SIDES = (4_000, 20_000, 100_000, 200_000)


def make_store(path: Path, side: int) -> None:
    """A pyramid of smooth structure and noise, as compressible as a stained section."""
    rng = np.random.default_rng(0)
    arrays = create_pyramid(path, shape=(3, side, side), axes="cyx", levels=LEVELS, dtype="uint8")
    for array in arrays:
        height, width = array.shape[1:]
        for top in range(0, height, 512):
            rows = min(512, height - top)
            y, x = np.mgrid[top:top + rows, :width]
            smooth = 128 + 60 * np.sin(y / 40) * np.cos(x / 30)
            noise = rng.normal(0, 6, (3, rows, width))
            array[:, top:top + rows] = np.clip(smooth + noise, 0, 255).astype(np.uint8)


def draw_places(count: int, side: int, seed: int) -> list[tuple[float, float]]:
    rng = np.random.default_rng(seed)
    return [tuple(row) for row in rng.uniform(SIZE, side - SIZE, (count, 2)).tolist()]


def corners(place: tuple[float, float], shape: tuple[int, ...], level: int) -> list[int]:
    """Where the crop of a level begins, kept inside the array: the raw ways do not pad."""
    return [int(np.clip(p / level - SIZE / 2, 0, max(n - SIZE, 0)))
            for p, n in zip(place, shape[1:], strict=True)]


def read_ours(pyramid: Pyramid, places: list[tuple[float, float]]) -> None:
    for place in places:
        pyramid.crop(center=place, levels=LEVELS, size=SIZE)


def read_zarr(arrays: list[Any], places: list[tuple[float, float]]) -> None:
    for place in places:
        for array, level in zip(arrays, LEVELS, strict=True):
            y, x = corners(place, array.shape, level)
            np.asarray(array[:, y:y + SIZE, x:x + SIZE])


def read_dask(arrays: list[Any], places: list[tuple[float, float]]) -> None:
    for place in places:
        for array, level in zip(arrays, LEVELS, strict=True):
            y, x = corners(place, array.shape, level)
            np.asarray(array[:, y:y + SIZE, x:x + SIZE])


def rate(work: Callable[[], None], count: int) -> float:
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)


def processor_ms(work: Callable[[], None], count: int) -> float:
    """Processor time of one sample in ms: what a busy computer cannot distort."""
    started = time.process_time()
    work()
    return 1000 * (time.process_time() - started) / count


def compare_ways(
    path: Path, side: int, samples: int, rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Samples per second and processor ms per sample of each way, medians over rounds in turns."""
    import dask.array as da
    import zarr

    group = zarr.open_group(path, mode="r")
    arrays = [group[str(i)] for i in range(len(LEVELS))]
    lazy = [da.from_zarr(array) for array in arrays]
    pyramid = open_pyramid(path)
    plain = pyramid.uncached()
    read_ours(pyramid, draw_places(3, side, 99))
    ways: dict[str, tuple[Callable[[list[tuple[float, float]]], None], int]] = {
        "ours": (lambda places: read_ours(pyramid, places), samples),
        "ours, nothing kept in memory": (lambda places: read_ours(plain, places), samples),
        "raw zarr": (lambda places: read_zarr(arrays, places), samples),
        "dask": (lambda places: read_dask(lazy, places), max(samples // 4, 1)),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    costs: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, (work, count) in ways.items():
            places = draw_places(count, side, number)
            rates[name].append(rate(lambda w=work, p=places: w(p), count))
            costs[name].append(processor_ms(lambda w=work, p=places: w(p), count))
    return ({name: statistics.median(values) for name, values in rates.items()},
            {name: statistics.median(values) for name, values in costs.items()})


def _work(job: tuple[Pyramid, int, int, int]) -> None:
    pyramid, count, side, seed = job
    read_ours(pyramid, draw_places(count, side, seed))


def compare_workers(path: Path, side: int, samples: int, rounds: int) -> dict[str, float]:
    """Samples per second of one and two spawned, persistent workers."""
    pyramid = open_pyramid(path)
    context = multiprocessing.get_context("spawn")
    rates: dict[int, list[float]] = {1: [], 2: []}
    with context.Pool(1) as one, context.Pool(2) as two:
        for pool, workers in ((one, 1), (two, 2)):
            pool.map(_work, [(pyramid, 5, side, k) for k in range(4 * workers)], chunksize=1)
        for number in range(rounds):
            for pool, workers in ((one, 1), (two, 2)):
                jobs = [(pyramid, samples // 8, side, 8 * number + k) for k in range(8)]
                rates[workers].append(rate(
                    lambda p=pool, j=jobs: p.map(_work, j, chunksize=1), samples // 8 * 8))
    return {f"{workers} worker(s)": statistics.median(values) for workers, values in rates.items()}


def peak_memory(path: str, side: int) -> None:
    """In a fresh process: print the largest memory after reading crops all over a store."""
    read_ours(open_pyramid(path), draw_places(200, side, 0))
    print(peak_bytes() / 2**20)


def compare_memory(folder: Path) -> dict[str, float]:
    """MiB that reading takes, by side of a sparse store with every level."""
    found = {}
    for side in SIDES:
        path = folder / f"sparse_{side}.zarr"
        create_pyramid(path, shape=(3, side, side), axes="cyx", levels=LEVELS, dtype="uint8")
        done = subprocess.run(
            [sys.executable, __file__, "--peak", str(path), "--side", str(side)],
            capture_output=True, text=True, check=True)
        found[str(side)] = float(done.stdout)
    return found


def report(results: dict[str, Any]) -> None:
    ways, workers = results["samples per second"], results["workers"]
    for name, value in {**ways, **workers}.items():
        cost = results["processor ms per sample"].get(name)
        print(f"{name:32} {value:8.1f} samples/s"
              + ("" if cost is None else f"  {cost:6.2f} ms of processor"))
    one, two = workers.values()
    ratios = {
        "ours / dask (at least 4)": ways["ours"] / ways["dask"],
        "ours / raw zarr (at least 0.8)": ways["ours"] / ways["raw zarr"],
        "uncached / raw zarr": ways["ours, nothing kept in memory"] / ways["raw zarr"],
        "two workers / one (at least 1.4)": two / one,
    }
    results["ratios"] = ratios
    for name, value in ratios.items():
        print(f"{name:32} {value:8.2f}")
    for side, value in results["memory MiB"].items():
        print(f"memory at {side:>7} px per side      {value:8.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=8192, help="side of the image (px)")
    parser.add_argument("--samples", type=int, default=300, help="samples of one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write the numbers here as JSON")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        peak_memory(options.peak, options.side)
        return
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "image.ome.zarr"
        make_store(path, options.side)
        arguments = (path, options.side, options.samples, options.rounds)
        rates, costs = compare_ways(*arguments)
        results: dict[str, Any] = {
            "machine": platform.processor() or platform.machine(), "levels": LEVELS, "size": SIZE,
            "samples per second": rates, "processor ms per sample": costs,
            "workers": compare_workers(*arguments), "memory MiB": compare_memory(Path(name)),
        }
    shared_cache.clear()
    report(results)
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
