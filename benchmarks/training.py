"""What the engine costs beside the model, and whether it keeps its promises about time.

    python benchmarks/training.py overhead | loader | instant | remaining | stop  [--threads N]

overhead   share of a step that is the model's (forward, backward, clipping, AdamW): the engine's
           steps of the base preset against a bare loop over the same batches, in turns.
loader     samples a second at the paper's pretraining settings, against what a GPU step needs.
instant    from a new stroke to a fitted head and a predicted view, on cached features.
remaining  the shown time remaining against the time that a run then took.
stop       from asking for a stop to its being noticed, at random moments of a base step.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from napari_muvit import api
from napari_muvit.config import PretrainConfig, parse_config
from napari_muvit.data.omezarr import create_pyramid
from napari_muvit.training.control import Control, StoppedError
from napari_muvit.training.engine import Engine
from napari_muvit.training.events import FinishedEvent, StepEvent
from napari_muvit.training.folder import create_run
from napari_muvit.training.images import open_images
from napari_muvit.training.loader import SampleLoader, move_batch
from napari_muvit.training.parallel import Parallel
from napari_muvit.training.start import build_engine, prepare_run
from napari_muvit.training.task import StepSeed

LEVELS = (1, 8, 32)
CROP = 256
PAPER_BATCH = 48
GPUS = 4
"""Of the paper's pretraining, one process each."""

H100_FLOPS = 990e12
"""Dense bf16 peak of the paper's card, a second (vendor's data sheet)."""

UTILISATION = 0.35
"""Share of the peak that a transformer step of this size is taken to reach."""


def make_image(folder: Path, side: int = 8192, channels: int = 1) -> str:
    """A pyramid as compressible as a stained section, chunks of 512."""
    path = folder / "image.ome.zarr"
    rng = np.random.default_rng(0)
    arrays = create_pyramid(
        path, shape=(channels, side, side), axes="cyx", levels=LEVELS, dtype="uint8")
    for array in arrays:
        height, width = array.shape[1:]
        for top in range(0, height, 512):
            y, x = np.mgrid[top:min(top + 512, height), :width]
            smooth = 128 + 60 * np.sin(y / 40) * np.cos(x / 30)
            noisy = smooth + rng.normal(0, 6, (channels, *smooth.shape))
            array[:, top:top + 512] = np.clip(noisy, 0, 255).astype(np.uint8)
    return str(path)


def paper_options(folder: Path, **changed: Any) -> dict[str, Any]:
    """The paper's pretraining on mouse sections (A.2)."""
    images = changed.pop("images", None) or [make_image(folder)]
    return {
        "images": images, "output": str(folder / "run"), "levels": LEVELS,
        "crop_size": CROP, "preset": "base", "batch_size": PAPER_BATCH, "tissue": "none",
        "rotate": False, "box_shift": 1.0, "box_scale": 0.02, "device": "cpu",
        "checkpoint_every": 10**6, "preview_every": 10**6, **changed,
    }


def make_engine(options: dict[str, Any]) -> Engine:
    """An engine of a new run."""
    config = parse_config(PretrainConfig, options)
    ready = prepare_run(config, "pretrain")
    folder = create_run(Path(config.output), ready.config, ready.facts())
    return build_engine(ready, folder)


class BareLoop:
    """The same steps as the engine's with nothing around the model.

    Parameters
    ----------
    engine
        Its model is copied, its batches are drawn before they are timed.
    """

    def __init__(self, engine: Engine, num_batches: int) -> None:
        self.task = copy.copy(engine.task)
        model = copy.deepcopy(engine.task.modules)
        self.task.modules = self.task.model = model  # type: ignore[attr-defined]
        self.numerics, self.settings = engine.numerics, engine.settings
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-5, betas=self.task.betas, fused=True)
        size = self.settings.batch_size
        drawn = engine.training.batches(0, num_batches)
        self.batches = [
            self.task.prepare(batch, StepSeed(0, step), size, slice(0, size))
            for step, batch in enumerate(drawn)
        ]
        model.train()

    def step(self, number: int) -> float:
        """Seconds of one step."""
        batch = self.batches[number % len(self.batches)]
        begun = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        with self.numerics():
            self.task.loss(batch, self.task.totals(batch)).backward()
        nn.utils.clip_grad_norm_(self.task.modules.parameters(), self.settings.clip)
        self.optimizer.step()
        return time.perf_counter() - begun


