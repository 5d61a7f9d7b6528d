"""What goes wrong while a run is trained: a sentence, buttons that work, nothing lost."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from skimage.io import imsave

from napari_muvit import api
from napari_muvit.models.mae import MAE
from napari_muvit.training import files as training_files

pytestmark = pytest.mark.faults
WAIT_MS = 90_000
LONG = {
    "levels": (1, 4), "crop_size": (32,), "preset": "tiny", "steps": 5000, "batch_size": 2,
    "tissue": "none", "preview_every": 5000, "checkpoint_every": 5, "threads": 1, "device": "cpu",
    "validate_every": 5000,
}
HOW = pytest.mark.parametrize("detached", [
    pytest.param(False, id="thread"),
    pytest.param(True, id="process", marks=pytest.mark.one_viewer),
])


@pytest.fixture
def widget(
    viewer: Any, open_widget: Any, trained: SimpleNamespace, tmp_path: Path
) -> Any:
    """The Pretrain widget on a copy of an image that may be damaged."""
    image = shutil.copytree(trained.image, tmp_path / "board.ome.zarr")
    viewer.open(str(image), plugin="napari-muvit")
    widget = open_widget("MuViT: Pretrain")
    widget.form.set_values(LONG)
    widget.sources.add_layer.click()
    widget.output.set_path(str(tmp_path / "run"))
    return widget


def start(widget: Any, qtbot: Any, detached: bool, step: int = 6) -> api.RunFolder:
    widget.detached.setChecked(detached)
    widget.start.click()
    qtbot.waitUntil(lambda: widget.view.picture is not None
                    and widget.view.picture.step >= step, timeout=WAIT_MS)
    return api.RunFolder(widget.output.path)


def ends(widget: Any, qtbot: Any) -> None:
    """Wait for the end; whatever it was, the buttons must work again."""
    qtbot.waitUntil(lambda: widget.control is None, timeout=WAIT_MS)
    qtbot.waitUntil(lambda: not widget.view.picture.is_running, timeout=WAIT_MS)
    assert widget.start.isEnabled()
    assert not widget.stop.isEnabled()
    assert not widget.pause.isEnabled()
    assert widget.pause.text() == "Pause"


def goes_on(widget: Any, qtbot: Any) -> None:
    """Resume continues from the checkpoint; then the run is stopped."""
    step = widget.view.picture.step
    qtbot.waitUntil(lambda: widget.resume.isEnabled(), timeout=WAIT_MS)
    widget.resume.click()
    qtbot.waitUntil(lambda: widget.view.picture is not None
                    and widget.view.picture.step > step, timeout=WAIT_MS)
    widget.stop.click()
    ends(widget, qtbot)


@HOW
def test_layer_removed_while_training(
    detached: bool, widget: Any, viewer: Any, qtbot: Any, notices: list[str]
) -> None:
    folder = start(widget, qtbot, detached)
    viewer.layers.clear()
    step = folder.status().step
    qtbot.waitUntil(lambda: folder.status().step > step + 2, timeout=WAIT_MS)
    widget.stop.click()
    ends(widget, qtbot)
    assert folder.status().state == "stopped"
    assert notices == []


@HOW
def test_image_deleted_while_training(
    detached: bool, widget: Any, qtbot: Any, notices: list[str], tmp_path: Path
) -> None:
    shutil.copytree(tmp_path / "board.ome.zarr", tmp_path / "copy")
    folder = start(widget, qtbot, detached)
    moved = tmp_path / "gone"
    (tmp_path / "board.ome.zarr").rename(moved)
    ends(widget, qtbot)
    assert len(notices) == 1
    assert "board.ome.zarr" in notices[0]
    assert folder.status().state == "failed"
    qtbot.waitUntil(lambda: "board.ome.zarr" in widget.view.headline.text(), timeout=WAIT_MS)
    moved.rename(tmp_path / "board.ome.zarr")
    goes_on(widget, qtbot)


def test_disk_full_while_training(
    widget: Any, qtbot: Any, notices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = start(widget, qtbot, detached=False)

    def full(handle: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(training_files.os, "fsync", full)
        ends(widget, qtbot)
    assert len(notices) == 1
    assert "the disk is full" in notices[0]
    assert folder.state_path.exists()
    goes_on(widget, qtbot)


def test_memory_runs_out_while_training(
    widget: Any, qtbot: Any, notices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start(widget, qtbot, detached=False)

    def exhausted(*arguments: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(MAE, "forward", exhausted)
        ends(widget, qtbot)
    assert len(notices) == 1
    assert "memory ran out with one sample at a time. Take a smaller crop_size" in notices[0]
    goes_on(widget, qtbot)


@pytest.mark.one_viewer
def test_process_that_is_killed(widget: Any, qtbot: Any, notices: list[str]) -> None:
    start(widget, qtbot, detached=True)
    widget.control._process.kill()
    ends(widget, qtbot)
    assert len(notices) == 1
    assert "was killed, most likely because memory ran out" in notices[0]
    assert widget.view.picture.state == "interrupted"
    goes_on(widget, qtbot)


@pytest.mark.one_viewer
def test_viewer_closed_while_a_process_trains(
    widget: Any, viewer: Any, qtbot: Any
) -> None:
    """It goes on; stopping it through its folder works as from a napari opened again."""
    folder = start(widget, qtbot, detached=True)
    viewer.close()
    step = folder.status().step
    qtbot.waitUntil(lambda: folder.status().step > step + 2, timeout=WAIT_MS)
    folder.ask("stop")
    qtbot.waitUntil(lambda: folder.status().state == "stopped", timeout=WAIT_MS)


def test_viewer_closed_while_time_is_measured(widget: Any, viewer: Any, qtbot: Any) -> None:
    widget.speed.measure.click()
    check, job = widget.speed.check, widget.speed.job
    viewer.close()
    thread = job._thread
    thread.join(60)
    assert not thread.is_alive()
    assert check.crops_per_second is None


@HOW
@pytest.mark.parametrize("other", ["levels", "channels"])
def test_model_of_other_levels_or_channels(
    other: str, detached: bool, viewer: Any, open_widget: Any, trained: SimpleNamespace,
    tmp_path: Path, qtbot: Any, notices: list[str],
) -> None:
    colours = np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)
    imsave(tmp_path / "colours.png", colours, check_contrast=False)
    imsave(tmp_path / "classes.tif", 1 + (colours[..., 0] > 127).astype(np.uint8),
           check_contrast=False)
    widget = open_widget("MuViT: Fine-tune")
    widget.form.set_values({**LONG, "pretrained": str(trained.run)})
    if other == "levels":
        widget.form.set_values({"levels": (1, 2)})
        widget.sources.add(str(trained.image), str(trained.labels))
        said = "has no 2"
    else:
        widget.sources.add(str(tmp_path / "colours.png"), str(tmp_path / "classes.tif"))
        said = "the pretrained model reads 1 channels, the images have 3"
    widget.output.set_path(str(tmp_path / "run"))
    widget.detached.setChecked(detached)
    widget.start.click()
    qtbot.waitUntil(lambda: widget.control is None, timeout=WAIT_MS)
    assert len(notices) == 1
    assert said in notices[0]
    assert widget.start.isEnabled()
    assert not (tmp_path / "run").exists()
    assert widget.view.headline.text() == ""


def test_fine_tuning_takes_over_what_was_pretrained(
    viewer: Any, open_widget: Any, trained: SimpleNamespace
) -> None:
    widget = open_widget("MuViT: Fine-tune")
    widget.take_model(str(trained.run))
    values = widget.form.values()
    assert (tuple(values["levels"]), tuple(values["crop_size"])) == ((1, 4), (32,))
    assert (values["pretrained"], values["preset"]) == (str(trained.run), "tiny")
