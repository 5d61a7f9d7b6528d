"""The Pretrain and Fine-tune widgets in a real viewer, training real (tiny) models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtGui import QGuiApplication
from skimage.io import imsave

from napari_muvit import api
from napari_muvit.config import PretrainConfig, parse_config
from napari_muvit.errors import RunError
from napari_muvit.plugin.train_widget import PretrainWidget

TINY = {
    "levels": (1, 4), "crop_size": (32,), "preset": "tiny", "steps": 4, "batch_size": 2,
    "tissue": "none", "preview_every": 2, "checkpoint_every": 2, "threads": 1, "device": "cpu",
}
WAIT_MS = 90_000


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "tissue.png"
    image = np.random.default_rng(0).integers(0, 255, (160, 192, 3), dtype=np.uint8)
    imsave(path, image, check_contrast=False)
    labels = 1 + (image[..., 0] > 127).astype(np.uint8)
    imsave(tmp_path / "labels.tif", labels, check_contrast=False)
    return path


@pytest.fixture
def widget(viewer: Any, open_widget: Any, picture: Path) -> Any:
    viewer.open(str(picture), plugin="napari")
    widget = open_widget("MuViT: Pretrain")
    widget.form.set_values(TINY)
    return widget


def shown_step(widget: Any) -> int:
    return widget.view.picture.step if widget.view.picture is not None else 0


def is_idle(widget: Any) -> bool:
    return bool(widget.control is None and not widget.stop.isEnabled())


def test_start_waits_for_images_and_folder(viewer: Any, open_widget: Any) -> None:
    widget = open_widget("MuViT: Pretrain")
    assert not widget.start.isEnabled()
    assert "no images" in widget.note.text()
    widget.sources.add("a.png")
    assert widget.start.isEnabled()
    assert "muvit-runs" in widget.output.path


def test_wrong_option_is_named_before_start(widget: Any, picture: Path) -> None:
    widget.sources.add_layer.click()
    assert widget.sources.images() == (str(picture),)
    # Of a path too long for its cell the name at its end is shown.
    assert widget.sources.table.textElideMode() == Qt.TextElideMode.ElideLeft
    assert not widget.sources.table.wordWrap()
    widget.form.set_values({"crop_size": (30,)})
    widget.form.changed.emit()
    assert "crop_size 30" in widget.note.text()
    assert not widget.start.isEnabled()


def test_levels_and_memory_are_judged_before_start(widget: Any, qtbot: Any) -> None:
    widget.form.set_values({"levels": (1, 32)})
    widget.sources.add_layer.click()
    qtbot.waitUntil(lambda: "GB of memory" in widget.advice.text(), timeout=WAIT_MS)
    assert "level 32 span 1024 x 1024 px" in widget.advice.text()
    assert "Better here" in widget.advice.text()
    assert widget.start.isEnabled()
    widget.form.set_values({"levels": (1, 4)})
    widget.form.changed.emit()
    qtbot.waitUntil(lambda: widget.advice.text().startswith("Needs about"), timeout=WAIT_MS)
    widget.form.set_values({"crop_size": (30,)})
    widget.form.changed.emit()
    qtbot.waitUntil(lambda: widget.advice.text() == "", timeout=WAIT_MS)


def test_levels_and_crop_size_suit_the_image(
    viewer: Any, open_widget: Any, picture: Path, qtbot: Any
) -> None:
    viewer.open(str(picture), plugin="napari")
    widget = open_widget("MuViT: Pretrain")
    editors = widget.form.editors
    widget.sources.add_layer.click()
    qtbot.waitUntil(lambda: editors["crop_size"].text() == "128", timeout=WAIT_MS)
    assert editors["levels"].text() == "1"
    crops = open_widget("MuViT: Crops")
    qtbot.waitUntil(lambda: crops.image is not None, timeout=WAIT_MS)
    assert crops.levels_edit.text() == "1"
    crops.levels_edit.setText("1, 2")
    crops.levels_edit.editingFinished.emit()
    tuned = open_widget("MuViT: Fine-tune")
    tuned.sources.add(str(picture))
    qtbot.waitUntil(lambda: tuned.form.editors["levels"].text() == "1, 2", timeout=WAIT_MS)


@pytest.mark.parametrize("detached", [
    pytest.param(False, id="thread"),
    pytest.param(True, id="process", marks=pytest.mark.one_viewer),
])
def test_pretrain(detached: bool, widget: Any, qtbot: Any) -> None:
    widget.sources.add_layer.click()
    widget.detached.setChecked(detached)
    widget.start.click()
    assert not widget.start.isEnabled()
    assert widget.stop.isEnabled()
    assert widget.view.headline.text() == "Starting …"
    said = set()

    def has_ended() -> bool:
        said.add(widget.view.headline.text().split(",")[0])
        return is_idle(widget)

    qtbot.waitUntil(has_ended, timeout=WAIT_MS)
    assert "Interrupted" not in said
    # A run of four steps can be over before it is seen to run; then the next look tells.
    qtbot.waitUntil(lambda: "Completed, step 4 of 4" in widget.view.headline.text(),
                    timeout=WAIT_MS)
    assert widget.view.picture.state == "completed"
    assert not widget.resume.isEnabled()
    assert len(widget.view.picture.train) == 4
    assert widget.view.losses.plot.listDataItems()
    assert not widget.view.preview.pixmap().isNull()


def test_previews_are_a_layer_that_changes_in_place(
    widget: Any, viewer: Any, qtbot: Any
) -> None:
    widget.sources.add_layer.click()
    widget.form.set_values({"steps": 400, "preview_every": 3})
    widget.detached.setChecked(False)
    widget.start.click()
    qtbot.waitUntil(lambda: widget.view.as_layer.isVisible(), timeout=WAIT_MS)
    widget.view.as_layer.click()
    name = f"preview of {Path(widget.output.path).name}"
    layer = viewer.layers[name]
    image = viewer.layers[0].extent.world
    assert layer.extent.world[0, 1] > image[1, 1]
    assert np.ptp(layer.extent.world[:, 0]) == pytest.approx(np.ptp(image[:, 0]), rel=0.05)
    first = layer.data
    qtbot.waitUntil(lambda: layer.data is not first and not np.array_equal(layer.data, first),
                    timeout=WAIT_MS)
    assert viewer.layers[name].unique_id == layer.unique_id
    viewer.layers.remove(name)
    qtbot.waitUntil(lambda: name in viewer.layers, timeout=WAIT_MS)
    widget.view.as_layer.click()
    widget.stop.click()
    qtbot.waitUntil(lambda: is_idle(widget), timeout=WAIT_MS)


def test_pause_stop_and_resume(widget: Any, qtbot: Any) -> None:
    widget.sources.add_layer.click()
    widget.form.set_values({"steps": 400})
    widget.detached.setChecked(False)
    widget.start.click()
    qtbot.waitUntil(lambda: widget.view.picture is not None and widget.view.picture.step > 1,
                    timeout=WAIT_MS)
    widget.pause.click()
    assert widget.pause.text() == "Continue"
    widget.pause.click()
    assert widget.pause.text() == "Pause"
    widget.stop.click()
    qtbot.waitUntil(lambda: is_idle(widget), timeout=WAIT_MS)
    folder = api.RunFolder(widget.output.path)
    assert folder.status().state == "stopped"
    stopped_at = folder.status().step
    widget.resume.click()
    qtbot.waitUntil(lambda: widget.view.picture is not None
                    and widget.view.picture.step > stopped_at, timeout=WAIT_MS)
    widget.stop.click()
    qtbot.waitUntil(lambda: is_idle(widget), timeout=WAIT_MS)


@pytest.mark.one_viewer
def test_process_pauses_goes_on_stops_and_resumes(
    widget: Any, open_widget: Any, qtbot: Any
) -> None:
    """All of it asked through the run folder, as from the Runs widget of another napari."""
    widget.sources.add_layer.click()
    widget.form.set_values({"steps": 4000, "checkpoint_every": 4000})
    widget.start.click()
    qtbot.waitUntil(lambda: shown_step(widget) > 40, timeout=WAIT_MS)
    folder = api.RunFolder(widget.output.path)
    widget.pause.click()
    assert widget.pause.text() == "Continue"
    qtbot.waitUntil(lambda: not folder.control_path.exists(), timeout=WAIT_MS)
    step = folder.status().step
    qtbot.wait(1000)
    assert folder.status().step <= step + 1
    assert widget.view.headline.text().startswith("Paused, step")
    assert "faint: every step" in widget.view.losses.caption.text()
    widget.pause.click()
    qtbot.waitUntil(lambda: folder.status().step > step + 1, timeout=WAIT_MS)
    widget.stop.click()
    qtbot.waitUntil(lambda: is_idle(widget), timeout=WAIT_MS)
    assert folder.status().state == "stopped"
    assert folder.state_path.exists()
    stopped_at = folder.status().step
    widget.resume.click()
    qtbot.waitUntil(lambda: widget.view.headline.text() == "Starting …", timeout=WAIT_MS)
    qtbot.waitUntil(lambda: shown_step(widget) > stopped_at, timeout=WAIT_MS)
    runs = open_widget("MuViT: Runs")
    qtbot.waitUntil(lambda: runs.stop.isEnabled(), timeout=WAIT_MS)
    runs.stop.click()
    qtbot.waitUntil(lambda: is_idle(widget), timeout=WAIT_MS)
    assert folder.status().state == "stopped"


@pytest.mark.one_viewer
def test_process_is_stopped_before_it_has_begun(
    widget: Any, notices: list[str], qtbot: Any
) -> None:
    widget.sources.add_layer.click()
    widget.start.click()
    widget.stop.click()
    qtbot.waitUntil(lambda: is_idle(widget), timeout=WAIT_MS)
    assert notices == []
    assert widget.start.isEnabled()


@pytest.mark.one_viewer
def test_process_that_cannot_start_says_why(
    widget: Any, notices: list[str], qtbot: Any, tmp_path: Path
) -> None:
    widget.sources.add(str(tmp_path / "missing.png"))
    widget.start.click()
    qtbot.waitUntil(lambda: is_idle(widget), timeout=WAIT_MS)
    assert len(notices) == 1
    assert "missing.png" in notices[0]
    assert widget.start.isEnabled()


def test_failure_in_the_thread_is_said(
    widget: Any, notices: list[str], qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(config: Any) -> Any:
        raise RunError("the disk is full.")

    monkeypatch.setattr(widget.backend, "pretrain", fail)
    widget.sources.add_layer.click()
    widget.detached.setChecked(False)
    widget.start.click()
    qtbot.waitUntil(lambda: is_idle(widget), timeout=WAIT_MS)
    assert notices == ["the disk is full."]
    assert widget.start.isEnabled()


def test_copied_command_names_what_was_changed(widget: Any) -> None:
    widget.sources.add_layer.click()
    widget.copy.click()
    command = QGuiApplication.clipboard().text()
    assert command.startswith("python -m napari_muvit.train pretrain --images")
    assert "--preset tiny" in command
    assert "--weight-decay" not in command


def test_copied_config_is_the_run(widget: Any, tmp_path: Path) -> None:
    widget.sources.add_layer.click()
    widget.copy_config.click()
    path = tmp_path / "copied.yaml"
    path.write_text(QGuiApplication.clipboard().text())
    assert parse_config(PretrainConfig, path) == widget.config()


def test_time_is_measured_before_the_start(widget: Any, picture: Path, qtbot: Any) -> None:
    widget.sources.add_layer.click()
    assert widget.speed.text.text() == ""
    widget.form.set_values({"steps": 5000})
    widget.form.changed.emit()
    widget.speed.measure.click()
    assert not widget.start.isEnabled()
    assert widget.speed.measure.text() == "Cancel"
    qtbot.waitUntil(lambda: not widget.speed.is_busy, timeout=WAIT_MS)
    assert "crops per second on this computer: about" in widget.speed.text.text()
    assert "for 5000 steps" in widget.speed.text.text()
    assert widget.start.isEnabled()
    assert not Path(widget.output.path).exists()
    widget.form.set_values({"batch_size": 3})
    widget.form.changed.emit()
    assert widget.speed.text.text() == ""


def test_measuring_is_cancelled_and_fails_in_words(
    widget: Any, qtbot: Any, notices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    widget.sources.add_layer.click()
    widget.speed.measure.click()
    widget.speed.measure.click()
    qtbot.waitUntil(lambda: not widget.speed.is_busy, timeout=WAIT_MS)
    assert widget.speed.text.text() == ""
    assert widget.speed.measure.isEnabled()
    assert notices == []

    def fail(config: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(widget.backend, "pretrain", fail)
    widget.speed.measure.click()
    qtbot.waitUntil(lambda: not widget.speed.is_busy, timeout=WAIT_MS)
    assert "not enough memory" in notices[0]
    assert widget.start.isEnabled()


@pytest.mark.one_viewer
def test_a_run_of_an_earlier_napari_comes_back(
    widget: Any, viewer: Any, qtbot: Any, picture: Path
) -> None:
    """As after closing napari: a new widget on the same image finds the process again."""
    widget.sources.add_layer.click()
    widget.form.set_values({"steps": 5000})
    widget.start.click()
    qtbot.waitUntil(lambda: shown_step(widget) > 1, timeout=WAIT_MS)
    again = PretrainWidget(viewer)
    viewer.window.add_dock_widget(again, name="again")
    qtbot.waitUntil(lambda: again.control is not None, timeout=WAIT_MS)
    assert again.output.path == widget.output.path
    assert not again.start.isEnabled()
    again.stop.click()
    qtbot.waitUntil(lambda: is_idle(again) and is_idle(widget), timeout=WAIT_MS)
    assert api.RunFolder(widget.output.path).status().state == "stopped"
    last = PretrainWidget(viewer)
    viewer.window.add_dock_widget(last, name="and again")
    qtbot.waitUntil(lambda: last.resume.isEnabled(), timeout=WAIT_MS)
    assert last.view.folder == Path(widget.output.path)
    assert last.control is None


def test_finetune(viewer: Any, open_widget: Any, picture: Path, qtbot: Any) -> None:
    widget = open_widget("MuViT: Fine-tune")
    widget.form.set_values(TINY)
    widget.sources.add(str(picture), str(picture.with_name("labels.tif")))
    widget.detached.setChecked(False)
    widget.start.click()
    qtbot.waitUntil(lambda: is_idle(widget), timeout=WAIT_MS)
    assert api.RunFolder(widget.output.path).status().state == "completed"
