"""What goes wrong in the middle of something long that had begun well."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from qtpy.QtWidgets import QFileDialog
from strokes import FULL, moved, open_colours

from napari_muvit import api
from napari_muvit.data.live_cache import LiveCache
from napari_muvit.plugin import predict_widget

pytestmark = pytest.mark.faults
WAIT_MS = 60_000
LIVE, WHOLE = "board: live prediction", "board: prediction"
GONE = "board.ome.zarr is gone"


@pytest.fixture(autouse=True)
def _piece_by_piece(nothing_is_kept: None) -> None:
    """As a large image is read."""


@pytest.fixture
def predict(
    board: Path, open_widget: Any, trained: SimpleNamespace, qtbot: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    monkeypatch.setattr(predict_widget, "cache_folder", lambda: tmp_path / "cache")
    widget = open_widget("MuViT: Predict")
    widget.device.setCurrentText("cpu")
    widget.folder.set_path(str(shutil.copytree(trained.run, tmp_path / "run")))
    widget.output.set_path(str(tmp_path / "out.ome.zarr"))
    qtbot.waitUntil(lambda: widget.model is not None, timeout=WAIT_MS)
    return widget


def is_idle(widget: Any) -> bool:
    """No job, no progress, and what can be pressed can be pressed."""
    buttons = (widget.view, widget.whole, widget.live)
    is_free = widget.job is None and not widget.cancel.isEnabled()
    return is_free and widget.progress.value() <= 0 and all(b.isEnabled() for b in buttons)


def when_begun(monkeypatch: pytest.MonkeyPatch, verb: str, happens: Callable[[], Any]) -> None:
    """Let something happen after the first event of a verb of the engine."""
    real = getattr(api, verb)

    def generate(*arguments: Any, **options: Any) -> Any:
        for number, event in enumerate(real(*arguments, **options)):
            yield event
            if number == 0:
                happens()

    monkeypatch.setattr(api, verb, generate)


def finest(layer: Any) -> np.ndarray:
    return np.asarray(layer.data[0] if layer.multiscale else layer.data)


def is_predicted(layer: Any) -> bool:
    """Whether most of it has classes; parts without tissue stay empty."""
    return bool((finest(layer)[30:160, 60:190] > 0).mean() > 0.9)


# -- prediction of the whole image -----------------------------------------------------------


def test_image_deleted_while_the_whole_is_predicted(
    predict: Any, board: Path, viewer: Any, qtbot: Any, notices: list[str],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:
    """What was predicted stays, and the rest comes when the image is back."""
    with monkeypatch.context() as patch:
        when_begun(patch, "predict_to_zarr", lambda: moved(board))
        predict.whole.click()
        qtbot.waitUntil(lambda: is_idle(predict), timeout=WAIT_MS)
    assert len(notices) == 1
    assert GONE in notices[0]
    assert "predict again" in predict.note.text()
    board.with_name("elsewhere").rename(board)
    predict.whole.click()
    qtbot.waitUntil(lambda: is_idle(predict), timeout=WAIT_MS)
    assert len(notices) == 1
    expected = np.asarray(api.predict(str(board), predict.folder.path))
    assert np.array_equal(finest(viewer.layers[WHOLE]), expected)


def test_layer_removed_while_the_whole_is_predicted(
    predict: Any, viewer: Any, qtbot: Any, notices: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It goes on, since it is written to disk."""
    when_begun(monkeypatch, "predict_to_zarr", lambda: None)
    predict.whole.click()
    viewer.layers.remove("board")
    qtbot.waitUntil(lambda: predict.job is None, timeout=WAIT_MS)
    assert notices == []
    assert is_predicted(viewer.layers[WHOLE])
    assert not predict.cancel.isEnabled()
    assert not predict.whole.isEnabled()
    assert predict.progress.value() <= 0


