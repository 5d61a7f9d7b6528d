"""What goes wrong while something long is under way: one sentence, and nothing hangs."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from strokes import paint, saved

from napari_muvit import api
from napari_muvit.errors import InputError
from napari_muvit.plugin import predict_widget

pytestmark = pytest.mark.faults
WAIT_MS = 60_000
LIVE = "board: live prediction"


@pytest.fixture
def image(trained: SimpleNamespace, tmp_path: Path) -> Path:
    """A copy of the image, to be deleted."""
    return Path(shutil.copytree(trained.image, tmp_path / "board.ome.zarr"))


@pytest.fixture
def widget(
    viewer: Any, open_widget: Any, trained: SimpleNamespace, qtbot: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, image: Path,
) -> Any:
    monkeypatch.setattr(predict_widget, "cache_folder", lambda: tmp_path / "cache")
    run = shutil.copytree(trained.run, tmp_path / "run")
    viewer.open(str(image), plugin="napari-muvit")
    widget = open_widget("MuViT: Predict")
    widget.device.setCurrentText("cpu")
    widget.folder.set_path(str(run))
    qtbot.waitUntil(lambda: widget.model is not None, timeout=WAIT_MS)
    return widget


def is_idle(widget: Any) -> bool:
    """No job, no progress, and what can be pressed can be pressed."""
    buttons = (widget.view, widget.whole, widget.live)
    is_free = widget.job is None and not widget.cancel.isEnabled()
    return is_free and widget.progress.value() <= 0 and all(b.isEnabled() for b in buttons)


@pytest.mark.parametrize("button", ["live", "view", "whole"])
def test_image_file_that_is_gone_is_named(
    widget: Any, image: Path, button: str, notices: list[str], qtbot: Any
) -> None:
    shutil.rmtree(image)
    getattr(widget, button).click()
    qtbot.waitUntil(lambda: bool(notices), timeout=WAIT_MS)
    assert len(notices) == 1
    assert "board.ome.zarr" in notices[0]
    assert notices[0].endswith(".")
    qtbot.waitUntil(lambda: is_idle(widget), timeout=WAIT_MS)
    assert not widget.live.isChecked()


@pytest.mark.parametrize("failure", [
    MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
    OSError(28, "No space left on device", "cache"),
])
def test_live_that_cannot_start_says_why(
    widget: Any, failure: Exception, notices: list[str], qtbot: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise failure

    monkeypatch.setattr(api, "LivePrediction", fail)
    widget.live.click()
    qtbot.waitUntil(lambda: bool(notices), timeout=WAIT_MS)
    assert len(notices) == 1
    assert notices[0].endswith(".")
    assert "Traceback" not in notices[0]
    assert is_idle(widget)


def test_checkpoint_of_other_levels_is_told_once(
    widget: Any, viewer: Any, notices: list[str], qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(engine: Any, model: Any) -> None:
        raise InputError("the new model reads levels (1, 8), the present one (1, 4).")

    monkeypatch.setattr(api.LivePrediction, "swap_model", refuse)
    widget.follow.setChecked(True)
    widget.live.click()
    qtbot.waitUntil(lambda: LIVE in viewer.layers, timeout=WAIT_MS)
    for _ in range(2):
        for weights in Path(widget.folder.path).glob("model*/*.safetensors"):
            status = weights.stat()
            os.utime(weights, (status.st_atime, status.st_mtime + 10))
        qtbot.wait(4000)
    assert len([n for n in notices if "levels (1, 8)" in n]) == 1
    assert widget.live.isChecked()
    widget.live.click()


def test_viewer_closed_while_the_whole_image_is_predicted(
    widget: Any, viewer: Any, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold, closed = threading.Event(), threading.Event()

    def slow(*arguments: Any, **options: Any) -> Any:
        try:
            for done in range(100):
                hold.wait(60)
                yield SimpleNamespace(done=done, total=100, remaining=1.0)
        finally:
            closed.set()

    monkeypatch.setattr(api, "predict_to_zarr", slow)
    widget.output.set_path(str(tmp_path / "out.ome.zarr"))
    widget.whole.click()
    viewer.close()
    hold.set()
    qtbot.waitUntil(closed.is_set, timeout=WAIT_MS)
    qtbot.waitUntil(
        lambda: not any(t.name == "muvit-job" for t in threading.enumerate()), timeout=WAIT_MS)


def test_view_layer_removed_stops_the_prediction(
    widget: Any, viewer: Any, qtbot: Any, notices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import dask.array as da

    computed: list[int] = []
    hold = threading.Event()

    def label(block: np.ndarray) -> np.ndarray:
        hold.wait(60)
        time.sleep(0.1)
        computed.append(1)
        return np.ones(block.shape, np.uint8)

    def lazily(pyramid: Any, *arguments: Any, **options: Any) -> Any:
        zeros = da.zeros(pyramid.spatial_shape, chunks=32, dtype=np.uint8)
        return zeros.map_blocks(label, meta=np.empty((0, 0), np.uint8))

    monkeypatch.setattr(api, "predict", lazily)
    widget.view.click()
    viewer.layers.remove("board: prediction in view")
    hold.set()
    qtbot.waitUntil(lambda: is_idle(widget), timeout=WAIT_MS)
    assert len(computed) < 10
    assert "layer was removed" in widget.note.text()
    assert notices == []


@pytest.fixture
def annotate(viewer: Any, open_widget: Any, image: Path) -> Any:
    viewer.open(str(image), plugin="napari-muvit")
    widget = open_widget("MuViT: Annotate")
    widget.level.setCurrentText("level 1")
    widget.here.click()
    return widget


def test_window_removed_while_it_is_painted(
    annotate: Any, viewer: Any, qtbot: Any, notices: list[str], tmp_path: Path
) -> None:
    layer = viewer.layers.selection.active
    event = SimpleNamespace(type="mouse_press", position=(1, 1), button=1, modifiers=())
    (opened,) = annotate.session.windows.values()
    stroke = opened._on_drag(layer, event)
    next(stroke)
    paint(layer, 2)
    # napari 0.9 may crash in drawing where a layer goes before its pixels went to the card.
    qtbot.wait(100)
    viewer.layers.remove(layer)
    store = tmp_path / "board_annotations.ome.zarr"
    qtbot.waitUntil(lambda: saved(store) == {2: 160}, timeout=WAIT_MS)
    assert notices == []


def test_viewer_closed_in_instant_mode_keeps_the_strokes(
    annotate: Any, viewer: Any, qtbot: Any, tmp_path: Path
) -> None:
    layer = viewer.layers.selection.active
    annotate.instant.switch.click()
    for value in (1, 2):
        paint(layer, value)
    viewer.close()
    store = tmp_path / "board_annotations.ome.zarr"
    qtbot.waitUntil(lambda: saved(store) == {1: 160, 2: 160}, timeout=WAIT_MS)


def test_viewer_closed_during_an_import(
    annotate: Any, viewer: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, hold, done = threading.Event(), threading.Event(), threading.Event()

    def slow(*arguments: Any, **options: Any) -> None:
        begun.set()
        hold.wait(60)
        done.set()

    monkeypatch.setattr(api, "paint_labels", slow)
    viewer.add_labels(np.ones((192, 256), np.uint8), name="drawn", scale=(0.5, 0.5),
                      units=("um",) * 2)
    annotate.files.import_labels()
    qtbot.waitUntil(begun.is_set, timeout=WAIT_MS)
    viewer.close()
    hold.set()
    qtbot.waitUntil(done.is_set, timeout=WAIT_MS)


def test_image_removed_while_crops_are_read(
    viewer: Any, open_widget: Any, image: Path, notices: list[str], qtbot: Any
) -> None:
    viewer.open(str(image), plugin="napari-muvit")
    widget = open_widget("MuViT: Crops")
    widget.centre.click()
    viewer.layers.remove("board")
    qtbot.waitUntil(lambda: not widget._reader.is_busy, timeout=WAIT_MS)
    assert notices == []
    assert not widget.copy.isEnabled()


def test_crops_of_a_file_that_is_gone_are_named(
    viewer: Any, open_widget: Any, image: Path, notices: list[str], qtbot: Any
) -> None:
    viewer.open(str(image), plugin="napari-muvit")
    shutil.rmtree(image)
    crops = open_widget("MuViT: Crops")
    assert len(notices) == 1
    assert "board.ome.zarr" in notices[0]
    assert not crops.copy.isEnabled()
    annotate = open_widget("MuViT: Annotate")
    assert len(notices) == 2
    assert not annotate.here.isEnabled()
