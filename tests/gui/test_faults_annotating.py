"""What goes wrong while annotating, in instant mode, and during imports and exports."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from qtpy.QtWidgets import QFileDialog
from strokes import FULL, moved, open_colours, paint, saved

from napari_muvit import api

pytestmark = pytest.mark.faults
WAIT_MS = 60_000


@pytest.fixture(autouse=True)
def _piece_by_piece(nothing_is_kept: None) -> None:
    """As a large image is read."""


# -- instant mode ----------------------------------------------------------------------------


@pytest.fixture
def annotate(board: Path, open_widget: Any) -> Any:
    widget = open_widget("MuViT: Annotate")
    widget.level.setCurrentText("level 1")
    widget.here.click()
    return widget


def test_image_deleted_in_instant_mode(
    annotate: Any, board: Path, viewer: Any, qtbot: Any, notices: list[str], tmp_path: Path
) -> None:
    """The prediction ends in words; what is painted is saved all the same."""
    layer = viewer.layers.selection.active
    moved(board)
    annotate.instant.switch.click()
    for value in (1, 2):
        paint(layer, value)
    qtbot.waitUntil(lambda: bool(notices), timeout=WAIT_MS)
    assert all("board.ome.zarr" in notice for notice in notices)
    qtbot.waitUntil(lambda: not annotate.instant.switch.isChecked(), timeout=WAIT_MS)
    said = len(notices)
    assert annotate.here.isEnabled()
    store = tmp_path / "board_annotations.ome.zarr"
    qtbot.waitUntil(lambda: saved(store) == {1: 160, 2: 160}, timeout=WAIT_MS)
    board.with_name("elsewhere").rename(board)
    annotate.instant.switch.click()
    qtbot.waitUntil(lambda: "board: instant prediction" in viewer.layers, timeout=WAIT_MS)
    assert len(notices) == said


@pytest.mark.parametrize("failure", [
    MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ..."),
])
def test_memory_that_runs_out_in_instant_mode(
    failure: Exception, annotate: Any, viewer: Any, qtbot: Any, notices: list[str],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is said once and instant mode ends; strokes are kept, and it can be tried again."""
    def fail(*arguments: Any) -> Any:
        raise failure

    layer = viewer.layers.selection.active
    with monkeypatch.context() as patch:
        patch.setattr(api.InstantPrediction, "predict", fail)
        annotate.instant.switch.click()
        for value in (1, 2):
            paint(layer, value)
        qtbot.waitUntil(lambda: not annotate.instant.switch.isChecked(), timeout=WAIT_MS)
        qtbot.wait(300)
    assert len(notices) == 1
    assert "not enough memory" in notices[0]
    store = tmp_path / "board_annotations.ome.zarr"
    qtbot.waitUntil(lambda: saved(store) == {1: 160, 2: 160}, timeout=WAIT_MS)
    annotate.instant.switch.click()
    qtbot.waitUntil(lambda: "board: instant prediction" in viewer.layers, timeout=WAIT_MS)
    assert len(notices) == 1


def test_layers_removed_in_instant_mode(
    annotate: Any, viewer: Any, qtbot: Any, notices: list[str]
) -> None:
    """Its own layer comes back with the next stroke; without the image it has nothing to do."""
    window = viewer.layers.selection.active
    annotate.instant.switch.click()
    for value in (1, 2):
        paint(window, value)
    name = "board: instant prediction"
    qtbot.waitUntil(lambda: name in viewer.layers, timeout=WAIT_MS)
    viewer.layers.remove(name)
    paint(window, 3)
    qtbot.waitUntil(lambda: name in viewer.layers, timeout=WAIT_MS)
    viewer.layers.remove("board")
    qtbot.wait(500)
    assert notices == []
    assert not annotate.instant.isEnabled()
    assert name not in viewer.layers


def test_instant_features_of_a_model_for_other_channels(
    viewer: Any, open_widget: Any, trained: SimpleNamespace, qtbot: Any, tmp_path: Path,
    notices: list[str],
) -> None:
    open_colours(viewer, tmp_path)
    widget = open_widget("MuViT: Annotate")
    widget.level.setCurrentText("level 1")
    widget.here.click()
    for value in (1, 2):
        paint(viewer.layers.selection.active, value)
    widget.instant.folder.set_path(str(trained.run))
    widget.instant.switch.click()
    qtbot.waitUntil(lambda: "channels" in widget.instant.note.text(), timeout=WAIT_MS)
    widget.instant.folder.set_path("")
    qtbot.waitUntil(lambda: "certainty" in widget.instant.note.text(), timeout=WAIT_MS)
    assert notices == []


# -- import and export -----------------------------------------------------------------------


def entry(button: Any, text: str) -> Any:
    """An entry of a button's menu."""
    return next(action for action in button.menu().actions() if action.text().startswith(text))


def test_layer_removed_during_an_import(
    annotate: Any, viewer: Any, qtbot: Any, notices: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels = np.zeros((192, 256), np.uint8)
    labels[50:60, 50:60] = 7
    drawn = viewer.add_labels(labels, name="drawn", scale=(0.5, 0.5), units=("um",) * 2)
    viewer.layers.selection.active = drawn
    entry(annotate.files.imports, "Chosen labels layer, values").trigger()
    viewer.layers.remove("drawn")
    qtbot.waitUntil(lambda: annotate.note.text() == "The labels are painted.", timeout=WAIT_MS)
    store = tmp_path / "board_annotations.ome.zarr"
    qtbot.waitUntil(lambda: saved(store) == {7: 100}, timeout=WAIT_MS)
    assert notices == []
    assert annotate.here.isEnabled()
    path = tmp_path / "classes.csv"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(path), ""))
    entry(annotate.files.exports, "Class table").trigger()
    assert "class 7" in path.read_text()


