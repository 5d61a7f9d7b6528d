"""The Annotate widget in a real viewer, on the real annotation store."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
from qtpy.QtCore import QEvent, QPointF, Qt
from qtpy.QtGui import QColor, QMouseEvent
from qtpy.QtWidgets import QApplication, QColorDialog, QWidget

from napari_muvit import api
from napari_muvit.data.annotations import AnnotationStore
from napari_muvit.errors import LockedError
from napari_muvit.plugin import annotate, engine
from napari_muvit.plugin.devices import DESK

WAIT_MS = 60_000

SHAPE = (900, 1200)


@pytest.fixture(autouse=True)
def _real_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "default_backend", lambda: api)


@pytest.fixture
def image_path(tmp_path: Path) -> Path:
    path = tmp_path / "slide.tif"
    pixels = np.random.default_rng(0).integers(0, 255, SHAPE, dtype=np.uint8)
    tifffile.imwrite(path, pixels)
    return path


@pytest.fixture
def widget(viewer: Any, open_widget: Any, image_path: Path) -> Any:
    viewer.open(str(image_path), plugin="napari")
    viewer.reset_view()
    return open_widget("MuViT: Annotate")


def store_path(image_path: Path) -> Path:
    return image_path.with_name("slide_annotations.ome.zarr")


def paint(layer: Any, rows: slice, columns: slice, value: int) -> None:
    """A stroke as napari makes it: pixels set through the layer, with its events."""
    indices = np.mgrid[rows, columns].reshape(2, -1)
    layer.data_setitem(tuple(indices), value)


def canvas_of(widget: Any) -> Any:
    """The canvas of the window that `widget` is docked in."""
    children = widget.window().findChildren(QWidget)
    return next(c for c in children if type(c).__name__ == "CanvasBackendDesktop")


def drag_mouse(canvas: Any, path: list[tuple[int, int]], between: Any) -> None:
    """Press, move and release the mouse over the middle of the canvas."""
    middle = QPointF(canvas.width() / 2, canvas.height() / 2)
    left, none = Qt.MouseButton.LeftButton, Qt.MouseButton.NoButton

    def send(kind: Any, place: tuple[int, int], button: Any, buttons: Any) -> None:
        point = middle + QPointF(*place)
        where = QPointF(canvas.mapToGlobal(point.toPoint()))
        modifiers = Qt.KeyboardModifier.NoModifier
        event = QMouseEvent(kind, point, where, button, buttons, modifiers)
        QApplication.sendEvent(canvas, event)

    send(QEvent.Type.MouseMove, path[0], none, none)
    send(QEvent.Type.MouseButtonPress, path[0], left, left)
    between()
    for place in path[1:]:
        send(QEvent.Type.MouseMove, place, none, left)
        between()
    send(QEvent.Type.MouseButtonRelease, path[-1], left, none)


def is_saved(path: Path, counts: dict[int, int]) -> Any:
    def check() -> None:
        with AnnotationStore(path, writable=False) as store:
            assert store.class_counts() == counts

    return check


def test_no_image_no_buttons(viewer: Any, open_widget: Any) -> None:
    widget = open_widget("MuViT: Annotate")
    assert not widget.here.isEnabled()
    assert not widget.undo.isEnabled()


def test_stroke_is_on_disk_by_itself(
    viewer: Any, widget: Any, image_path: Path, qtbot: Any
) -> None:
    assert not store_path(image_path).exists()
    widget.level.setCurrentText("level 2")
    widget.here.click()
    layer = viewer.layers.selection.active
    assert layer.name == "slide: window 1"
    assert layer.mode == "paint"
    assert layer.selected_label == 2
    np.testing.assert_allclose(layer.scale, 2)
    paint(layer, slice(10, 20), slice(30, 60), 2)
    qtbot.waitUntil(is_saved(store_path(image_path), {2: 10 * 30 * 4}), timeout=WAIT_MS)
    assert widget.list.count() == 1
    assert "slide_annotations" in widget.note.text()


def test_pixels_set_without_an_event_are_saved_by_the_timer(
    viewer: Any, widget: Any, image_path: Path, qtbot: Any
) -> None:
    widget.level.setCurrentText("level 1")
    widget.here.click()
    layer = viewer.layers.selection.active
    layer.data[5:9, 5:9] = 1
    qtbot.waitUntil(is_saved(store_path(image_path), {1: 16}), timeout=WAIT_MS)


def test_brush_drawn_with_the_mouse_is_one_stroke(
    viewer: Any, widget: Any, image_path: Path, qtbot: Any
) -> None:
    widget.level.setCurrentText("level 1")
    widget.here.click()
    layer = viewer.layers.selection.active
    layer.brush_size = 9

    def between() -> None:
        qtbot.wait(50)
        widget._on_timer()

    drag_mouse(canvas_of(widget), [(0, 0), (20, 0), (40, 10), (60, 0)], between)
    painted = int(np.count_nonzero(layer.data))
    assert painted > 9 * 40
    qtbot.waitUntil(is_saved(store_path(image_path), {2: painted}), timeout=WAIT_MS)
    widget.undo.click()
    assert not layer.data.any()


def test_fitting_level_follows_the_zoom(viewer: Any, widget: Any) -> None:
    viewer.scene.camera.zoom = 0.3
    widget.here.click()
    assert viewer.layers.selection.active.scale[0] == 2
    viewer.scene.camera.zoom = 3
    widget.here.click()
    assert viewer.layers.selection.active.scale[0] == 1
    assert widget.list.count() == 2


def test_undo_and_redo_by_button_and_key(
    viewer: Any, widget: Any, image_path: Path, qtbot: Any
) -> None:
    widget.level.setCurrentText("level 1")
    widget.here.click()
    layer = viewer.layers.selection.active
    paint(layer, slice(0, 10), slice(0, 10), 2)
    paint(layer, slice(20, 30), slice(0, 10), 1)
    widget.undo.click()
    assert not layer.data[20:30].any()
    qtbot.waitUntil(is_saved(store_path(image_path), {2: 100}), timeout=WAIT_MS)
    widget.redo.click()
    assert (layer.data[20:30, :10] == 1).all()
    keys = {str(key): action for key, action in layer.keymap.items()}
    undo = next(action for key, action in keys.items() if key in {"Ctrl+Z", "Control+Z"})
    undo(layer)
    assert not layer.data[20:30].any()


def test_nothing_to_undo_is_said(viewer: Any, widget: Any, notices: list[str]) -> None:
    widget.here.click()
    widget.undo.click()
    widget.redo.click()
    assert len(notices) == 2
    assert all("nothing to" in text for text in notices)


def test_classes_are_named_coloured_added_and_kept(
    viewer: Any, widget: Any, image_path: Path, monkeypatch: pytest.MonkeyPatch, qtbot: Any
) -> None:
    widget.here.click()
    layer = viewer.layers.selection.active
    widget.classes.add.click()
    assert widget.classes.rows.rowCount() == 3
    assert layer.selected_label == 3
    widget.classes.rows.item(2, 1).setText("gland")
    monkeypatch.setattr(QColorDialog, "getColor", lambda *_: QColor("#123456"))
    widget.classes.rows.cellDoubleClicked.emit(2, 0)
    classes = json.loads((store_path(image_path) / "zarr.json").read_text())
    rows = classes["attributes"]["muvit"]["classes"]["classes"]
    assert rows[2] == {"value": 3, "name": "gland", "color": "#123456"}
    np.testing.assert_allclose(layer.get_color(3)[:3], np.array([0x12, 0x34, 0x56]) / 255)
    widget.classes.choose(1)
    assert layer.selected_label == 1
    widget.classes.choose(3)
    widget.classes.remove.click()
    assert widget.classes.table.values == (1, 2)


def test_a_new_class_does_not_inherit_the_strokes_of_a_removed_one(
    viewer: Any, widget: Any, qtbot: Any, open_widget: Any
) -> None:
    widget.here.click()
    layer = viewer.layers.selection.active
    widget.classes.add.click()
    assert layer.selected_label == 3
    layer.data_setitem((np.array([4]), np.array([5])), 3)
    widget.classes.remove.click()
    widget.classes.add.click()
    assert widget.classes.table.values == (1, 2, 4)
    widget.classes.remove.click()
    widget.picker.changed.emit()  # as when the image is chosen again: now the store tells
    qtbot.waitUntil(lambda: 3 in widget.classes._counts, timeout=WAIT_MS)
    widget.classes.add.click()
    assert widget.classes.table.values == (1, 2, 4)


def test_a_name_that_is_taken_is_refused(widget: Any, notices: list[str]) -> None:
    widget.here.click()
    widget.classes.rows.item(1, 1).setText("background")
    assert "its own name" in notices[-1]
    assert widget.classes.table.names == ("background", "class 2")
    assert widget.classes.rows.item(1, 1).text() == "class 2"


def test_balance_is_shown(viewer: Any, widget: Any, qtbot: Any) -> None:
    widget.level.setCurrentText("level 1")
    widget.here.click()
    layer = viewer.layers.selection.active
    qtbot.waitUntil(lambda: widget.balance.text() != "", timeout=WAIT_MS)
    assert "Nothing is annotated" in widget.balance.text()
    paint(layer, slice(0, 10), slice(0, 30), 1)
    paint(layer, slice(10, 20), slice(0, 10), 2)
    qtbot.waitUntil(lambda: widget.classes.rows.item(0, 2).text() == "75.0%", timeout=WAIT_MS)
    assert widget.classes.rows.item(1, 2).text() == "25.0%"
    assert widget.balance.text() == ""


def test_windows_come_back_with_the_image(
    viewer: Any, widget: Any, image_path: Path, qtbot: Any, open_widget: Any
) -> None:
    widget.level.setCurrentText("level 1")
    widget.here.click()
    layer = viewer.layers.selection.active
    paint(layer, slice(0, 10), slice(0, 10), 2)
    viewer.layers.remove(layer)
    viewer.layers.clear()
    assert widget.list.count() == 0
    viewer.open(str(image_path), plugin="napari")
    qtbot.waitUntil(lambda: widget.list.count() == 1, timeout=WAIT_MS)
    item = widget.list.item(0)
    qtbot.waitUntil(lambda: not item.icon().isNull(), timeout=WAIT_MS)
    viewer.scene.camera.zoom = 40
    widget.jump.click()
    again = viewer.layers.selection.active
    assert again.name == "slide: window 1"
    assert (again.data[:10, :10] == 2).all()
    assert viewer.scene.camera.zoom < 3
    widget.forget.click()
    assert widget.list.count() == 0
    assert again not in viewer.layers
    assert api.open_annotations(image_path, writable=False).class_counts() == {2: 100}


def test_strokes_are_saved_after_the_dock_is_closed(
    viewer: Any, widget: Any, image_path: Path, qtbot: Any, open_widget: Any
) -> None:
    widget.level.setCurrentText("level 1")
    widget.here.click()
    layer = viewer.layers.selection.active
    viewer.window.remove_dock_widget("all")
    widget.deleteLater()
    qtbot.wait(50)
    paint(layer, slice(0, 10), slice(0, 10), 2)
    qtbot.waitUntil(is_saved(store_path(image_path), {2: 100}), timeout=WAIT_MS)
    again = open_widget("MuViT: Annotate")
    assert again.list.count() == 1
    assert again.session.windows["window 1"].layer == layer


def test_locked_store_is_told_by_name(
    viewer: Any, open_widget: Any, image_path: Path, notices: list[str]
) -> None:
    with api.open_annotations(image_path):
        viewer.open(str(image_path), plugin="napari")
        widget = open_widget("MuViT: Annotate")
        assert "open for writing by" in widget.note.text()
        widget.here.click()
        assert "open for writing by" in notices[-1]
        assert len(viewer.layers) == 1
    widget.here.click()
    assert len(viewer.layers) == 2


def test_image_in_memory_is_annotated_without_saving_it(
    viewer: Any, open_widget: Any, tmp_path: Path, notices: list[str], qtbot: Any
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (200, 300), dtype=np.uint8)
    viewer.add_image(pixels, name="a/b tissue")
    widget = open_widget("MuViT: Annotate")
    widget.level.setCurrentText("level 1")
    widget.here.click()
    assert notices == []
    paint(viewer.layers.selection.active, slice(10, 20), slice(10, 20), 2)
    (store,) = (tmp_path / "copies" / "images").glob("a_b_tissue-*_annotations.ome.zarr")
    assert str(store) in widget.note.text()
    qtbot.waitUntil(is_saved(store, {2: 100}), timeout=WAIT_MS)
    viewer.layers.clear()
    # The same pixels, opened again under another name.
    viewer.add_image(pixels.copy(), name="again")
    qtbot.waitUntil(lambda: widget.list.count() == 1, timeout=WAIT_MS)
    widget.folder.set_path(str(tmp_path / "mine"))
    assert widget.list.count() == 0
    widget.here.click()
    assert len(list((tmp_path / "mine").glob("*_annotations.ome.zarr"))) == 1


def test_folder_of_annotations_is_remembered(
    viewer: Any, widget: Any, image_path: Path, tmp_path: Path, open_widget: Any
) -> None:
    widget.folder.set_path(str(tmp_path / "mine"))
    widget.here.click()
    viewer.add_image(np.zeros((20, 30), np.uint8), name="other")
    widget.picker.choose("other")
    assert widget.folder.path == ""
    widget.picker.choose("slide")
    assert widget.folder.path == str(tmp_path / "mine")
    assert widget.list.count() == 1


def test_coarse_brush_sets_mixed_pixels_below_it(
    viewer: Any, widget: Any, image_path: Path, qtbot: Any
) -> None:
    widget.level.setCurrentText("level 8")
    widget.here.click()
    coarse = viewer.layers.selection.active
    corner = np.asarray(coarse.data_to_world((10, 10))) - 3.5
    viewer.layers.remove(coarse)
    widget.level.setCurrentText("level 1")
    widget.here.click()
    fine = viewer.layers.selection.active
    top, left = np.round(corner - fine.data_to_world((0, 0))).astype(int)
    paint(fine, slice(top, top + 6), slice(left, left + 8), 2)
    paint(fine, slice(top + 6, top + 7), slice(left, left + 2), 1)
    qtbot.waitUntil(is_saved(store_path(image_path), {1: 2, 2: 48}), timeout=WAIT_MS)
    widget.level.setCurrentText("level 8")
    widget.here.click()
    coarse = viewer.layers.selection.active
    assert coarse.data[10, 10] == 2
    paint(coarse, slice(10, 11), slice(10, 11), 2)
    qtbot.waitUntil(is_saved(store_path(image_path), {2: 64}), timeout=WAIT_MS)


def test_volume_has_one_store_for_all_planes(
    viewer: Any, open_widget: Any, tmp_path: Path, qtbot: Any
) -> None:
    viewer.add_image(np.zeros((5, 80, 90), np.uint8), name="stack", scale=(2, 1, 1))
    widget = open_widget("MuViT: Annotate")
    widget.folder.set_path(str(tmp_path))
    widget.level.setCurrentText("level 1")
    for z in (1, 3):
        viewer.dims.set_point(0, 2 * z)
        widget.here.click()
        window = viewer.layers.selection.active
        assert window.data_to_world((0, 0, 0))[0] == 2 * z
        indices = np.mgrid[0:1, 10:20, 10:20].reshape(3, -1)
        window.data_setitem(tuple(indices), z)
    (store,) = tmp_path.glob("*_annotations.ome.zarr")
    qtbot.waitUntil(is_saved(store, {1: 100, 3: 100}), timeout=WAIT_MS)
    with AnnotationStore(store, writable=False) as opened:
        assert opened.shape == (5, 80, 90)
        assert (opened.read(1, (3, 10, 10), (1, 10, 10)) == 3).all()
    assert "plane 1" in widget.list.item(0).text()
    qtbot.waitUntil(lambda: not widget.list.item(0).icon().isNull(), timeout=WAIT_MS)
    widget.list.setCurrentRow(0)
    widget.jump.click()
    assert viewer.dims.point[0] == 2
    widget.overview.click()
    assert viewer.layers["stack: all annotations"].ndim == 3


def test_scaled_and_moved_images_are_painted_in_place(
    viewer: Any, open_widget: Any, tmp_path: Path
) -> None:
    viewer.add_image(
        np.zeros((200, 300), np.uint8), name="tissue", scale=(0.5, 0.5), translate=(10, 20)
    )
    viewer.reset_view()
    widget = open_widget("MuViT: Annotate")
    widget.folder.set_path(str(tmp_path))
    widget.level.setCurrentText("level 4")
    widget.here.click()
    window = viewer.layers.selection.active
    image = viewer.layers["tissue"]
    # The lower edge of the first painted pixel is the lower edge of the image.
    np.testing.assert_allclose(window.data_to_world((-0.5, -0.5)),
                               image.data_to_world((-0.5, -0.5)))


def test_shapes_are_painted(
    viewer: Any, widget: Any, image_path: Path, qtbot: Any
) -> None:
    shapes = viewer.add_shapes(
        [np.array([[9.5, 9.5], [9.5, 29.5], [19.5, 29.5], [19.5, 9.5]])], shape_type="rectangle"
    )
    shapes.add_ellipses(np.array([[100, 100], [100, 200], [200, 200], [200, 100]]))
    viewer.layers.selection.active = shapes
    widget.classes.choose(2)
    widget.files.import_shapes()
    qtbot.waitUntil(lambda: widget.files.job is None, timeout=WAIT_MS)
    assert "2 areas" in widget.note.text()
    with AnnotationStore(store_path(image_path), writable=False) as store:
        found = store.read(1, (0, 0), SHAPE)
    assert (found[10:20, 10:30] == 2).all()
    assert np.count_nonzero(found) == pytest.approx(200 + np.pi * 50**2, rel=0.01)


def test_labels_layers_are_painted_as_classes_and_as_objects(
    viewer: Any, widget: Any, image_path: Path, qtbot: Any, notices: list[str]
) -> None:
    labels = np.zeros((225, 300), np.uint16)
    labels[10:20, 10:20] = 7
    layer = viewer.add_labels(labels, scale=(4, 4), translate=(1.5, 1.5))
    widget.files.import_labels()
    qtbot.waitUntil(lambda: widget.files.job is None, timeout=WAIT_MS)
    assert 7 in widget.classes.table.values
    is_saved(store_path(image_path), {7: 1600})()
    viewer.layers.selection.active = layer
    layer.data = np.arange(labels.size).reshape(labels.shape) * (labels > 0)
    widget.files.import_labels()
    qtbot.waitUntil(lambda: bool(notices), timeout=WAIT_MS)
    assert "objects of one class" in notices[-1]
    widget.classes.choose(2)
    widget.files.import_objects()
    qtbot.waitUntil(lambda: widget.files.job is None, timeout=WAIT_MS)
    is_saved(store_path(image_path), {2: 1600})()
    viewer.layers.selection.active = viewer.layers[0]
    widget.files.import_objects()
    assert "no labels layer" in notices[-1]
    widget.files.import_shapes()
    assert "no shapes layer" in notices[-1]


def test_an_import_is_undone_until_the_next_stroke(
    viewer: Any, widget: Any, image_path: Path, qtbot: Any
) -> None:
    saved = store_path(image_path)
    widget.here.click()
    window = viewer.layers[-1]
    paint(window, slice(0, 10), slice(0, 10), 2)
    labels = np.zeros(SHAPE, np.uint8)
    labels[-15:, -15:] = 1
    viewer.add_labels(labels)
    widget.files.import_labels()
    qtbot.waitUntil(lambda: widget.files.job is None, timeout=WAIT_MS)
    assert widget.note.text() == "The labels are painted, 1 as 'background'."
    widget.undo.click()
    qtbot.waitUntil(is_saved(saved, {2: 100}), timeout=WAIT_MS)
    widget.redo.click()
    qtbot.waitUntil(is_saved(saved, {1: 225, 2: 100}), timeout=WAIT_MS)
    paint(window, slice(50, 60), slice(0, 10), 2)
    widget.undo.click()
    widget.undo.click()
    qtbot.waitUntil(is_saved(saved, {1: 225}), timeout=WAIT_MS)


def test_geojson_goes_in_and_out(
    viewer: Any, widget: Any, image_path: Path, tmp_path: Path, qtbot: Any
) -> None:
    square = [[[10, 20], [30, 20], [30, 25], [10, 25], [10, 20]]]
    path = tmp_path / "in.geojson"
    path.write_text(json.dumps([{
        "type": "Feature", "geometry": {"type": "Polygon", "coordinates": square},
        "properties": {"classification": {"name": "Tumor", "color": [200, 0, 0]}},
    }]))
    widget.files.import_geojson(path=str(path))
    qtbot.waitUntil(lambda: widget.files.job is None, timeout=WAIT_MS)
    assert "Tumor" in widget.classes.table.names
    out = tmp_path / "out.geojson"
    widget.files.export_geojson(path=str(out))
    qtbot.waitUntil(lambda: widget.files.job is None, timeout=WAIT_MS)
    (feature,) = json.loads(out.read_text())["features"]
    assert sorted(feature["geometry"]["coordinates"][0]) == sorted(square[0])


def test_broken_import_leaves_the_buttons_usable(
    widget: Any, tmp_path: Path, notices: list[str], qtbot: Any
) -> None:
    path = tmp_path / "broken.geojson"
    path.write_text("{")
    widget.here.click()
    widget.files.import_geojson(path=str(path))
    qtbot.waitUntil(lambda: bool(notices), timeout=WAIT_MS)
    assert "cannot be read" in notices[-1]
    assert widget.here.isEnabled()


def test_class_tables_go_in_and_out(widget: Any, tmp_path: Path) -> None:
    widget.here.click()
    path = tmp_path / "classes.csv"
    widget.files.export_classes(path=str(path))
    path.write_text(path.read_text() + "9,vessel,#abcdef,class\n")
    widget.files.import_classes(path=str(path))
    assert widget.classes.table.names == ("background", "class 2", "vessel")
    assert widget.session.store.classes.values == (1, 2, 9)


def test_full_disk_is_said_and_mended(
    viewer: Any, widget: Any, image_path: Path, monkeypatch: pytest.MonkeyPatch, qtbot: Any
) -> None:
    import os

    widget.level.setCurrentText("level 1")
    widget.here.click()
    layer = viewer.layers.selection.active

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        paint(layer, slice(0, 10), slice(0, 10), 2)
        qtbot.waitUntil(
            lambda: "Not saved yet: No space left" in widget.note.text(), timeout=WAIT_MS)
    qtbot.waitUntil(lambda: widget.note.text() == "Saved.", timeout=WAIT_MS)
    is_saved(store_path(image_path), {2: 100})()


def test_instant_prediction_follows_strokes_and_view(
    viewer: Any, open_widget: Any, tmp_path: Path, qtbot: Any, notices: list[str]
) -> None:
    image = np.random.default_rng(0).integers(0, 60, (512, 512), dtype=np.uint8)
    image[:, 256:] += 120
    viewer.add_image(image, name="tissue")
    viewer.reset_view()
    widget = open_widget("MuViT: Annotate")
    assert not widget.instant.isEnabled()
    widget.folder.set_path(str(tmp_path))
    widget.level.setCurrentText("level 1")
    widget.here.click()
    window = viewer.layers.selection.active
    widget.instant.switch.setChecked(True)
    qtbot.waitUntil(lambda: "two classes" in widget.instant.note.text(), timeout=WAIT_MS)
    assert notices == []
    paint(window, slice(100, 120), slice(50, 100), 1)
    paint(window, slice(100, 120), slice(400, 450), 2)
    name = "tissue: instant prediction"
    qtbot.waitUntil(lambda: name in viewer.layers, timeout=WAIT_MS)
    found = viewer.layers[name]
    assert viewer.layers.index(found) < viewer.layers.index(window)
    assert viewer.layers.selection.active == window
    low = np.round(found.world_to_data((200, 100))).astype(int)
    high = np.round(found.world_to_data((200, 400))).astype(int)
    assert (found.data[tuple(low)], found.data[tuple(high)]) == (1, 2)
    # A correction changes the answer.
    paint(window, slice(100, 120), slice(50, 100), 2)
    paint(window, slice(100, 120), slice(400, 450), 1)
    qtbot.waitUntil(lambda: found.data[tuple(low)] == 2, timeout=WAIT_MS)
    widget.instant.next.click()
    widget.instant.switch.setChecked(False)
    assert name not in viewer.layers
    assert notices == []


def test_instant_prediction_that_fails_is_said_and_switched_off(
    viewer: Any, widget: Any, tmp_path: Path, qtbot: Any, notices: list[str]
) -> None:
    widget.here.click()
    widget.instant.folder.set_path(str(tmp_path / "no_such_run"))
    widget.instant.switch.setChecked(True)
    qtbot.waitUntil(lambda: notices != [], timeout=WAIT_MS)
    assert "no_such_run" in notices[0]
    assert not widget.instant.switch.isChecked()


def test_all_annotations_are_shown_and_follow(
    viewer: Any, widget: Any, image_path: Path, qtbot: Any
) -> None:
    widget.level.setCurrentText("level 1")
    widget.here.click()
    window = viewer.layers.selection.active
    widget.overview.setChecked(True)
    shown = viewer.layers["slide: all annotations"]
    assert viewer.layers.selection.active == window
    assert not shown.editable
    assert shown.multiscale
    paint(window, slice(0, 64), slice(0, 64), 2)
    qtbot.waitUntil(lambda: np.asarray(shown.data[-1]).any(), timeout=WAIT_MS)
    assert np.asarray(shown.data[0][:900, :1200]).sum() == 2 * 64 * 64
    viewer.layers.remove(shown)
    assert not widget.overview.isChecked()
    widget.overview.setChecked(True)
    widget.overview.setChecked(False)
    assert len(viewer.layers) == 2


def test_console_opens_a_window(viewer: Any, image_path: Path, qtbot: Any) -> None:
    from napari_muvit.errors import InputError
    from napari_muvit.plugin import open_annotation_window

    with pytest.raises(InputError, match="Open an image"):
        open_annotation_window(viewer)
    viewer.open(str(image_path), plugin="napari")
    viewer.reset_view()
    layer = open_annotation_window(viewer, level=4)
    paint(layer, slice(0, 10), slice(0, 10), 2)
    qtbot.waitUntil(is_saved(store_path(image_path), {2: 1600}), timeout=WAIT_MS)
    again = open_annotation_window(viewer, level=1)
    assert (again.data[:40, :40] == 2).all()


def test_instant_features_beside_a_training_are_told(
    viewer: Any, widget: Any, trained: Any, qtbot: Any, notices: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    facts = [SimpleNamespace(name=name, is_usable=True) for name in ("cuda:0", "cpu")]
    monkeypatch.setattr(api, "device_facts", lambda: facts, raising=False)
    release = DESK.claim("training", "the run a", "auto")
    try:
        widget.instant.folder.set_path(str(trained.run))
        widget.here.click()
        window = viewer.layers.selection.active
        widget.instant.switch.setChecked(True)
        paint(window, slice(20, 40), slice(20, 60), 1)
        paint(window, slice(20, 40), slice(80, 120), 2)
        qtbot.waitUntil(
            lambda: "used by the run a; instant prediction runs" in widget.instant.note.text(),
            timeout=WAIT_MS)
        assert [use.who for use in DESK.uses("live")] == ["Instant prediction of slide"]
        widget.instant.switch.setChecked(False)
        assert DESK.uses("live") == []
        assert notices == []
    finally:
        release()


def is_free(path: Path) -> Any:
    """Whether nobody holds the store."""
    def check() -> bool:
        try:
            AnnotationStore(path).close()
        except LockedError:
            return False
        return True

    return check


def test_a_closed_widget_gives_the_store_back(
    viewer: Any, widget: Any, open_widget: Any, image_path: Path, qtbot: Any, notices: list[str]
) -> None:
    path = store_path(image_path)
    widget.here.click()
    layer = viewer.layers[-1]
    with qtbot.waitSignal(widget.destroyed, timeout=WAIT_MS):
        viewer.window.remove_dock_widget(widget.parent())
    assert not is_free(path)()
    viewer.layers.remove(layer)
    assert is_free(path)()
    for _ in range(2):  # with the store, but without a window
        again = open_widget("MuViT: Annotate")
        assert again.list.count() == 1
        assert not is_free(path)()
        with qtbot.waitSignal(again.destroyed, timeout=WAIT_MS):
            viewer.window.remove_dock_widget(again.parent())
        qtbot.waitUntil(is_free(path), timeout=WAIT_MS)
    assert notices == []


def test_import_goes_on_when_the_viewer_closes_before_values_are_read(
    viewer: Any, widget: Any, image_path: Path, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold, found = threading.Event(), annotate.distinct_values

    def slow(array: Any) -> Any:
        hold.wait(60)
        return found(array)

    monkeypatch.setattr(annotate, "distinct_values", slow)
    labels = np.zeros(SHAPE, np.uint8)
    labels[10:20, 10:30] = 7
    viewer.add_labels(labels)
    widget.files.imports.menu().actions()[0].trigger()
    viewer.close()
    hold.set()
    qtbot.waitUntil(is_free(store_path(image_path)), timeout=WAIT_MS)
    is_saved(store_path(image_path), {7: 200})()
    with AnnotationStore(store_path(image_path), writable=False) as store:
        assert 7 in store.classes.values