def overhead(given: argparse.Namespace) -> None:
    """Steps of both loops in turns; the first of each is not counted."""
    with tempfile.TemporaryDirectory() as place:
        engine = make_engine(paper_options(
            Path(place), batch_size=given.batch_size, steps=10**6, threads=given.threads))
        torch.set_num_threads(given.threads or torch.get_num_threads())
        bare = BareLoop(engine, 3)
        own: list[float] = []
        alone: list[float] = []
        events = (event for event in engine.events() if isinstance(event, StepEvent))
        for number in range(given.steps + 1):
            begun = time.perf_counter()
            next(events)
            own.append(time.perf_counter() - begun)
            alone.append(bare.step(number))
    shares = [a / b for a, b in zip(alone[1:], own[1:], strict=True)]
    print(f"base preset, batch {given.batch_size}: engine {statistics.median(own[1:]):.2f} s a "
          f"step, bare loop {statistics.median(alone[1:]):.2f} s; the model's share "
          f"{statistics.median(shares):.1%} (median of {len(shares)}; all together "
          f"{sum(alone[1:]) / sum(own[1:]):.1%})")


def step_flops(folder: Path, images: list[str]) -> float:
    """Floating-point operations of one sample's step, counted by torch."""
    from torch.utils.flop_counter import FlopCounterMode

    engine = make_engine(paper_options(
        folder, images=images, batch_size=1, steps=1, kernels="torch"))
    batch = next(iter(engine.training.batches(0, 1)))
    prepared = engine.task.prepare(batch, StepSeed(0, 0), 1, slice(0, 1))
    with FlopCounterMode(display=False) as counter:
        engine.task.loss(prepared, engine.task.totals(prepared)).backward()
    return float(counter.get_total_flops())


def loader(given: argparse.Namespace) -> None:
    """Samples a second with each number of workers, in the same process as a run has them."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        config = parse_config(PretrainConfig, paper_options(folder))
        dataset = open_images(config).training
        flops = step_flops(folder, list(config.images))
        need = H100_FLOPS * UTILISATION / flops
        print(f"one sample's step: {flops / 1e12:.2f} TFLOP; at {UTILISATION:.0%} of an H100's "
              f"bf16 peak a GPU needs {need:.0f} samples a second")
        for workers in given.workers:
            source = SampleLoader(dataset, given.batch_size, workers, Parallel())
            batches = source.batches(0, given.batches + 2)
            next(batches), next(batches)  # processes start, stores are opened
            begun = time.perf_counter()
            count = sum(len(move_batch(b, torch.device("cpu"))["img"]) for b in batches)
            rate = count / (time.perf_counter() - begun)
            cores = max(1, workers)
            print(f"workers {workers}: {rate:.0f} samples a second, {rate / cores:.0f} for each "
                  f"process; {need / (rate / cores):.1f} such processes feed one GPU")


def instant(given: argparse.Namespace) -> None:
    """Strokes of two classes on a real or made image; each new stroke is timed."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pyramid = api.open_pyramid(given.image or make_image(folder, 2048, 3))
        model = None
        if given.preset != "none":
            model = random_encoder(pyramid, given.preset)
        rng = np.random.default_rng(0)
        with api.open_annotations(pyramid, folder=folder / "strokes") as store:
            values = store.classes.values[:2]
            prediction = api.InstantPrediction(pyramid, store, model)
            first: float | None = None
            seconds, painted = [], 0
            for number in range(given.strokes):
                size = (8, 60)
                corner = [int(rng.integers(0, 500 - s)) for s in size]
                store.write(1, corner, np.ones(size, bool), values[number % 2])
                store.flush()
                painted += size[0] * size[1]
                if number == 0:
                    continue
                begun = time.perf_counter()
                prediction.predict(1, (0, 0), (512, 512))
                taken = time.perf_counter() - begun
                if first is None:
                    first = taken
                else:
                    seconds.append(taken)
    kind = "filters" if model is None else f"filters and a {given.preset} encoder"
    print(f"features: {kind}; {painted} px painted in {given.strokes} strokes; the first answer "
          f"took {first:.2f} s, with its features; each later stroke "
          f"{statistics.median(seconds):.2f} s (median), {max(seconds):.2f} s (longest): fit and a "
          "view of 512 x 512 px")