@pytest.mark.parametrize(("failure", "said"), [
    (FULL, "No space left on device"), (MemoryError(), "There is not enough memory"),
])
@pytest.mark.parametrize("way", ["in", "out"])
def test_import_and_export_that_fail_are_said(
    way: str, failure: Exception, said: str, annotate: Any, viewer: Any, qtbot: Any,
    notices: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise failure

    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(tmp_path / "o"), ""))
    monkeypatch.setattr(api, "paint_instances", fail)
    monkeypatch.setattr(api, "export_geojson", fail)
    if way == "in":
        drawn = viewer.add_labels(
            np.ones((192, 256), np.uint8), name="drawn", scale=(0.5, 0.5), units=("um",) * 2)
        viewer.layers.selection.active = drawn
        entry(annotate.files.imports, "Chosen labels layer, objects").trigger()
    else:
        entry(annotate.files.exports, "GeoJSON").trigger()
    qtbot.waitUntil(lambda: bool(notices), timeout=WAIT_MS)
    assert len(notices) == 1
    assert said in notices[0]
    assert annotate.note.text() == ""
    assert annotate.files.isEnabled()
    assert annotate.here.isEnabled()


@pytest.mark.parametrize("gone", ["image", "store"])
@pytest.mark.parametrize("way", ["in", "out"])
def test_files_deleted_during_an_import_or_export(
    way: str, gone: str, annotate: Any, board: Path, viewer: Any, qtbot: Any,
    notices: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither needs the image; without the store both say that it is gone."""
    window = viewer.layers.selection.active
    store = tmp_path / "board_annotations.ome.zarr"
    paint(window, 1)
    qtbot.waitUntil(lambda: saved(store) == {1: 160}, timeout=WAIT_MS)
    verb = "paint_instances" if way == "in" else "export_geojson"
    real = getattr(api, verb)

    def delete_first(*arguments: Any, **options: Any) -> Any:
        moved(board) if gone == "image" else store.rename(store.with_name("elsewhere"))
        annotate._counter.request(annotate.session.store)  # as the next stroke would
        annotate._request_thumbnails()
        return real(*arguments, **options)

    monkeypatch.setattr(api, verb, delete_first)
    outlines = tmp_path / "o.geojson"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(outlines), ""))
    if way == "in":
        labels = np.zeros((192, 256), np.uint8)
        labels[150:160, 50:60] = 7
        drawn = viewer.add_labels(labels, name="drawn", scale=(0.5, 0.5), units=("um",) * 2)
        viewer.layers.selection.active = drawn
        entry(annotate.files.imports, "Chosen labels layer, objects").trigger()
    else:
        entry(annotate.files.exports, "GeoJSON").trigger()
    qtbot.waitUntil(lambda: annotate.files.job is None, timeout=WAIT_MS)
    qtbot.waitUntil(lambda: not annotate._counter.is_busy and not annotate._painter.is_busy,
                    timeout=WAIT_MS)
    qtbot.wait(100)  # until what they found is delivered
    assert annotate.files.isEnabled()
    if gone == "store":
        assert len(notices) == 1
        assert "board_annotations.ome.zarr is gone" in notices[0]
        assert not store.exists()
        assert not outlines.exists()
        store.with_name("elsewhere").rename(store)
    else:
        assert notices == []
        assert outlines.exists() == (way == "out")
    expected = {1: 160, 2: 100} if way == "in" else {1: 160}
    qtbot.waitUntil(lambda: saved(store) == expected, timeout=WAIT_MS)


def test_counts_of_a_store_that_is_gone(
    annotate: Any, viewer: Any, qtbot: Any, notices: list[str], tmp_path: Path
) -> None:
    """Said below the widget, not in a notification at every stroke; the next count clears it."""
    layer, store = viewer.layers.selection.active, tmp_path / "board_annotations.ome.zarr"
    paint(layer, 1)
    qtbot.waitUntil(lambda: saved(store) == {1: 160}, timeout=WAIT_MS)
    session = annotate.session
    qtbot.waitUntil(lambda: annotate._seen == session.num_changed, timeout=WAIT_MS)
    qtbot.waitUntil(lambda: not annotate._counter.is_busy, timeout=WAIT_MS)
    store.rename(store.with_name("elsewhere"))
    annotate._request_thumbnails()
    said = "Counts and pictures are not up to date"
    qtbot.waitUntil(lambda: annotate.note.text().startswith(said), timeout=WAIT_MS)
    assert "board_annotations.ome.zarr is gone" in annotate.note.text()
    store.with_name("elsewhere").rename(store)
    paint(layer, 2)
    qtbot.waitUntil(lambda: not annotate.note.text().startswith(said), timeout=WAIT_MS)
    qtbot.waitUntil(lambda: saved(store) == {1: 160, 2: 160}, timeout=WAIT_MS)
    assert notices == []
