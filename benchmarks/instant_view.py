"""From the end of a stroke to the prediction on the screen: `python benchmarks/instant_view.py`

The Annotate widget in instant mode over a view of the given size; strokes are painted through
the layer, as napari's brush does, and the time runs until the layer of the instant prediction
has new pixels. Needs a display, for example ``xvfb-run -a -s "-screen 0 1280x800x24"``.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SIZE = (1280, 800)
SIDE = 4096
"""Pixels along a side of the image."""


def pump(seconds: float, until: Callable[[], bool] = lambda: False) -> None:
    """Run the event loop for a while, or until something is true."""
    from qtpy.QtCore import QEventLoop, QTimer

    loop, look = QEventLoop(), QTimer()
    look.timeout.connect(lambda: loop.quit() if until() else None)
    look.start(10)
    QTimer.singleShot(int(1000 * seconds), loop.quit)
    loop.exec_() if hasattr(loop, "exec_") else loop.exec()
    look.stop()


def make_image() -> np.ndarray:
    """Coarse grain on the left, fine grain on the right."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(0).normal(size=(SIDE, SIDE)).astype(np.float32)
    grains = [gaussian_filter(noise, sigma) for sigma in (6, 1)]
    halves = [grain / grain.std() for grain in grains]
    image = np.where(np.arange(SIDE) < SIDE // 2, *halves)
    return (128 + 30 * image).clip(0, 255).astype(np.uint8)


def paint(window: Any, row: int, column: int, value: int) -> None:
    """One stroke of 12 x 60 pixels of the window."""
    rows = np.clip(np.arange(row, row + 12), 0, window.data.shape[0] - 1)
    columns = np.clip(np.arange(column, column + 60), 0, window.data.shape[1] - 1)
    grid = np.meshgrid(rows, columns, indexing="ij")
    window.data_setitem(tuple(axis.ravel() for axis in grid), value)


def measure(viewer: Any, widget: Any, strokes: int) -> list[float]:
    """Seconds from the end of each stroke to the changed layer."""
    window = viewer.layers.selection.active
    height, width = window.data.shape
    name = f"{widget.image.name}: instant prediction"
    rng, seconds = np.random.default_rng(1), []
    for number in range(strokes + 2):
        value = 1 + number % 2
        column = width // 8 if value == 1 else 5 * width // 8
        paint(window, int(rng.integers(0, height - 12)), column, value)
        before = time.perf_counter()
        drawn: list[float] = []
        if number == 0:
            pump(1)  # one class alone predicts nothing
            continue
        if name in viewer.layers:
            event = viewer.layers[name].events.set_data
            event.connect(lambda *_, drawn=drawn: drawn.append(time.perf_counter()))
        is_first = number == 1
        pump(120, lambda drawn=drawn, is_first=is_first: bool(drawn) or (
            is_first and name in viewer.layers))
        taken = (drawn[0] if drawn else time.perf_counter()) - before
        print(f"stroke {number}: {taken:.2f} s" + (" (first, features computed)"
                                                   if number == 1 else ""), flush=True)
        if number > 1:
            seconds.append(taken)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strokes", type=int, default=10)
    parser.add_argument("--model", default="", help="run folder whose features are used too")
    given = parser.parse_args()
    import napari

    from napari_muvit.plugin.annotate_widget import AnnotateWidget

    with tempfile.TemporaryDirectory() as home:
        os.environ["XDG_CACHE_HOME"] = home
        viewer = napari.Viewer(show=True, show_welcome_screen=False)
        viewer.window.resize(*SIZE)
        viewer.add_image(make_image(), name="grain")
        widget = AnnotateWidget(viewer)
        viewer.window.add_dock_widget(widget, area="right")
        viewer.reset_view()
        viewer.scene.camera.zoom = 1.0
        pump(1)
        widget.folder.set_path(str(Path(home) / "annotations"))
        if given.model:
            widget.instant.folder.set_path(given.model)
        widget.here.click()
        widget.instant.switch.setChecked(True)
        seconds = measure(viewer, widget, given.strokes)
        view = viewer.layers["grain: instant prediction"].data.shape
        print(f"view of {view[0]} x {view[1]} pixels, {len(seconds)} strokes: median "
              f"{np.median(seconds):.2f} s, max {max(seconds):.2f} s")
        viewer.close()


if __name__ == "__main__":
    main()
