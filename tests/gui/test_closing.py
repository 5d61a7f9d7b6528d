"""Viewers that are closed, and layers that go, while something long is under way."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from napari_muvit import api
from napari_muvit.plugin import predict_widget

pytestmark = pytest.mark.faults
WAIT_MS = 60_000


@pytest.fixture
def widget(
    viewer: Any, open_widget: Any, trained: SimpleNamespace, qtbot: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    monkeypatch.setattr(predict_widget, "cache_folder", lambda: tmp_path / "cache")
    viewer.open(str(trained.image), plugin="napari-muvit")
    widget = open_widget("MuViT: Predict")
    widget.device.setCurrentText("cpu")
    widget.folder.set_path(str(trained.run))
    qtbot.waitUntil(lambda: widget.model is not None, timeout=WAIT_MS)
    return widget


def has_thread(name: str) -> bool:
    return any(thread.name.startswith(name) for thread in threading.enumerate())


def test_viewer_closed_during_live(widget: Any, viewer: Any, qtbot: Any) -> None:
    widget.live.click()
    qtbot.waitUntil(lambda: "board: live prediction" in viewer.layers, timeout=WAIT_MS)
    viewer.close()
    qtbot.waitUntil(lambda: not has_thread("muvit-live"), timeout=WAIT_MS)


def test_widget_closed_during_live(
    widget: Any, viewer: Any, open_widget: Any, qtbot: Any, notices: list[str]
) -> None:
    widget.live.click()
    qtbot.waitUntil(lambda: "board: live prediction" in viewer.layers, timeout=WAIT_MS)
    viewer.window.remove_dock_widget(widget.parent())
    qtbot.waitUntil(lambda: not has_thread("muvit-l"), timeout=WAIT_MS)
    again = open_widget("MuViT: Predict")
    qtbot.waitUntil(lambda: again.model is not None, timeout=WAIT_MS)
    assert again.live.isEnabled()
    assert notices == []


def test_widget_closed_while_it_predicts_says_so(
    widget: Any, viewer: Any, qtbot: Any, notices: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = threading.Event()

    def predict(*arguments: Any, **options: Any) -> Any:
        yield SimpleNamespace(done=1, total=4, remaining=3.0)
        held.wait(60)
        yield SimpleNamespace(done=2, total=4, remaining=2.0)

    monkeypatch.setattr(api, "predict_to_zarr", predict)
    widget.output.set_path(str(tmp_path / "out.ome.zarr"))
    widget.whole.click()
    qtbot.waitUntil(lambda: widget.progress.value() > 0, timeout=WAIT_MS)
    viewer.window.remove_dock_widget(widget.parent())
    qtbot.waitUntil(lambda: bool(notices), timeout=WAIT_MS)
    held.set()
    qtbot.waitUntil(lambda: not has_thread("muvit-job"), timeout=WAIT_MS)
    assert len(notices) == 1
    assert "start again to go on" in notices[0]


def test_viewer_closed_while_live_is_planned(widget: Any, viewer: Any, qtbot: Any) -> None:
    widget.live.click()
    viewer.close()
    qtbot.waitUntil(lambda: not has_thread("muvit-l"), timeout=WAIT_MS)


def test_image_removed_during_live(
    widget: Any, viewer: Any, qtbot: Any, notices: list[str]
) -> None:
    widget.live.click()
    qtbot.waitUntil(lambda: "board: live prediction" in viewer.layers, timeout=WAIT_MS)
    viewer.layers.remove("board")
    qtbot.waitUntil(lambda: widget.session is None, timeout=WAIT_MS)
    assert not widget.live.isChecked()
    assert not widget.live.isEnabled()
    assert notices == []


def test_viewer_closed_during_training(
    viewer: Any, open_widget: Any, trained: SimpleNamespace, qtbot: Any, tmp_path: Path
) -> None:
    viewer.open(str(trained.image), plugin="napari-muvit")
    widget = open_widget("MuViT: Pretrain")
    widget.sources.add_layer.click()
    widget.form.set_values({
        "levels": (1, 4), "crop_size": (32,), "preset": "tiny", "steps": 5000, "batch_size": 2,
        "tissue": "none", "threads": 1, "device": "cpu",
    })
    widget.output.set_path(str(tmp_path / "run"))
    widget.detached.setChecked(False)
    widget.start.click()
    qtbot.waitUntil(lambda: widget.view.picture is not None and widget.view.picture.step > 0,
                    timeout=WAIT_MS)
    viewer.close()
    folder = api.RunFolder(tmp_path / "run")
    qtbot.waitUntil(lambda: folder.status().state == "stopped", timeout=WAIT_MS)


def test_disk_full_while_predicting(
    widget: Any, viewer: Any, qtbot: Any, notices: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        yield SimpleNamespace(done=1, total=4, remaining=3.0)
        raise OSError(28, "No space left on device", "out.ome.zarr")

    monkeypatch.setattr(api, "predict_to_zarr", fail)
    widget.output.set_path(str(tmp_path / "out.ome.zarr"))
    widget.whole.click()
    qtbot.waitUntil(lambda: widget.job is None, timeout=WAIT_MS)
    assert notices == ["No space left on device: out.ome.zarr."]
    assert widget.whole.isEnabled()
    assert np.isin(widget.progress.value(), (-1, 0))
