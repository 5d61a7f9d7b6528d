"""How fast, how small and how seamless prediction is. `python benchmarks/prediction.py --help`

speed   the base model's encoder over one tile grid: a plain loop in fp32 over the official
        encoder (or, where muvit is not installed, over ours with torch's own kernels), against
        this package in fp32, in bf16, and with coarse-to-fine attention and cached contexts.
        Arms take turns tile by tile, so that other load hits all alike.
head    the whole pipeline with a UNETR head: share of reading, model and blending.
memory  peak memory above the start for a sparse image of any size.
seams   label changes across tile borders against those elsewhere, for trained models.
processes  one process against two, each with one thread.
presets  whole predictions of every preset, with full and with coarse-to-fine attention.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from experiments.memory import peak_bytes
from prediction_presets import CASES, presets
from prediction_processes import processes
from prediction_seams import seams

LEVELS = (1, 8, 32)
CROP = 256


def make_image(side: int, folder: Path, channels: int = 3) -> str:
    """A pyramid of smooth noise."""
    from napari_muvit.data.omezarr import create_pyramid

    path = folder / "image.ome.zarr"
    arrays = create_pyramid(path, shape=(channels, side, side), axes="cyx", levels=LEVELS,
                            dtype=np.uint8)
    rng = np.random.default_rng(0)
    for array in arrays:
        array[:] = rng.integers(0, 256, array.shape, np.uint8)
    return str(path)


def make_encoder(attention: str = "all") -> Any:
    """The base preset's encoder with random weights."""
    import torch

    from napari_muvit.models.encoder import Encoder

    torch.manual_seed(0)
    return Encoder(
        3, LEVELS, 8, num_layers=12, dim=512, heads=8, attention_mode=attention,
        token_coordinates="centre", rope_frequencies="scales", crop_size=CROP,
    ).eval()


def make_segmenter(attention: str = "all") -> Any:
    """The base preset with a UNETR head and random weights."""
    from napari_muvit.models.checkpoint import ModelMeta
    from napari_muvit.models.segmenter import Segmenter

    model = Segmenter(make_encoder(attention), 5, norm="group").eval()
    model.meta = ModelMeta("segmenter", crop_size=(CROP, CROP))
    return model


def official_encoder() -> tuple[Any, str]:
    """The official encoder, or ours with torch's own kernels where it is not installed."""
    try:
        from muvit.encoders import MuViTEncoder2d
    except ImportError:
        return make_encoder(), "our encoder, torch's kernels (muvit is not installed)"
    encoder = MuViTEncoder2d(
        in_channels=3, levels=LEVELS, patch_size=8, num_layers=12, dim=512, heads=8)
    return encoder.eval(), "official encoder"


def arms(names: list[str]) -> dict[str, Any]:
    """Ways to encode one tile's batch, by name."""
    import torch

    from napari_muvit.data.labels import ClassTable
    from napari_muvit.inference.context import ContextPredictor
    from napari_muvit.inference.device import Computing, measure_kernels
    from napari_muvit.inference.spec import ModelSpec

    spec = ModelSpec(LEVELS, (CROP, CROP), 2, 3, ClassTable(()))
    cpu, (plain, label) = torch.device("cpu"), official_encoder()
    ours, coarse = make_encoder(), make_encoder("coarse_to_fine")

    def with_kernels(encoder: Any, precision: str) -> Any:
        kernels = measure_kernels(encoder, "cpu", precision)
        print(f"  {precision}: kernels {kernels}")
        return ContextPredictor(encoder, spec, Computing(cpu, precision, kernels))

    def encode(predictor: Any) -> Any:
        def run(batch: Any) -> None:
            with torch.inference_mode(), predictor.computing():
                predictor.model(*predictor.to_tensors(batch.x, batch.bbox))
        return run

    def encode_cached(predictor: Any) -> Any:
        def run(batch: Any) -> None:
            with torch.inference_mode(), predictor.computing():
                x, boxes = predictor.to_tensors(batch.x, batch.bbox)
                context = predictor.context(batch.tiles[0].context, x, boxes)
                predictor.model.encode_fine(x[:, :1], boxes[:, :1], context)
        return run

    made = {
        f"plain loop, {label}": encode(ContextPredictor(plain, spec, Computing(cpu))),
        "ours, fp32": encode(with_kernels(ours, "fp32")),
        "ours, bf16": encode(with_kernels(ours, "bf16")),
        "coarse-to-fine with cached contexts, fp32": encode_cached(with_kernels(coarse, "fp32")),
        "coarse-to-fine with cached contexts, bf16": encode_cached(with_kernels(coarse, "bf16")),
    }
    return {name: arm for name, arm in made.items() if not names or any(n in name for n in names)}


