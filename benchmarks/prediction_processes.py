"""One process against two, each with one thread.

Used by `python benchmarks/prediction.py processes`. Both predict the same image with the same
model to a store; two processes share it by `--part 1/2` and `2/2`, or as workers of a local
cluster. Times are those from the plan on, so that starting Python does not count; whole times,
start included, stand beside; the best of two rounds, all ways in turns. The stores must be equal
byte for byte.

The control is two predictions of the whole image at once that share nothing: what the machine's
second core is worth where the first is busy. No way to share the work can give more.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

CROP = 64
ROUNDS = 2
LEVELS = (1, 4, 16)


def processes(given: argparse.Namespace) -> None:
    """Print seconds and ratios of all ways."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, given.side)
        ways: dict[str, dict[str, list[dict[str, str]]]] = {
            "one process": {"one": [{}]},
            "two processes, --part": {"parts": [{"part": "1/2"}, {"part": "2/2"}]},
            "two workers, --cluster local:2": {"cluster": [{"cluster": "local:2"}]},
            "control: twice, at once": {"first": [{}], "second": [{}]},
        }
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, arms in ways.items():
                for store in arms:
                    shutil.rmtree(folder / f"{store}.ome.zarr", ignore_errors=True)
                found[way].append(run(folder, arms))
        times = {way: (min(t[0] for t in all_), min(t[1] for t in all_))
                 for way, all_ in found.items()}
        same = [read_files(folder / f"{kind}.ome.zarr") for kind in ("one", "parts", "cluster")]
    print(f"{given.side} x {given.side} px, crops of {CROP} px, one thread each, "
          f"{os.cpu_count()} cores; stores equal: {same[0] == same[1] == same[2]}")
    first = times["one process"]
    for label, (steady, whole) in times.items():
        work = 2 if label.startswith("control") else 1
        print(f"{label:32s} {steady:6.1f} s from the plan on ({work * first[0] / steady:.2f}x), "
              f"{whole:6.1f} s in all ({work * first[1] / whole:.2f}x)")


def prepare(folder: Path, side: int) -> None:
    """An image of noise and a small model with random weights."""
    import torch

    from napari_muvit.data.omezarr import create_pyramid
    from napari_muvit.models.checkpoint import ModelMeta, save_model
    from napari_muvit.models.encoder import Encoder
    from napari_muvit.models.segmenter import Segmenter

    arrays = create_pyramid(folder / "image.ome.zarr", shape=(3, side, side), axes="cyx",
                            levels=LEVELS, dtype=np.uint8)
    rng = np.random.default_rng(0)
    for array in arrays:
        array[:] = rng.integers(0, 256, array.shape, np.uint8)
    torch.manual_seed(0)
    encoder = Encoder(3, LEVELS, 8, num_layers=4, dim=128, heads=4, crop_size=CROP,
                      token_coordinates="centre", rope_frequencies="scales")
    model = Segmenter(encoder, 3, norm="group", head_dim=32).eval()
    save_model(folder / "model", model, ModelMeta("segmenter", crop_size=(CROP, CROP)))


def run(folder: Path, arms: dict[str, list[dict[str, str]]]) -> tuple[float, float]:
    """Seconds from the first plan to the end of the last process, and of everything.

    `arms` are the options of the processes that write each store.
    """
    begin = time.time()
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), name, json.dumps(options)], env=env,
            stdout=subprocess.PIPE, text=True,
        )
        for name, each in arms.items() for options in each
    ]
    stamps = [json.loads(child.communicate()[0].splitlines()[-1]) for child in children]
    end = max(stamp["end"] for stamp in stamps)
    return end - min(stamp["first"] for stamp in stamps), end - begin


def child(folder: Path, name: str, options: dict[str, Any]) -> None:
    """Predict, and print when it was planned and done."""
    from napari_muvit.inference.events import TileEvent
    from napari_muvit.inference.to_store import predict_to_zarr

    stamp: dict[str, float] = {}
    for event in predict_to_zarr(
        folder / "image.ome.zarr", folder / "model", folder / f"{name}.ome.zarr", tissue="none",
        device="cpu", threads=1, kernels="torch", **options,
    ):
        if isinstance(event, TileEvent):
            stamp.setdefault("first", time.time())
    print(json.dumps({**stamp, "end": time.time()}))


def read_files(folder: Path) -> dict[str, bytes]:
    """Every file of a store."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


if __name__ == "__main__":
    child(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))