def test_output_of_another_model_is_left_alone(
    predict: Any, qtbot: Any, notices: list[str], tmp_path: Path
) -> None:
    predict.whole.click()
    qtbot.waitUntil(lambda: is_idle(predict), timeout=WAIT_MS)
    store = tmp_path / "out.ome.zarr"
    before = np.asarray(api.open_pyramid(str(store)).level_image(1))
    for weights in Path(predict.folder.path).glob("model*/*.safetensors"):
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    predict.whole.click()
    qtbot.waitUntil(lambda: is_idle(predict), timeout=WAIT_MS)
    assert len(notices) == 1
    assert "out.ome.zarr" in notices[0]
    assert np.array_equal(np.asarray(api.open_pyramid(str(store)).level_image(1)), before)


def test_outlines_that_cannot_be_written(
    predict: Any, qtbot: Any, notices: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predict.whole.click()
    qtbot.waitUntil(lambda: predict.results.isVisible(), timeout=WAIT_MS)

    def fail(*arguments: Any, **options: Any) -> Any:
        raise FULL

    path = str(tmp_path / "out.geojson")
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (path, ""))
    with monkeypatch.context() as patch:
        patch.setattr(api, "export_outlines", fail)
        predict.results.export.click()
        assert not predict.results.export.isEnabled()
        qtbot.waitUntil(lambda: bool(notices), timeout=WAIT_MS)
    assert notices == ["No space left on device: store."]
    assert predict.results.export.isEnabled()
    predict.results.export.click()
    qtbot.waitUntil(lambda: len(notices) == 2, timeout=WAIT_MS)
    assert f"outlines were written to {path}" in notices[1]
    assert Path(path).is_file()


# -- training ----------------------------------------------------------------------------------


def test_labels_deleted_while_fine_tuning(
    open_widget: Any, viewer: Any, trained: SimpleNamespace, tmp_path: Path, qtbot: Any,
    notices: list[str],
) -> None:
    """Without them it would go on and learn from nothing."""
    labels = Path(shutil.copytree(trained.labels, tmp_path / "labels.ome.zarr"))
    widget = open_widget("MuViT: Fine-tune")
    widget.form.set_values({
        "levels": (1, 4), "crop_size": (32,), "preset": "tiny", "steps": 5000, "batch_size": 2,
        "tissue": "none", "checkpoint_every": 2, "threads": 1, "device": "cpu",
    })
    widget.sources.add(str(trained.image), str(labels))
    widget.output.set_path(str(tmp_path / "run"))
    widget.detached.setChecked(False)
    widget.start.click()
    qtbot.waitUntil(lambda: widget.view.picture is not None and widget.view.picture.step > 2,
                    timeout=WAIT_MS)
    moved(labels)
    qtbot.waitUntil(lambda: widget.control is None, timeout=WAIT_MS)
    assert len(notices) == 1
    assert "labels.ome.zarr is gone" in notices[0]
    qtbot.waitUntil(lambda: widget.resume.isEnabled(), timeout=WAIT_MS)
    assert widget.start.isEnabled()
    assert not widget.stop.isEnabled()
    step = widget.view.picture.step
    labels.with_name("elsewhere").rename(labels)
    widget.resume.click()
    qtbot.waitUntil(lambda: widget.view.picture is not None and widget.view.picture.step > step,
                    timeout=WAIT_MS)
    widget.stop.click()
    qtbot.waitUntil(lambda: widget.control is None, timeout=WAIT_MS)
    assert len(notices) == 1


# -- live prediction -------------------------------------------------------------------------