def plan_tiles(source: str, model: Any) -> tuple[Any, Any]:
    """The job of one image and a reader of its tiles."""
    from napari_muvit.data.pyramid import open_pyramid
    from napari_muvit.inference.job import plan_job
    from napari_muvit.inference.reader import TileReader

    job = plan_job(open_pyramid(source), model, tissue="none")
    return job, TileReader(job)


def speed(given: argparse.Namespace) -> None:
    """Seconds a tile of every arm, taking turns."""
    from napari_muvit.data.labels import ClassTable, make_classes
    from napari_muvit.inference.predictor import FunctionPredictor
    from napari_muvit.inference.spec import ModelSpec

    with tempfile.TemporaryDirectory() as folder:
        source = make_image(given.side, Path(folder))
        spec = ModelSpec(LEVELS, (CROP, CROP), 2, 3, ClassTable(make_classes((1,))))
        job, reader = plan_tiles(source, FunctionPredictor(print, spec))
        whole = tuple(slice(0, n) for n in job.plan.shape)
        indices = sorted(job.plan.tiles_in(whole), key=lambda i: (job.plan.tile(i).context, i))
        indices = indices[: given.tiles or None]
        ways = arms(given.arm)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number, index in enumerate(indices):
            batch = reader.read([job.plan.tile(index)])
            for name, way in ways.items():
                begin = time.perf_counter()
                way(batch)
                seconds[name].append(time.perf_counter() - begin)
            print(f"\r  tile {number + 1}/{len(indices)}", end="", file=sys.stderr)
    print(f"\n{len(indices)} tiles of {given.side} x {given.side}, levels {LEVELS}; "
          f"{platform.processor() or platform.machine()}")
    first = None
    for name, values in seconds.items():
        total = sum(values[1:]) if len(values) > 1 else sum(values)
        first = first or total
        print(f"{name:45s} {total / max(1, len(values) - 1):7.3f} s a tile  "
              f"{first / total:5.2f}x")


class Stopwatch:
    """Seconds spent in methods of an object, each moment once where one calls another."""

    def __init__(self, owner: Any, *methods: str) -> None:
        self.seconds, self._depth = 0.0, 0
        for method in methods:
            setattr(owner, method, self._timed(getattr(owner, method)))

    def _timed(self, original: Any) -> Any:
        def run(*args: Any, **more: Any) -> Any:
            begin = time.perf_counter()
            self._depth += 1
            try:
                return original(*args, **more)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.perf_counter() - begin

        return run


def head(given: argparse.Namespace) -> None:
    """Where the time of the whole pipeline goes."""
    from napari_muvit.data.pyramid import open_pyramid
    from napari_muvit.inference.engine import Engine
    from napari_muvit.inference.job import plan_job
    from napari_muvit.inference.model_source import parse_model

    with tempfile.TemporaryDirectory() as folder:
        source = make_image(given.side, Path(folder))
        model = make_segmenter(given.attention)
        predictor = parse_model(model, device="cpu", precision=given.precision)
        job = plan_job(open_pyramid(source), predictor, tissue="none")
        engine = Engine(job)
        in_model, in_encoder = Stopwatch(engine, "_call"), Stopwatch(
            model.encoder, "forward", "forward_layers", "encode_context", "encode_fine")
        begin, count = time.perf_counter(), 0
        for region in (job.plan.block_region(i) for i in np.ndindex(*job.plan.num_blocks)):
            for ran in engine.steps(region):
                count += ran
                if given.tiles and count >= given.tiles:
                    break
            if given.tiles and count >= given.tiles:
                break
        total = time.perf_counter() - begin
    print(f"{count} tiles, {total / count:.3f} s each; inside the model "
          f"{in_model.seconds / total:.1%}, of that the encoder "
          f"{in_encoder.seconds / max(in_model.seconds, 1e-9):.1%}")


