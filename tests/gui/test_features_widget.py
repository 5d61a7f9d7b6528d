"""The Features widget in a real viewer, with a real tiny model."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from napari_muvit import api
from napari_muvit.errors import InputError
from napari_muvit.plugin import features
from napari_muvit.plugin.devices import DESK

WAIT_MS = 60_000
FINE, COARSE = "features, level 1", "features, level 4"


@pytest.fixture
def widget(viewer: Any, open_widget: Any, trained: SimpleNamespace, qtbot: Any) -> Any:
    viewer.open(str(trained.image), plugin="napari-muvit")
    widget = open_widget("MuViT: Features")
    widget.device.setCurrentText("cpu")
    widget.folder.set_path(str(trained.run))
    qtbot.waitUntil(lambda: widget.compute.isEnabled(), timeout=WAIT_MS)
    return widget


def is_idle(widget: Any) -> bool:
    return widget.job is None and widget.compute.isEnabled() and not widget.cancel.isEnabled()


def compute(widget: Any, viewer: Any, qtbot: Any) -> None:
    widget.compute.click()
    assert widget.cancel.isEnabled()
    qtbot.waitUntil(lambda: is_idle(widget) and FINE in viewer.layers, timeout=WAIT_MS)


def click_at(viewer: Any, place: Any) -> None:
    event = SimpleNamespace(type="mouse_press", position=place, button=1, modifiers=())
    for running in [callback(viewer, event) for callback in viewer.mouse_drag_callbacks]:
        if running is not None:
            next(running, None)
            event.type = "mouse_release"
            next(running, None)
            event.type = "mouse_press"


def test_colours_groups_and_what_is_alike(widget: Any, viewer: Any, qtbot: Any) -> None:
    compute(widget, viewer, qtbot)
    assert set(widget.maps) == {1, 4}
    assert np.allclose(viewer.layers[FINE].scale, 8)
    assert viewer.layers[COARSE].scale[0] == 32
    assert viewer.layers[FINE].rgb
    widget.mode.setCurrentText("Groups")
    qtbot.waitUntil(lambda: viewer.layers[FINE].data.ndim == 2, timeout=WAIT_MS)
    assert viewer.layers[FINE].data.max() == 5
    place = viewer.layers["board"].data_to_world((100, 120))
    click_at(viewer, place)
    for level in (1, 4):
        alike = viewer.layers[f"alike, level {level}"]
        assert alike.data[tuple(np.round(alike.world_to_data(place)).astype(int))] > 0.999
        assert alike.data.min() < 0.999


def test_what_a_place_attends_to(
    widget: Any, viewer: Any, qtbot: Any, notices: list[str]
) -> None:
    place = viewer.layers["board"].data_to_world((100, 120))
    click_at(viewer, place)
    assert "Press Compute in view first" in widget.note.text()
    compute(widget, viewer, qtbot)
    click_at(viewer, (-50, -50))
    assert "Nothing is computed at this place" in widget.note.text()
    click_at(viewer, place)
    assert viewer.layers["alike, level 1"].visible
    widget.click.setCurrentText("what it attends to")
    click_at(viewer, (-50, -50))
    assert "outside the image" in widget.note.text()
    assert notices == []
    click_at(viewer, place)
    qtbot.waitUntil(lambda: "attended, level 1" in viewer.layers, timeout=WAIT_MS)
    assert not viewer.layers["alike, level 1"].visible
    layers = [viewer.layers[f"attended, level {level}"] for level in (1, 4)]
    assert sum(layer.data.sum() for layer in layers) == pytest.approx(1, abs=1e-4)
    for layer in layers:
        row, column = np.round(layer.world_to_data(place)).astype(int)
        assert 0 <= row < layer.data.shape[0]
        assert 0 <= column < layer.data.shape[1]
    assert np.allclose(layers[1].scale, 4 * np.asarray(layers[0].scale))
    assert "level 4:" in widget.note.text()
    last = layers[0].data.copy()
    assert widget.layer.value() == widget.layer.maximum() > 1
    widget.layer.setValue(1)
    qtbot.waitUntil(lambda: "in layer 1 goes" in widget.note.text(), timeout=WAIT_MS)
    assert not np.allclose(viewer.layers["attended, level 1"].data, last)


def test_follows_the_view_and_keeps_what_was_clicked(
    widget: Any, viewer: Any, qtbot: Any
) -> None:
    rows = np.arange(768)[:, None] // 48 + np.arange(1024) // 48
    board = np.where(rows % 2, 200, 40).astype(np.uint8)
    viewer.add_image(board, name="large", scale=(0.5, 0.5), units=("um", "um"))
    widget.picker.choose("large")
    camera = viewer.scene.camera
    camera.center = (0, 192, 256)
    camera.zoom *= 2
    qtbot.wait(200)
    compute(widget, viewer, qtbot)
    assert widget.maps[1].values.shape[1] < 90
    place = viewer.scene.camera.center[-2:]
    click_at(viewer, place)
    before = {name: viewer.layers[name].translate.copy() for name in (FINE, "alike, level 1")}
    chosen = widget._chosen[1].copy()
    widget.follow.setChecked(True)
    camera.center = (0, place[0] - 40, place[1] - 50)
    qtbot.waitUntil(
        lambda: is_idle(widget) and not np.allclose(viewer.layers[FINE].translate, before[FINE]),
        timeout=WAIT_MS)
    qtbot.waitUntil(lambda: np.allclose(
        viewer.layers["alike, level 1"].translate, viewer.layers[FINE].translate), timeout=WAIT_MS)
    assert np.array_equal(widget._chosen[1], chosen)
    assert np.allclose(viewer.layers["alike, level 1"].data,
                       features.likeness(widget.maps[1].values, chosen), atol=1e-5)
    widget.follow.setChecked(False)


def test_follows_the_slider_to_another_plane(widget: Any, viewer: Any, qtbot: Any) -> None:
    planes = np.random.default_rng(0).integers(0, 255, (3, 256, 320), dtype=np.uint8)
    viewer.add_image(planes, name="stack", scale=(1, 0.5, 0.5), units=("um",) * 3)
    widget.picker.choose("stack")
    viewer.dims.set_point(0, 0)
    compute(widget, viewer, qtbot)
    before = widget.maps[1].values.copy()
    widget.follow.setChecked(True)
    viewer.dims.set_point(0, 2)
    qtbot.waitUntil(
        lambda: is_idle(widget) and not np.allclose(widget.maps[1].values, before),
        timeout=WAIT_MS)
    widget.follow.setChecked(False)


def test_training_keeps_the_graphics_card(
    widget: Any, viewer: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card that is only pretended: where training holds it, features go to the processor."""
    cards = [SimpleNamespace(name=name, is_usable=True) for name in ("cuda:0", "cpu")]
    devices: list[str] = []
    real = api.features

    def noting(*arguments: Any, device: str, **options: Any) -> Any:
        devices.append(device)
        return real(*arguments, device="cpu", **options)

    monkeypatch.setattr(api, "features", noting)
    monkeypatch.setattr(api, "device_facts", lambda: cards)
    release = DESK.claim("training", "the run pretrain-1", "auto")
    try:
        widget.device.setCurrentText("auto")
        widget.compute.click()
        assert [use.who for use in DESK.uses("live")] == ["Computing features of board"]
        qtbot.waitUntil(lambda: is_idle(widget) and FINE in viewer.layers, timeout=WAIT_MS)
    finally:
        release()
    assert DESK.uses() == []
    assert set(devices) == {"cpu"}
    assert "The graphics card is used by the run pretrain-1" in widget.note.text()
    assert "computing features runs on the processor until that ends" in widget.note.text()
    widget._forget()
    compute(widget, viewer, qtbot)
    assert devices[-1] == "auto"
    assert "processor" not in widget.note.text()