def test_image_deleted_during_live_is_told_once(
    predict: Any, board: Path, viewer: Any, qtbot: Any, notices: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = api.LivePrediction

    def make(*arguments: Any, **options: Any) -> Any:
        engine = real(*arguments, **options)
        moved(board)
        return engine

    with monkeypatch.context() as patch:
        patch.setattr(api, "LivePrediction", make)
        predict.live.click()
        qtbot.waitUntil(lambda: bool(notices), timeout=WAIT_MS)
    qtbot.waitUntil(lambda: predict.note.text() == "", timeout=WAIT_MS)
    qtbot.wait(300)
    assert len(notices) == 1
    assert GONE in notices[0]
    assert not finest(viewer.layers[LIVE]).any()
    predict.live.click()
    qtbot.waitUntil(lambda: is_idle(predict), timeout=WAIT_MS)
    board.with_name("elsewhere").rename(board)
    predict.live.click()
    qtbot.waitUntil(lambda: LIVE in viewer.layers
                    and is_predicted(viewer.layers[LIVE]), timeout=WAIT_MS)
    predict.live.click()


@pytest.mark.parametrize(("failure", "said"), [
    (FULL, "No space left on device"), (MemoryError(), "memory"),
])
def test_live_that_fails_midway_says_so_and_starts_again(
    failure: Exception, said: str, predict: Any, viewer: Any, qtbot: Any, notices: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(LiveCache, "write", fail)
        predict.live.click()
        qtbot.waitUntil(lambda: bool(notices), timeout=WAIT_MS)
        qtbot.wait(300)
    assert len(notices) == 1
    assert said in notices[0]
    assert notices[0].endswith(".")
    qtbot.waitUntil(lambda: is_idle(predict), timeout=WAIT_MS)
    assert not predict.live.isChecked()
    assert predict.note.text() == ""
    predict.live.click()
    qtbot.waitUntil(lambda: LIVE in viewer.layers
                    and is_predicted(viewer.layers[LIVE]), timeout=WAIT_MS)
    predict.live.click()


# -- features --------------------------------------------------------------------------------


@pytest.fixture
def features(board: Path, open_widget: Any, trained: SimpleNamespace, qtbot: Any) -> Any:
    widget = open_widget("MuViT: Features")
    widget.device.setCurrentText("cpu")
    widget.folder.set_path(str(trained.run))
    qtbot.waitUntil(lambda: widget.compute.isEnabled(), timeout=WAIT_MS)
    return widget


def test_image_deleted_while_features_are_computed(
    features: Any, board: Path, viewer: Any, qtbot: Any, notices: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = api.features

    def lazily(*arguments: Any, **options: Any) -> Any:
        found = real(*arguments, **options)
        if board.exists():
            moved(board)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(api, "features", lazily)
        features.compute.click()
        qtbot.waitUntil(lambda: bool(notices), timeout=WAIT_MS)
    qtbot.waitUntil(lambda: features.job is None and features.compute.isEnabled(),
                    timeout=WAIT_MS)
    assert len(notices) == 1
    assert GONE in notices[0]
    assert features.progress.value() <= 0
    assert not features.cancel.isEnabled()
    board.with_name("elsewhere").rename(board)
    features.compute.click()
    qtbot.waitUntil(lambda: "features, level 1" in viewer.layers, timeout=WAIT_MS)


@pytest.mark.parametrize("other", ["compute", "attended"])
def test_features_of_an_image_with_other_channels(
    other: str, viewer: Any, open_widget: Any, trained: SimpleNamespace, tmp_path: Path,
    qtbot: Any, notices: list[str],
) -> None:
    open_colours(viewer, tmp_path)
    widget = open_widget("MuViT: Features")
    widget.device.setCurrentText("cpu")
    widget.folder.set_path(str(trained.run))
    qtbot.waitUntil(lambda: widget.compute.isEnabled(), timeout=WAIT_MS)
    if other == "compute":
        widget.compute.click()
    else:
        widget.show_attended((40, 40))
    qtbot.waitUntil(lambda: bool(notices), timeout=WAIT_MS)
    assert len(notices) == 1
    assert "3 channels" in notices[0]
    qtbot.waitUntil(lambda: widget.compute.isEnabled() and not widget.cancel.isEnabled(),
                    timeout=WAIT_MS)
    assert widget.progress.value() <= 0
