"""Prediction with a real model in a real viewer: live, in view, and whole."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import Qt

from napari_muvit import api
from napari_muvit.__main__ import main
from napari_muvit.inference.live import LivePrediction
from napari_muvit.plugin import predict_widget, remembered

WAIT_MS = 60_000
LIVE = "board: live prediction"


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


def is_complete(viewer: Any) -> bool:
    """Whether what is in view has classes (cells without tissue stay empty)."""
    if LIVE not in viewer.layers:
        return False
    shown = np.asarray(viewer.layers[LIVE].data)[30:160, 60:190]
    return bool((shown > 0).mean() > 0.9)


def start_live(widget: Any, viewer: Any, qtbot: Any) -> Any:
    widget.live.click()
    qtbot.waitUntil(lambda: is_complete(viewer), timeout=WAIT_MS)
    return viewer.layers[LIVE]


def test_live_fills_the_view(widget: Any, viewer: Any, qtbot: Any) -> None:
    layer = start_live(widget, viewer, qtbot)
    assert np.allclose(layer.data_to_world((0, 0)), viewer.layers["board"].data_to_world((0, 0)))
    assert list(layer.features["class"]) == ["dark", "bright"]
    assert widget.live.isChecked()
    widget.live.click()
    assert widget.session is None
    assert not widget.live.isChecked()
    assert is_complete(viewer)


def test_live_starts_again_while_it_is_being_closed(
    widget: Any, viewer: Any, qtbot: Any, notices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start_live(widget, viewer, qtbot)
    close, may_close = LivePrediction.close, threading.Event()
    monkeypatch.setattr(LivePrediction, "close", lambda self: may_close.wait(60) and close(self))
    widget.live.click()
    widget.live.click()
    qtbot.wait(300)
    assert not widget.session.is_running
    may_close.set()
    qtbot.waitUntil(lambda: widget.session.is_running, timeout=WAIT_MS)
    assert notices == []


def test_confidence_lies_beside_the_labels(
    widget: Any, viewer: Any, qtbot: Any, open_widget: Any
) -> None:
    layer = start_live(widget, viewer, qtbot)
    assert "board: live confidence" not in viewer.layers
    chosen = viewer.layers.selection.active.name
    widget.confidence.click()
    sure = viewer.layers["board: live confidence"]
    assert sure.visible
    assert viewer.layers.selection.active.name == chosen
    names = [each.name for each in viewer.layers]
    assert names.index(sure.name) < names.index(layer.name)
    assert np.allclose(sure.data_to_world((3, 5)), layer.data_to_world((3, 5)))
    known = np.asarray(layer.data) > 0
    # Two classes: the one that is shown has at least half of the probability.
    assert (np.asarray(sure.data)[known] >= 127).all()
    assert "board: live confidence" not in [c.name for c in widget.picker._choices]
    assert open_widget("MuViT: Fine-tune").sources.labels.layer is None
    widget.confidence.click()
    assert not sure.visible
    viewer.layers.remove(sure)
    qtbot.wait(400)
    assert widget.live.isChecked()
    widget.confidence.click()
    assert viewer.layers["board: live confidence"].visible
    widget.live.click()
    assert not widget.uncertain.isEnabled()


def test_next_uncertain_place_is_gone_to(
    widget: Any, viewer: Any, qtbot: Any, open_widget: Any, notices: list[str], tmp_path: Path,
) -> None:
    start_live(widget, viewer, qtbot)
    places = []
    for _ in range(2):
        widget.uncertain.click()
        places.append(tuple(viewer.scene.camera.center[-2:]))
    assert len(set(places)) == 2
    (first, *_) = widget.session._engine.most_uncertain(1)
    middle = viewer.layers["board"].data_to_world(first.box.mean(axis=0))
    assert np.allclose(places[0], middle)
    annotate = open_widget("MuViT: Annotate")
    annotate.folder.set_path(str(tmp_path / "mine"))
    annotate.picker.choose("board")
    annotate.here.click()
    annotate.instant.next.click()
    assert tuple(viewer.scene.camera.center[-2:]) not in places
    assert notices == []
    widget.live.click()
    annotate.instant.next.click()
    assert "nothing is predicted yet" in notices[-1]


def test_live_starts_again_from_its_cache(widget: Any, viewer: Any, qtbot: Any) -> None:
    start_live(widget, viewer, qtbot)
    widget.live.click()
    # The model ends its tile in a thread; until then cells are drawn again as others come.
    qtbot.waitUntil(lambda: not any(
        thread.name in ("muvit-live", "muvit-close") for thread in threading.enumerate()
    ), timeout=WAIT_MS)
    first = np.array(viewer.layers[LIVE].data)
    viewer.layers.remove(LIVE)
    start_live(widget, viewer, qtbot)
    known = first > 0
    assert np.array_equal(np.asarray(viewer.layers[LIVE].data)[known], first[known])
    widget.live.click()


def test_live_ends_with_its_layer(
    widget: Any, viewer: Any, qtbot: Any, notices: list[str]
) -> None:
    start_live(widget, viewer, qtbot)
    viewer.layers.remove(LIVE)
    qtbot.waitUntil(lambda: widget.session is None, timeout=WAIT_MS)
    assert not widget.live.isChecked()
    assert notices == []


def test_live_follows_a_newer_checkpoint(
    widget: Any, viewer: Any, qtbot: Any, trained: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    swapped = []
    swap = api.LivePrediction.swap_model
    monkeypatch.setattr(api.LivePrediction, "swap_model",
                        lambda self, model: (swapped.append(model), swap(self, model)))
    widget.follow.setChecked(True)
    start_live(widget, viewer, qtbot)
    for weights in trained.run.glob("model*/*.safetensors"):
        status = weights.stat()
        os.utime(weights, (status.st_atime, status.st_mtime + 10))
    qtbot.waitUntil(lambda: bool(swapped), timeout=WAIT_MS)
    widget.live.click()


def test_view_and_whole_agree_with_the_console(
    widget: Any, viewer: Any, qtbot: Any, trained: SimpleNamespace, tmp_path: Path
) -> None:
    expected = np.asarray(api.predict(str(trained.image), str(trained.run)))
    widget.output.set_path(str(tmp_path / "out.ome.zarr"))
    widget.whole.click()
    qtbot.waitUntil(lambda: widget.job is None, timeout=WAIT_MS)
    data = viewer.layers["board: prediction"].data
    whole = np.asarray(data[0] if viewer.layers["board: prediction"].multiscale else data)
    assert np.array_equal(whole, expected)
    widget.view.click()
    qtbot.waitUntil(lambda: widget.job is None, timeout=WAIT_MS)
    layer = viewer.layers["board: prediction in view"]
    top, left = (round(2 * value) for value in layer.data_to_world((0, 0)))
    height, width = layer.data.shape
    assert np.array_equal(layer.data, expected[top : top + height, left : left + width])


def test_a_store_goes_on_at_the_command_line_and_back(
    widget: Any, viewer: Any, qtbot: Any, trained: SimpleNamespace, tmp_path: Path
) -> None:
    arguments = ["predict", str(trained.image), "--model", str(trained.run), "--device", "cpu"]
    widget.output.set_path(str(tmp_path / "here.ome.zarr"))
    widget.whole.click()
    qtbot.waitUntil(lambda: widget.job is None, timeout=WAIT_MS)
    before = written_at(tmp_path / "here.ome.zarr")
    assert main([*arguments, "--output", str(tmp_path / "here.ome.zarr")]) == 0
    assert written_at(tmp_path / "here.ome.zarr") == before
    assert main([*arguments, "--output", str(tmp_path / "there.ome.zarr")]) == 0
    before = written_at(tmp_path / "there.ome.zarr")
    widget.output.set_path(str(tmp_path / "there.ome.zarr"))
    viewer.layers.remove("board: prediction")
    widget.whole.click()
    qtbot.waitUntil(lambda: "board: prediction" in viewer.layers, timeout=WAIT_MS)
    assert written_at(tmp_path / "there.ome.zarr") == before


def written_at(store: Path) -> dict[str, int]:
    """When each chunk of the finest labels was written."""
    return {str(path): path.stat().st_mtime_ns for path in (store / "0" / "c").rglob("*")
            if path.is_file()}


def test_queue_predicts_several_and_leaves_out_what_is_damaged(
    widget: Any, viewer: Any, qtbot: Any, trained: SimpleNamespace, tmp_path: Path,
    notices: list[str],
) -> None:
    run = shutil.copytree(trained.run, tmp_path / "run")
    second = shutil.copytree(trained.image, tmp_path / "second.ome.zarr")
    broken = tmp_path / "broken.tif"
    broken.write_bytes(b"no picture")
    widget.folder.set_path(str(run))
    qtbot.waitUntil(lambda: widget.model is not None, timeout=WAIT_MS)
    assert not widget.queue.start.isEnabled()
    widget.queue.sources.add_layer.click()
    for path in (broken, second):
        widget.queue.sources.add(str(path))
    widget.queue.start.click()
    qtbot.waitUntil(lambda: widget.job is None, timeout=WAIT_MS)
    folder = run / "predictions"
    assert sorted(p.name for p in folder.iterdir()) == [
        "areas.csv", "board.ome.zarr", "second.ome.zarr"]
    assert any("broken.tif is left out" in notice for notice in notices)
    assert widget.results.table.item(0, 0).text() == "board: dark"
    assert str(folder) in widget.note.text()


def test_region_and_outlines(widget: Any, viewer: Any, qtbot: Any, tmp_path: Path) -> None:
    viewer.add_shapes([np.array([[30, 40], [30, 60], [50, 60], [50, 40]])], name="part",
                      units=("um", "um"))
    widget.region.refresh()
    widget.region._combo.setCurrentText("part")
    widget.output.set_path(str(tmp_path / "part.ome.zarr"))
    widget.whole.click()
    qtbot.waitUntil(lambda: widget.job is None, timeout=WAIT_MS)
    labels = api.open_pyramid(str(tmp_path / "part.ome.zarr")).level_image(1)[0]
    assert (labels[70:90, 90:110] > 0).all()
    assert not labels[:20].any()
    assert widget.results.isVisible()
    assert widget.results.table.item(0, 0).text() == "dark"
    with qtbot.waitSignal(widget.results.exported, timeout=WAIT_MS):
        widget.results.export_to(tmp_path / "part.geojson")
    assert "FeatureCollection" in (tmp_path / "part.geojson").read_text()


def test_console(viewer: Any, trained: SimpleNamespace, qtbot: Any, tmp_path: Path) -> None:
    from napari_muvit.plugin import lazy_labels, live_prediction, show_crops

    viewer.open(str(trained.image), plugin="napari-muvit")
    assert len(show_crops(viewer, "board", levels=(1, 2), size=64).data) == 2
    lazy = lazy_labels(viewer, trained.run, "board", box=((19.5, 29.5), (59.5, 89.5)))
    expected = np.asarray(api.predict(str(trained.image), str(trained.run)))
    assert np.array_equal(np.asarray(lazy.data), expected[20:60, 30:90])
    session = live_prediction(viewer, trained.run, "board", device="cpu", cache=tmp_path)
    qtbot.waitUntil(lambda: is_complete(viewer), timeout=WAIT_MS)
    session.stop()


def test_training_samples(
    viewer: Any, open_widget: Any, trained: SimpleNamespace, qtbot: Any
) -> None:
    viewer.open(str(trained.image), plugin="napari-muvit")
    widget = open_widget("MuViT: Crops")
    widget.size.setValue(64)
    widget.levels_edit.setText("1, 2")
    widget.levels_edit.editingFinished.emit()
    boxes = []
    for number in range(2):
        widget.sample.click()
        said = f"Training sample {number}:"
        qtbot.waitUntil(lambda said=said: widget.note.text().startswith(said), timeout=WAIT_MS)
        boxes.append(np.array(viewer.layers["MuViT crops"].data))
        assert widget.thumbnails.count() == 4
    assert not np.allclose(boxes[0], boxes[1])


def test_image_of_other_channels_is_refused(
    widget: Any, viewer: Any, notices: list[str], qtbot: Any
) -> None:
    viewer.add_image(np.zeros((64, 64, 3), np.uint8), rgb=True, name="colours", units=("um",) * 2)
    widget.picker.choose("colours")
    for button in (widget.live, widget.view, widget.whole):
        button.click()
    qtbot.waitUntil(lambda: len(notices) == 3, timeout=WAIT_MS)
    assert all("3 channels" in notice for notice in notices)
    assert not widget.live.isChecked()
    assert widget.view.isEnabled()


def test_whole_result_and_live_prediction_do_not_cover_each_other(
    widget: Any, viewer: Any, qtbot: Any, tmp_path: Path, notices: list[str]
) -> None:
    live = start_live(widget, viewer, qtbot)
    widget.output.set_path(str(tmp_path / "out.ome.zarr"))
    widget.whole.click()
    qtbot.waitUntil(lambda: widget.job is None, timeout=WAIT_MS)
    whole = viewer.layers["board: prediction"]
    assert (whole.visible, live.visible) == (True, False)
    assert widget.session is None
    assert not widget.live.isChecked()
    said = widget.note.text()
    assert "Live prediction was stopped. 'board: live prediction' is hidden" in said
    assert notices == []
    widget.live.click()
    qtbot.waitUntil(lambda: viewer.layers[LIVE].visible, timeout=WAIT_MS)
    assert not whole.visible
    assert "'board: prediction' is hidden" in notices[-1]
    widget.live.click()
    assert not whole.visible


def test_the_run_on_the_image_is_offered(
    viewer: Any, open_widget: Any, trained: SimpleNamespace, qtbot: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    remembered.remember(None, runs=str(trained.run.parent))
    viewer.open(str(trained.image), plugin="napari-muvit")
    widget = open_widget("MuViT: Predict")
    qtbot.waitUntil(lambda: widget.model is not None, timeout=WAIT_MS)
    assert widget.folder.path == str(trained.run)
    assert widget.known.currentText().startswith("run, on this image")
    shutil.copytree(trained.run, trained.run.parent / "again")
    try:
        widget.known.look()
        qtbot.waitUntil(lambda: widget.known.count() == 2, timeout=WAIT_MS)
        assert widget.folder.path == str(trained.run)
        assert widget.known.currentText().startswith("run")
        widget.known.activated.emit(widget.known.findText("again", Qt.MatchFlag.MatchStartsWith))
        assert widget.folder.path == str(trained.run.parent / "again")
        qtbot.waitUntil(lambda: widget.model is not None, timeout=WAIT_MS)
    finally:
        shutil.rmtree(trained.run.parent / "again")
