"""The Crops widget in a real viewer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from qtpy.QtGui import QGuiApplication

from napari_muvit.plugin.camera import center_view
from napari_muvit.plugin.crops_layer import EDGE_PX, LAYER_NAME

WAIT_MS = 60_000


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (600, 800), dtype=np.uint8)


def has_thumbnails(widget: Any, count: int) -> Any:
    def check() -> None:
        assert widget.thumbnails.count() == 2 * count

    return check


def test_no_image_no_buttons(viewer: Any, open_widget: Any, backend: Any) -> None:
    widget = open_widget("MuViT: Crops")
    assert not widget.copy.isEnabled()
    assert "Open an image" in widget.note.text()


def test_shows_boxes_thumbnails_and_table(
    viewer: Any, open_widget: Any, backend: Any, image: np.ndarray, qtbot: Any
) -> None:
    viewer.add_image(image, name="tissue", scale=(0.5, 0.5), units=("um", "um"))
    widget = open_widget("MuViT: Crops")
    widget.levels_edit.setText("1, 2, 4")
    widget.levels_edit.editingFinished.emit()
    qtbot.waitUntil(has_thumbnails(widget, 3), timeout=WAIT_MS)
    layer = viewer.layers[LAYER_NAME]
    assert len(layer.data) == 3
    assert list(layer.features["level"]) == ["level 1", "level 2", "level 4"]
    assert widget.table.item(2, 2).text() == "512"
    assert widget.table.item(2, 3).text() == "256"
    widget.centre.click()
    assert np.allclose(widget.choice.center, (299.5, 399.5), atol=1)


@pytest.fixture
def widget(
    viewer: Any, open_widget: Any, backend: Any, image: np.ndarray, qtbot: Any
) -> Any:
    viewer.add_image(image, name="tissue", scale=(0.5, 0.5), units=("um", "um"))
    widget = open_widget("MuViT: Crops")
    widget.size.setValue(64)
    widget.levels_edit.setText("1, 2")
    widget.levels_edit.editingFinished.emit()
    qtbot.waitUntil(has_thumbnails(widget, 2), timeout=WAIT_MS)
    return widget


def mouse(kind: str, y: float, x: float) -> SimpleNamespace:
    """A mouse event at world px (y, x), as napari hands it to callbacks."""
    return SimpleNamespace(type=kind, position=(y / 2, x / 2), button=1, modifiers=())


def drag(viewer: Any, events: list[SimpleNamespace]) -> None:
    """Press, move and release, through the viewer's own list of callbacks."""
    event = SimpleNamespace(**vars(events[0]))
    runs = [callback(viewer, event) for callback in viewer.mouse_drag_callbacks]
    running = [generator for generator in runs if hasattr(generator, "send")]
    for generator in running:
        next(generator, None)
    for step in events[1:]:
        vars(event).update(vars(step))
        for generator in running:
            next(generator, None)


def test_names_stand_one_above_the_other_where_boxes_are_small_on_the_screen(
    viewer: Any, widget: Any
) -> None:
    layer = viewer.layers[LAYER_NAME]
    for zoom, lines in ((0.01, [0, 1]), (20.0, [0, 0]), (0.01, [0, 1])):
        viewer.scene.camera.zoom = zoom
        assert list(layer.features["level"]) == ["level 1", "level 2"]
        assert [text.strip() for text in layer.text.values] == ["level 1", "level 2"]
        assert [text.count("\n") for text in layer.text.values] == lines
        assert np.allclose(np.asarray(layer.edge_width) * zoom * 0.5, EDGE_PX)


def test_click_places_the_crop(viewer: Any, widget: Any) -> None:
    drag(viewer, [mouse("mouse_press", 100, 500), mouse("mouse_release", 100, 500)])
    assert np.allclose(widget.choice.center, (100, 500))
    assert np.allclose(np.mean(viewer.layers[LAYER_NAME].data[0], axis=0), (100, 500))


def test_inner_box_is_dragged_and_the_image_is_not(viewer: Any, widget: Any) -> None:
    widget.move_to((300, 300))
    camera = viewer.scene.camera
    path = [mouse("mouse_press", 305, 295), mouse("mouse_move", 350, 400)]
    event_free = camera.mouse_pan
    drag(viewer, [*path, mouse("mouse_release", 350, 400)])
    assert np.allclose(widget.choice.center, (350, 400))
    assert camera.mouse_pan == event_free