def random_encoder(pyramid: Any, preset: str) -> nn.Module:
    """An encoder of a preset; how long features take does not depend on its weights."""
    from napari_muvit.models.checkpoint import ModelMeta
    from napari_muvit.models.factory import build_encoder

    config = parse_config(PretrainConfig, {
        "images": ["x"], "output": "x", "levels": (1, 4), "crop_size": CROP, "preset": preset})
    encoder = build_encoder(config, pyramid.shape[0], 2).eval()
    encoder.meta = ModelMeta("encoder", crop_size=(CROP, CROP))  # type: ignore[assignment]
    return encoder


def remaining(given: argparse.Namespace) -> None:
    """A run with validations, previews and checkpoints, on a clock."""
    with tempfile.TemporaryDirectory() as place:
        options = paper_options(
            Path(place), preset="tiny", crop_size=64, batch_size=4, steps=given.steps,
            validate_every=40, val_fraction=0.2, val_samples=32, preview_every=50,
            checkpoint_every=50, threads=given.threads)
        told: list[tuple[int, float, float]] = []
        for event in api.pretrain(options):
            now = time.perf_counter()
            if isinstance(event, StepEvent):
                told.append((event.step, now, event.remaining))
        assert isinstance(event, FinishedEvent)
    total = now - told[0][1]
    errors = [abs(shown - (now - when)) / (now - when)
              for step, when, shown in told if given.steps / 4 <= step <= given.steps * 0.95]
    print(f"{given.steps} steps in {total:.0f} s: the time remaining was off by "
          f"{statistics.median(errors):.1%} (median), {max(errors):.1%} (most) between a quarter "
          "and 95 % of the steps")


def stop_latencies(engine: Engine, times: int, seconds: float) -> Iterator[float]:
    """Seconds until a stop, asked for at random within a step of so many `seconds`, is noticed."""
    batch = next(iter(engine.training.batches(0, 1)))
    size = engine.settings.batch_size
    prepared = engine.task.prepare(batch, StepSeed(0, 0), size, slice(0, size))
    rng = random.Random(0)
    for _ in range(times):
        engine.stepper.control = control = Control()
        asked: list[float] = []

        def ask(control: Control = control, asked: list[float] = asked) -> None:
            asked.append(time.perf_counter())
            control.stop()

        timer = threading.Timer(rng.uniform(0.02, 0.9) * seconds, ask)
        timer.start()
        try:
            engine.stepper.step(prepared, 0, 1)
        except StoppedError:
            yield time.perf_counter() - asked[0]
        timer.cancel()


def stop(given: argparse.Namespace) -> None:
    """A base step on this machine, abandoned at random moments."""
    with tempfile.TemporaryDirectory() as place:
        torch.set_num_threads(given.threads or torch.get_num_threads())
        engine = make_engine(paper_options(
            Path(place), batch_size=given.batch_size, steps=10, threads=given.threads))
        engine.task.train()
        begun = time.perf_counter()
        batch = next(iter(engine.training.batches(0, 1)))
        size = engine.settings.batch_size
        engine.stepper.step(
            engine.task.prepare(batch, StepSeed(0, 0), size, slice(0, size)), 0, 1)
        seconds = time.perf_counter() - begun
        found = list(stop_latencies(engine, given.times, seconds))
    print(f"base preset, batch {given.batch_size}, a step of {seconds:.1f} s: a stop was noticed "
          f"after {statistics.median(found):.2f} s (median), {max(found):.2f} s (longest of "
          f"{len(found)})")


WAYS: dict[str, Callable[[argparse.Namespace], None]] = {
    "overhead": overhead, "loader": loader, "instant": instant, "remaining": remaining,
    "stop": stop,
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=list(WAYS))
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--strokes", type=int, default=12)
    parser.add_argument("--preset", default="small", help="of the encoder, or none (instant)")
    parser.add_argument("--image", default=None, help="instead of a made one (instant)")
    parser.add_argument("--times", type=int, default=12)
    return parser.parse_args()


if __name__ == "__main__":
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    arguments = parse()
    WAYS[arguments.what](arguments)