def memory(given: argparse.Namespace) -> None:
    """Peak memory of predicting some tiles of a sparse image."""
    from napari_muvit.data.labels import ClassTable, make_classes
    from napari_muvit.data.omezarr import create_pyramid
    from napari_muvit.inference.events import TileEvent
    from napari_muvit.inference.predictor import FunctionPredictor
    from napari_muvit.inference.spec import ModelSpec
    from napari_muvit.inference.to_store import predict_to_zarr

    folder = Path(given.folder or tempfile.mkdtemp())
    create_pyramid(folder / "image.ome.zarr", shape=(3, given.side, given.side), axes="cyx",
                   levels=LEVELS, dtype=np.uint8, fill_value=90)
    table = ClassTable(make_classes((1, 2, 3, 4, 5)), unlabelled=0)
    spec = ModelSpec(LEVELS, (CROP, CROP), 2, 3, table, fingerprint="stub",
                     normalization={"kind": "constant", "constant": 255.0})

    def judge(x: Any, bbox: Any, valid: Any) -> Any:
        out = np.full((len(x), 5, CROP, CROP), 0.1, np.float32)
        out[:, 2] = 0.6
        return out

    stub = FunctionPredictor(judge, spec)
    import dask.array  # noqa: F401 - part of the start, not of the prediction

    start = _rss()
    events = predict_to_zarr(str(folder / "image.ome.zarr"), stub, folder / "out.ome.zarr",
                             tissue="none")
    for event in events:
        if isinstance(event, TileEvent) and event.done >= given.tiles:
            break
    events.close()
    _compute_anywhere(str(folder / "image.ome.zarr"), stub, given.tiles)
    print(f"{given.side} x {given.side}, {given.tiles} first and {given.tiles} random tiles: "
          f"{peak_bytes() / 1e6 - start:.0f} MB")


def _compute_anywhere(source: str, model: Any, count: int) -> None:
    from napari_muvit.data.pyramid import open_pyramid
    from napari_muvit.inference.engine import Engine
    from napari_muvit.inference.job import plan_job

    engine = Engine(plan_job(open_pyramid(source), model, tissue="none"))
    rng = np.random.default_rng(0)
    for _ in range(count):
        index = tuple(int(rng.integers(n)) for n in engine.job.plan.num_cells)
        engine.compute(engine.job.plan.cell_region(index))


def _rss() -> float:
    import psutil

    return psutil.Process().memory_info().rss / 1e6


def main() -> None:
    """Run one of the measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    part = parts.add_parser("speed")
    part.set_defaults(run=speed)
    part.add_argument("--side", type=int, default=4096)
    part.add_argument("--tiles", type=int, default=0, help="only the first so many")
    part.add_argument("--arm", action="append", default=[], help="only arms with this in the name")
    part = parts.add_parser("head")
    part.set_defaults(run=head)
    part.add_argument("--side", type=int, default=4096)
    part.add_argument("--tiles", type=int, default=0)
    part.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    part.add_argument("--attention", choices=["all", "coarse_to_fine"], default="all")
    part = parts.add_parser("memory")
    part.set_defaults(run=memory)
    part.add_argument("--side", type=int, default=200_000)
    part.add_argument("--tiles", type=int, default=2000)
    part.add_argument("--folder")
    part = parts.add_parser("seams")
    part.set_defaults(run=seams)
    part.add_argument("images", nargs="+")
    part.add_argument("--model", nargs="+", required=True)
    part.add_argument("--overlap", type=float, default=0.25)
    part.add_argument("--roi", type=float, nargs=4)
    part = parts.add_parser("processes")
    part.set_defaults(run=processes)
    part.add_argument("--side", type=int, default=2208)
    part = parts.add_parser("presets")
    part.set_defaults(run=presets)
    names = sorted({case.preset for case in CASES})
    part.add_argument("--preset", nargs="+", choices=names, default=names)
    part.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
