"""Does the viewer stay usable? `python benchmarks/responsiveness.py --help`

training  the base preset is pretrained from the Pretrain widget, in its own process or as a
          thread of napari, while the viewer rests and while it is panned by script. The
          headless speed is that of the same run while the viewer's event loop is halted, so
          that the three take turns within one run and other load hits all alike.
live      live prediction with the base preset on a sparse image of any size: adding the layer,
          panning, zooming.

Gaps are the times between two ticks of a 5 ms timer of the event loop, less the 5 ms. Needs a
display, for example ``xvfb-run -a -s "-screen 0 1280x800x24"``.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

TICK_MS = 5
FRAME_MS = 50
"""Time between two movements of the camera: 20 a second."""
SIZE = (1280, 800)
LEVELS = (1, 8, 32)
Way = Callable[[float], tuple[float, float, float]]
"""Seconds to the camera's y, x and zoom."""
MIDDLE = 4096
"""Pixels along a side of the part of the sparse image that is not empty."""


class GapMeter:
    """Times for which the event loop did nothing else than one thing."""

    def __init__(self) -> None:
        from qtpy.QtCore import Qt, QTimer

        self.gaps: dict[str, list[float]] = {}
        self._phase: str | None = None
        self._last = 0.0
        self._timer = QTimer()
        self._timer.setTimerType(Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(self._tick)
        self._timer.start(TICK_MS)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Within, gaps are kept under `name`."""
        self._phase, self._last = name, time.perf_counter()
        self.gaps.setdefault(name, [])
        yield
        self._phase = None

    def _tick(self) -> None:
        now = time.perf_counter()
        if self._phase is not None:
            self.gaps[self._phase].append(max(0.0, now - self._last - TICK_MS / 1000))
        self._last = now

    def line(self, name: str) -> str:
        """Median, p99 and largest gap of a phase, in ms."""
        values = 1000 * np.asarray(self.gaps[name])
        p50, p99 = np.percentile(values, [50, 99])
        return f"p50 {p50:.1f}, p99 {p99:.1f}, max {values.max():.1f} ms of {len(values)} gaps"


class StepWatch:
    """When each step of a run was written, looked up from a thread."""

    def __init__(self, folder: Path) -> None:
        self.times: list[float] = []
        self._file = folder / "metrics.csv"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        seen = 0
        while not self._stop.wait(0.02):
            if not self._file.exists() or self._file.stat().st_size == seen:
                continue
            seen = self._file.stat().st_size
            self.times.append(time.perf_counter())

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join()

    def steps(self, spans: list[tuple[float, float]]) -> list[float]:
        """Seconds of the steps that lie wholly within one of `spans`."""
        return [b - a for a, b in pairwise(self.times)
                if any(low <= a and b <= high for low, high in spans)]


def pump(seconds: float, until: Callable[[], bool] = lambda: False) -> None:
    """Run the event loop."""
    from qtpy.QtCore import QEventLoop, QTimer

    loop, look = QEventLoop(), QTimer()
    look.timeout.connect(lambda: loop.quit() if until() else None)
    look.start(50)
    QTimer.singleShot(int(1000 * seconds), loop.quit)
    loop.exec()
    look.stop()


def move(viewer: Any, path: Way, seconds: float) -> None:
    """Lead the camera along `path`."""
    from qtpy.QtCore import QTimer

    start, camera = time.perf_counter(), viewer.scene.camera

    def frame() -> None:
        y, x, zoom = path(time.perf_counter() - start)
        camera.center = (0, y, x)
        if zoom != camera.zoom:
            camera.zoom = zoom

    timer = QTimer()
    timer.timeout.connect(frame)
    timer.start(FRAME_MS)
    pump(seconds)
    timer.stop()


def open_viewer(path: str) -> Any:
    """A viewer of 1280 x 800 that shows the image at `path`."""
    import napari

    viewer = napari.Viewer(show=True, show_welcome_screen=False)
    viewer.window.resize(*SIZE)
    viewer.open(path, plugin="napari-muvit")
    return viewer


def picture(side: int) -> np.ndarray[Any, Any]:
    """A stained section repeated, (side, side, 3) uint8."""
    from skimage.data import immunohistochemistry

    tile = immunohistochemistry()
    return np.tile(tile, (-(-side // len(tile)),) * 2 + (1,))[:side, :side]


def training(given: argparse.Namespace) -> None:
    """Gaps and speed while the base preset is pretrained."""
    from napari_muvit import api

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = api.pyramid_from_arrays([picture(4096)], axes="yxc", name="section")
        for _ in api.convert(image, folder / "section.ome.zarr", levels=(1, 2, 4, 8, 16)):
            pass
        viewer = open_viewer(str(folder / "section.ome.zarr"))
        widget = open_widget(viewer, folder / "run", given)
        pump(1)
        meter, path = GapMeter(), wander(viewer)
        with meter.phase("no training"):
            move(viewer, path, given.seconds)
        widget.start.click()
        watch = StepWatch(folder / "run")
        pump(600, lambda: len(watch.times) >= 3 or widget.control is None)
        spans = take_turns(viewer, meter, path, given)
        watch.stop()
        report_training(meter, watch, spans)
        widget.stop.click()
        pump(60, lambda: widget.control is None)
        viewer.close()
        pump(0.5)


def open_widget(viewer: Any, output: Path, given: argparse.Namespace) -> Any:
    """The Pretrain widget, filled in."""
    _, widget = viewer.window.add_plugin_dock_widget("napari-muvit", "MuViT: Pretrain")
    widget.sources.add_layer.click()
    widget.form.set_values({
        "levels": LEVELS, "crop_size": (given.crop_size,), "preset": given.preset,
        "batch_size": given.batch_size, "steps": 100_000, "tissue": "none", "device": "cpu",
        "preview_every": 100_000, "checkpoint_every": 100_000,
    })
    widget.output.set_path(str(output))
    widget.detached.setChecked(given.mode == "process")
    return widget


def wander(viewer: Any) -> Way:
    """A way of the camera around the image, at four times the zoom that shows all of it."""
    y, x = viewer.scene.camera.center[-2:]
    zoom = 4 * viewer.scene.camera.zoom

    def path(t: float) -> tuple[float, float, float]:
        return y + 1100 * math.sin(1.1 * t), x + 1100 * math.sin(0.7 * t), zoom

    return path


def take_turns(
    viewer: Any, meter: GapMeter, path: Way, given: argparse.Namespace
) -> dict[str, list[tuple[float, float]]]:
    """Halt, rest and pan the viewer in turns; when each was done."""
    acts: dict[str, Callable[[], None]] = {
        "headless": lambda: time.sleep(given.seconds),
        "open": lambda: pump(given.seconds),
        "panned": lambda: move(viewer, path, given.seconds),
    }
    spans: dict[str, list[tuple[float, float]]] = {name: [] for name in acts}
    for _ in range(given.rounds):
        for name, act in acts.items():
            begin = time.perf_counter()
            with meter.phase(name):
                act()
            spans[name].append((begin, time.perf_counter()))
    return spans


def report_training(
    meter: GapMeter, watch: StepWatch, spans: dict[str, list[tuple[float, float]]]
) -> None:
    """Print what was found."""
    print(f"no training, panned: gaps {meter.line('no training')}")
    means = {name: watch.steps(times) for name, times in spans.items()}
    base = float(np.mean(means["headless"]))
    for name, seconds in means.items():
        mean = float(np.mean(seconds))
        print(f"{name:9s} {len(seconds):3d} steps of {mean:.2f} s: {base / mean:.2f} x headless")
        if name != "headless":
            print(f"          gaps {meter.line(name)}")


def live(given: argparse.Namespace) -> None:
    """Gaps while a labels layer follows the camera over an image that is mostly empty."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = sparse_image(folder / "slide.ome.zarr", given.side)
        model = save_segmenter(folder / "model", given.preset, given.crop_size)
        viewer = open_viewer(str(image))
        middle = given.side / 2
        viewer.scene.camera.center, viewer.scene.camera.zoom = (0, middle, middle), 0.5
        pump(2)
        meter = GapMeter()
        add_plain_labels(viewer, meter)
        for kind in ("image alone", "with live prediction"):
            session = start_live(viewer, model, folder, meter) if kind.startswith("with ") else None
            for act, path in paths(middle).items():
                with meter.phase(act):
                    move(viewer, path, given.seconds)
                print(f"{kind}, {act:8s} {meter.line(act)}")
                meter.gaps.clear()
        labels = np.asarray(session.layer.data[-1])
        print(f"labels {np.unique(labels).tolist()}, {np.count_nonzero(labels)} pixels of the "
              "coarsest array")
        session.stop()
        viewer.close()
        pump(1)


def add_plain_labels(viewer: Any, meter: GapMeter) -> None:
    """What napari itself needs for a small labels layer, the first and the second time."""
    for number in ("first", "second"):
        with meter.phase("adding"):
            layer = viewer.add_labels(np.zeros((500, 500), np.uint8))
            pump(1)
        print(f"napari's own labels layer, {number}, adding {meter.line('adding')}")
        meter.gaps.clear()
        viewer.layers.remove(layer)
        pump(1)


def paths(middle: float) -> dict[str, Way]:
    """Ways of the camera over the part that is not empty."""
    def pan(t: float) -> tuple[float, float, float]:
        return middle + 1200 * math.sin(0.9 * t), middle + 1400 * math.sin(0.7 * t), 1.0

    def zoom(t: float) -> tuple[float, float, float]:
        return middle, middle, 2.0 ** (-3 + 4 * math.cos(0.6 * t))

    return {"panning": pan, "zooming": zoom}


def start_live(viewer: Any, model: Path, folder: Path, meter: GapMeter) -> Any:
    """A live session whose layer is there, and the gaps until then."""
    from napari_muvit.plugin import engine, predict
    from napari_muvit.plugin.image_choices import image_choices
    from napari_muvit.plugin.layers import resolve_image
    from napari_muvit.plugin.live import LiveSession

    backend = engine.default_backend()
    loaded = predict.load(backend, str(model))
    choice = image_choices(viewer.layers)[0]
    with meter.phase("adding"):
        image = resolve_image(choice, backend, viewer.dims.point)
        session = LiveSession(viewer, backend, image, choice.layers, loaded, device="cpu",
                              cache=folder / "cache")
        ends: list[Any] = []
        session.ended.connect(ends.append)
        session.start()
        pump(60, lambda: session.layer is not None or bool(ends))
        pump(2)
    if session.layer is None or ends:
        raise SystemExit(f"live prediction did not start: {ends}")
    print(f"with live prediction, adding   {meter.line('adding')}")
    return session


def sparse_image(path: Path, side: int) -> Path:
    """An image of `side` px with a stained section in its middle and white elsewhere."""
    from napari_muvit.data.omezarr import create_pyramid

    levels = tuple(2**k for k in range(max(1, round(math.log2(side / 1024)))))
    arrays = create_pyramid(path, shape=(3, side, side), axes="cyx", levels=levels,
                            dtype=np.uint8, fill_value=240, pixel_size=(0.5, 0.5))
    section = np.moveaxis(picture(MIDDLE), -1, 0)
    for array, level in zip(arrays, levels, strict=True):
        small = section[:, ::level, ::level]
        start = (side - MIDDLE) // 2 // level
        array[:, start:start + small.shape[1], start:start + small.shape[2]] = small
    return path


def save_segmenter(folder: Path, preset: str, crop_size: int) -> Path:
    """A segmenter of the preset with random weights and four classes."""
    import torch

    from napari_muvit.config import FinetuneConfig
    from napari_muvit.data.labels import ClassTable, LabelClass
    from napari_muvit.models.checkpoint import ModelMeta, save_model
    from napari_muvit.models.factory import build_segmenter

    torch.manual_seed(0)
    config = FinetuneConfig(images=("a",), labels=("b",), output="c", levels=LEVELS,
                            crop_size=(crop_size,), preset=preset)
    colours = ("#808080", "#e69f00", "#56b4e9", "#009e73")
    table = ClassTable(tuple(LabelClass(i + 1, f"class {i + 1}", c)
                             for i, c in enumerate(colours)))
    meta = ModelMeta(
        kind="segmenter", crop_size=(crop_size,) * 2, scaled_axes=("y", "x"),
        pixel_size=(0.5, 0.5), normalization={"kind": "constant", "constant": 255.0},
        classes=table.to_dict(), channel_names=("r", "g", "b"), provenance={},
    )
    save_model(folder, build_segmenter(config, 3, 2, 4), meta)
    return folder


def main() -> None:
    """Run one of the measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    part = parts.add_parser("training")
    part.set_defaults(run=training)
    part.add_argument("--mode", choices=["process", "thread"], default="process")
    part.add_argument("--batch-size", type=int, default=1)
    part.add_argument("--rounds", type=int, default=3)
    part.add_argument("--seconds", type=float, default=15)
    live_part = parts.add_parser("live")
    live_part.set_defaults(run=live)
    live_part.add_argument("--side", type=int, default=100_000)
    live_part.add_argument("--seconds", type=float, default=15)
    for each in (part, live_part):
        each.add_argument("--preset", choices=["tiny", "small", "base"], default="base")
        each.add_argument("--crop-size", type=int, default=256)
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