def test_dragging_elsewhere_pans(viewer: Any, widget: Any) -> None:
    widget.move_to((300, 300))
    path = [mouse("mouse_press", 50, 50), mouse("mouse_move", 80, 90)]
    drag(viewer, [*path, mouse("mouse_release", 80, 90)])
    assert np.allclose(widget.choice.center, (300, 300))


def test_painting_leaves_the_crops_alone(viewer: Any, widget: Any) -> None:
    labels = viewer.add_labels(np.zeros((600, 800), np.uint8), scale=(0.5, 0.5))
    widget.move_to((200, 300))
    labels.mode = "paint"
    drag(viewer, [mouse("mouse_press", 50, 60), mouse("mouse_release", 50, 60)])
    drag(viewer, [mouse("mouse_press", 200, 300), mouse("mouse_move", 100, 90)])
    assert widget.choice.center == (200, 300)
    labels.mode = "pan_zoom"
    drag(viewer, [mouse("mouse_press", 50, 60), mouse("mouse_release", 50, 60)])
    assert np.allclose(widget.choice.center, (50, 60))


def test_boxes_wait_for_the_flat_view(viewer: Any, widget: Any, notices: list[str]) -> None:
    viewer.add_image(np.zeros((4, 600, 800), np.uint8), name="volume", units=("um",) * 3)
    widget.picker.choose("tissue")
    viewer.dims.ndisplay = 3
    widget.centre.click()
    widget.size.setValue(128)
    viewer.scene.camera.zoom *= 2
    assert "flat view" in widget.note.text()
    assert notices == []
    viewer.dims.ndisplay = 2
    assert "flat view" not in widget.note.text()
    boxes = widget.choice.boxes()
    shapes = viewer.layers[LAYER_NAME].data
    assert np.allclose(np.ptp(shapes[0], axis=0), boxes[0, 1] - boxes[0, 0])


def test_place_in_view_knows_axes_that_are_swapped(viewer: Any, widget: Any) -> None:
    viewer.dims.order = (1, 0)
    viewer.scene.camera.center = (0, 100, 25)  # x, then y
    widget.centre.click()
    assert np.allclose(widget.choice.center, (50, 200))
    center_view(viewer, widget.image.transform, (80, 300))
    assert np.allclose(viewer.scene.camera.center[-2:], (150, 40))


def test_follows_the_cursor_inside_the_image(viewer: Any, widget: Any) -> None:
    widget.follow.setChecked(True)
    for callback in viewer.mouse_move_callbacks:
        callback(viewer, mouse("mouse_move", 150, 10_000))
    assert np.allclose(widget.choice.center, (150, 799.5))


def test_wrong_levels_are_said_and_put_back(
    viewer: Any, widget: Any, notices: list[str]
) -> None:
    widget.levels_edit.setText("4, 1")
    widget.levels_edit.editingFinished.emit()
    assert len(notices) == 1
    assert "ascending" in notices[0]
    assert widget.levels_edit.text() == "1, 2"


def test_slider_and_table(viewer: Any, widget: Any, qtbot: Any) -> None:
    widget.levels_slider.setValue((0, 1, 3))
    assert widget.levels_edit.text() == "1, 2, 8"
    assert widget.table.rowCount() == 3
    widget.size.setValue(100)
    assert widget.choice.size == 96
    qtbot.waitUntil(has_thumbnails(widget, 3), timeout=WAIT_MS)


