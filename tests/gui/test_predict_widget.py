"""The Predict widget in a real viewer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_muvit.errors import CheckpointError

WAIT_MS = 60_000

IMAGE = np.random.default_rng(1).integers(0, 255, (300, 400), dtype=np.uint8)


@pytest.fixture
def widget(viewer: Any, open_widget: Any, backend: Any, qtbot: Any) -> Any:
    viewer.add_image(IMAGE, name="tissue", scale=(0.5, 0.5), units=("um", "um"))
    widget = open_widget("MuViT: Predict")
    widget.folder.set_path("run")
    qtbot.waitUntil(lambda: widget.model is not None, timeout=WAIT_MS)
    return widget


def is_idle(widget: Any) -> bool:
    return bool(widget.job is None and widget.view.isEnabled() and not widget.cancel.isEnabled())


def test_buttons_wait_for_a_model(viewer: Any, open_widget: Any, backend: Any) -> None:
    viewer.add_image(IMAGE, name="tissue")
    widget = open_widget("MuViT: Predict")
    assert not widget.view.isEnabled()
    assert not widget.cancel.isEnabled()


def test_view(viewer: Any, widget: Any, qtbot: Any) -> None:
    widget.view.click()
    qtbot.waitUntil(lambda: is_idle(widget), timeout=WAIT_MS)
    layer = viewer.layers["tissue: prediction in view"]
    top, left = (round(2 * value) for value in layer.data_to_world((0, 0)))
    height, width = layer.data.shape
    shown = IMAGE[top : top + height, left : left + width]
    assert height * width > 10_000
    assert np.array_equal(layer.data, 1 + (shown > 127))
    assert list(layer.features["class"]) == ["dark", "bright"]
    assert np.allclose(layer.colormap.map(np.uint8(1)), (1, 0, 0, 1), atol=0.01)


def test_whole_image(viewer: Any, widget: Any, qtbot: Any, tmp_path: Path) -> None:
    widget.output.set_path(str(tmp_path / "labels.ome.zarr"))
    widget.whole.click()
    qtbot.waitUntil(lambda: is_idle(widget), timeout=WAIT_MS)
    layer = viewer.layers["tissue: prediction"]
    assert np.array_equal(np.asarray(layer.data), 1 + (IMAGE > 127))
    assert "labels.ome.zarr" in widget.note.text()


def test_a_region_has_an_output_of_its_own(
    viewer: Any, widget: Any, qtbot: Any, tmp_path: Path, notices: list[str]
) -> None:
    widget.folder.set_path(str(tmp_path / "run"))
    qtbot.waitUntil(lambda: widget.model is not None, timeout=WAIT_MS)
    viewer.add_shapes([[[10, 20], [10, 60], [50, 60], [50, 20]]], units=("um", "um"), name="here")
    widget.region._combo.setCurrentText("here")
    assert widget.whole.text() == "Predict region"
    widget.whole.click()
    qtbot.waitUntil(lambda: is_idle(widget), timeout=WAIT_MS)
    assert Path(widget.output.path).name == "tissue_20,40_to_100,120.ome.zarr"
    viewer.layers.remove("here")
    assert widget.whole.text() == "Predict whole image"
    widget.whole.click()
    qtbot.waitUntil(lambda: is_idle(widget), timeout=WAIT_MS)
    assert Path(widget.output.path).name == "tissue.ome.zarr"
    widget.view.click()
    qtbot.waitUntil(lambda: is_idle(widget), timeout=WAIT_MS)
    assert not viewer.layers["tissue: prediction"].visible
    assert notices[-1].startswith("'tissue: prediction' is hidden")


def test_an_empty_output_is_the_run_folder_and_a_folder_gets_a_store(
    viewer: Any, widget: Any, qtbot: Any, tmp_path: Path
) -> None:
    widget.folder.set_path(str(tmp_path / "run"))
    qtbot.waitUntil(lambda: widget.model is not None, timeout=WAIT_MS)
    for _ in range(2):
        widget.output.set_path("")
        widget.whole.click()
        qtbot.waitUntil(lambda: is_idle(widget), timeout=WAIT_MS)
        assert Path(widget.output.path) == tmp_path / "run" / "predictions" / "tissue.ome.zarr"
    results = tmp_path / "results"
    results.mkdir()
    (results / "notes.txt").write_text("mine", encoding="utf-8")
    widget.output.set_path(str(results))
    widget.whole.click()
    qtbot.waitUntil(lambda: is_idle(widget), timeout=WAIT_MS)
    assert f"in {results / 'tissue.ome.zarr'}" in widget.note.text()


def test_cancel(viewer: Any, widget: Any, backend: Any, qtbot: Any, tmp_path: Path) -> None:
    backend.hold.clear()
    widget.output.set_path(str(tmp_path / "labels.ome.zarr"))
    widget.whole.click()
    assert widget.cancel.isEnabled()
    assert not widget.whole.isEnabled()
    widget.cancel.click()
    backend.hold.set()
    qtbot.waitUntil(lambda: is_idle(widget), timeout=WAIT_MS)
    assert "tissue: prediction" not in viewer.layers
    assert "Cancelled" in widget.note.text()


@pytest.mark.parametrize("failure", [
    MemoryError(), CheckpointError("the model is damaged."), OSError(28, "No space left on device"),
])
def test_failure_is_said_and_buttons_return(
    failure: Exception, viewer: Any, widget: Any, backend: Any, notices: list[str], qtbot: Any,
    tmp_path: Path,
) -> None:
    backend.failure = failure
    widget.output.set_path(str(tmp_path / "labels.ome.zarr"))
    widget.whole.click()
    qtbot.waitUntil(lambda: is_idle(widget), timeout=WAIT_MS)
    assert len(notices) == 1
    assert notices[0].endswith(".")
    assert widget.progress.value() <= 0


def test_model_that_cannot_be_loaded(
    viewer: Any, widget: Any, backend: Any, notices: list[str], qtbot: Any
) -> None:
    backend.failure = CheckpointError("the model is damaged.")
    widget.folder.set_path("other")
    qtbot.waitUntil(lambda: bool(notices), timeout=WAIT_MS)
    assert notices == ["the model is damaged."]
    assert is_idle(widget)


def test_layer_removed_while_predicting(
    viewer: Any, widget: Any, backend: Any, notices: list[str], qtbot: Any
) -> None:
    backend.hold.clear()
    widget.view.click()
    viewer.layers.clear()
    backend.hold.set()
    qtbot.waitUntil(lambda: widget.job is None, timeout=WAIT_MS)
    assert notices == []
    assert not widget.view.isEnabled()