def test_too_wide_a_view_is_said(
    widget: Any, viewer: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "MOST_PATCHES", 60)
    widget.compute.click()
    qtbot.waitUntil(lambda: is_idle(widget) and COARSE in viewer.layers, timeout=WAIT_MS)
    assert FINE not in viewer.layers
    assert "too wide for level 1: zoom in" in widget.note.text()


def test_console(viewer: Any, trained: SimpleNamespace) -> None:
    from napari_muvit.plugin import show_attention, show_features

    viewer.open(str(trained.image), plugin="napari-muvit")
    made = show_features(viewer, trained.run, "board", device="cpu",
                         box=((-0.5, -0.5), (63.5, 95.5)))
    assert [layer.name for layer in made] == [COARSE, FINE]
    assert made[1].data.shape == (8, 12, 3)
    made = show_features(viewer, trained.run, mode="Groups", count=3, device="cpu")
    assert set(np.unique(made[1].data)) == {1, 2, 3}
    made = show_attention(viewer, trained.run, (100, 120), encoder_layer=0, device="cpu")
    assert sum(layer.data.sum() for layer in made) == pytest.approx(1, abs=1e-4)
    with pytest.raises(InputError, match="pass one of Colours, Groups"):
        show_features(viewer, trained.run, mode="Colour")
    with pytest.raises(InputError, match=r"layer is 'bord', which is no image here.*'board'"):
        show_features(viewer, trained.run, "bord")