def test_boxes_and_table_tell_where_pixels_were_read(
    viewer: Any, widget: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(widget.image.pyramid)
    read = kind.crop

    def snapped(*args: Any, **options: Any) -> Any:
        crop = read(*args, **options)
        crop.bbox = crop.bbox + 3
        return crop

    monkeypatch.setattr(kind, "crop", snapped)
    widget.move_to((200, 300))
    corner = widget.choice.boxes()[0, 0] + 3

    def check() -> None:
        assert widget.table.item(0, 1).text() == ", ".join(f"{c + 0.5:.0f}" for c in corner)
        lowest = min((box.min(axis=0) for box in viewer.layers[LAYER_NAME].data), key=max)
        assert np.allclose(lowest, corner - 32)  # level 2 begins half a fine crop before

    qtbot.waitUntil(check, timeout=WAIT_MS)


def test_copied_code_names_the_place_and_the_layer(viewer: Any, widget: Any) -> None:
    widget.move_to((120, 130))
    widget.copy.click()
    code = QGuiApplication.clipboard().text()
    assert "center=(120.0, 130.0), levels=(1, 2), size=64" in code
    names: dict[str, Any] = {"viewer": viewer}
    exec(code.replace("napari_muvit as muvit", "napari_muvit.api as muvit"), names)
    assert names["crop"].image.shape[0] == 2


def test_nothing_stays_of_the_last_image_on_one_that_cannot_be_used(
    viewer: Any, widget: Any, qtbot: Any, notices: list[str]
) -> None:
    qtbot.waitUntil(has_thumbnails(widget, 2), timeout=WAIT_MS)
    viewer.add_image(np.zeros((200, 200), np.uint8), name="slanted", shear=[0.3])
    widget.picker.choose("slanted")
    assert "is sheared or tilted" in widget.note.text()
    assert notices[-1] == widget.note.text()
    assert widget.thumbnails.count() == widget.table.rowCount() == 0
    assert len(viewer.layers[LAYER_NAME].data) == 0
    widget.picker.choose("tissue")
    qtbot.waitUntil(has_thumbnails(widget, 2), timeout=WAIT_MS)


def test_boxes_come_back_when_their_layer_was_removed(viewer: Any, widget: Any) -> None:
    viewer.layers.remove(LAYER_NAME)
    widget.centre.click()
    assert len(viewer.layers[LAYER_NAME].data) == 2


def test_image_removed(viewer: Any, widget: Any, notices: list[str]) -> None:
    viewer.layers.remove("tissue")
    assert not widget.copy.isEnabled()
    drag(viewer, [mouse("mouse_press", 100, 500), mouse("mouse_release", 100, 500)])
    assert notices == []


def test_levels_and_size_come_back_with_the_image(
    viewer: Any, widget: Any, image: np.ndarray
) -> None:
    viewer.add_image(image[:200, :300].copy(), name="other")
    widget.picker.choose("other")
    assert widget.choice.size == 128
    widget.picker.choose("tissue")
    assert widget.choice.levels == (1, 2)
    assert widget.choice.size == 64


def test_volume_is_cropped_by_plane_and_in_depth(
    viewer: Any, open_widget: Any, qtbot: Any
) -> None:
    stack = np.random.default_rng(0).integers(0, 255, (20, 128, 160), dtype=np.uint8)
    viewer.add_image(stack, name="stack", scale=(2, 0.5, 0.5), units=("um",) * 3)
    viewer.dims.set_point(0, 24)
    widget = open_widget("MuViT: Crops")
    assert widget.form.isRowVisible(widget.depth)
    widget.size.setValue(32)
    widget.levels_edit.setText("1, 2")
    widget.levels_edit.editingFinished.emit()
    qtbot.waitUntil(has_thumbnails(widget, 2), timeout=WAIT_MS)
    assert "z=12" not in widget.choice.code(None)
    assert "z=12" in widget.choice.code("a.ome.zarr", widget.image.plane)
    widget.depth.setValue(8)
    assert widget.choice.size == (8, 32, 32)
    assert widget.choice.center[0] == pytest.approx(12)
    layer = viewer.layers[LAYER_NAME]
    assert layer.ndim == 3
    assert layer.data_to_world(layer.data[0][0])[0] == pytest.approx(24)
    assert widget.table.item(0, 2).text() == "8 × 32 × 32"
    assert widget.table.item(0, 3).text() == "16"
    viewer.dims.set_point(0, 10)
    assert widget.choice.center[0] == pytest.approx(5)
    qtbot.waitUntil(lambda: not widget._reader.is_busy, timeout=WAIT_MS)
    widget.sample.click()
    qtbot.waitUntil(lambda: "Training sample" in widget.note.text(), timeout=WAIT_MS)