# -- faults ----------------------------------------------------------------------------------


@pytest.mark.faults
@pytest.mark.parametrize(("failure", "said"), [
    (OSError(28, "No space left on device", "spill"), "No space left on device: spill."),
    (MemoryError(), "There is not enough memory"),
    (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "graphics card has not enough"),
    (InputError("the image has 3 channels; the model was trained on 1."), "3 channels"),
])
def test_failures_are_said_and_leave_the_buttons_usable(
    failure: Exception, said: str, widget: Any, viewer: Any, qtbot: Any, notices: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(api, "features", fail)
        widget.compute.click()
        qtbot.waitUntil(lambda: bool(notices), timeout=WAIT_MS)
    assert len(notices) == 1
    assert said in notices[0]
    assert is_idle(widget)
    assert widget.progress.value() <= 0
    compute(widget, viewer, qtbot)


@pytest.mark.faults
def test_image_deleted_before_computing(
    viewer: Any, open_widget: Any, trained: SimpleNamespace, qtbot: Any, tmp_path: Path,
    notices: list[str],
) -> None:
    image = shutil.copytree(trained.image, tmp_path / "board.ome.zarr")
    viewer.open(str(image), plugin="napari-muvit")
    widget = open_widget("MuViT: Features")
    widget.device.setCurrentText("cpu")
    widget.folder.set_path(str(trained.run))
    qtbot.waitUntil(lambda: widget.compute.isEnabled(), timeout=WAIT_MS)
    shutil.rmtree(image)
    widget.compute.click()
    qtbot.waitUntil(lambda: bool(notices), timeout=WAIT_MS)
    qtbot.waitUntil(lambda: is_idle(widget), timeout=WAIT_MS)
    assert "board.ome.zarr" in notices[0]


@pytest.mark.faults
def test_layer_removed_and_viewer_closed_while_computing(
    widget: Any, viewer: Any, qtbot: Any, notices: list[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    widget.compute.click()
    viewer.layers.remove("board")
    qtbot.waitUntil(lambda: widget.job is None, timeout=WAIT_MS)
    qtbot.wait(300)
    assert notices == []
    assert FINE not in viewer.layers
    assert not widget.compute.isEnabled()
    assert not widget.cancel.isEnabled()


@pytest.mark.faults
def test_viewer_closed_while_computing(widget: Any, viewer: Any, qtbot: Any) -> None:
    widget.follow.setChecked(True)
    widget.compute.click()
    job = widget.job
    viewer.close()
    qtbot.waitUntil(lambda: job.is_cancelled or not job.is_running, timeout=WAIT_MS)


@pytest.mark.faults
def test_model_that_is_gone(widget: Any, qtbot: Any, notices: list[str], tmp_path: Path) -> None:
    widget.folder.set_path(str(tmp_path / "nothing"))
    qtbot.waitUntil(lambda: bool(notices), timeout=WAIT_MS)
    assert not widget.compute.isEnabled()
    assert widget.note.text() == ""
