"""Buttons that no other test presses, and a look that none is forgotten."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from qtpy.QtWidgets import QFileDialog
from skimage.io import imsave

from napari_muvit import api
from napari_muvit.plugin import run_control
from napari_muvit.plugin.folder_picker import FolderPicker

WAIT_MS = 60_000
HERE = Path(__file__).parent
PLUGIN = Path(run_control.__file__).parent
MAKES_A_BUTTON = re.compile(r"QPushButton|QToolButton|QCheckBox|_button\b")

PICKERS = (
    ("MuViT: Annotate", "folder"), ("MuViT: Features", "folder"), ("MuViT: Predict", "output"),
    ("MuViT: Pretrain", "output"), ("MuViT: Runs", "parent_folder"),
)


def buttons() -> list[tuple[str, str]]:
    """File and name of every button that a widget of the plugin keeps."""
    found = []
    for path in sorted(PLUGIN.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Assign) or not MAKES_A_BUTTON.search(
                ast.unparse(node.value)
            ):
                continue
            targets = node.targets[0]
            parts = targets.elts if isinstance(targets, ast.Tuple) else [targets]
            found += [(path.name, part.attr) for part in parts if isinstance(part, ast.Attribute)]
    return found


def _tests_of_both_viewers() -> str:
    """The tests of this folder that are run with the plain viewer and with the proxy."""
    parts = []
    for path in sorted(HERE.glob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        marks = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Assign)]
        if not any("one_viewer" in mark for mark in marks):
            parts += [ast.unparse(node) for node in tree.body
                      if isinstance(node, ast.FunctionDef)
                      and "one_viewer" not in " ".join(map(ast.unparse, node.decorator_list))]
    return "\n".join(parts)


def test_every_button_is_pressed_in_both_viewers() -> None:
    tests, known = _tests_of_both_viewers(), buttons()
    assert len(known) > 40
    pressed = set(re.findall(r"(\w+)\.click\(\)", tests))
    # A button with a menu is pressed where an entry of it is chosen.
    pressed |= set(re.findall(r"(\w+)\.menu\(\)|entry\([\w.]*\.(\w+), ", tests))
    flat = {name for part in pressed for name in ([part] if isinstance(part, str) else part)}
    assert [f"{name} of {path}" for path, name in known if name not in flat] == []


def test_folders_are_browsed_for(
    viewer: Any, open_widget: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    viewer.add_image(np.zeros((64, 64), np.uint8), name="board")
    for title, name in PICKERS:
        picker = getattr(open_widget(title), name)
        # The folder of a model is looked into, that of others need not even exist.
        chosen = tmp_path / title.split()[-1]
        monkeypatch.setattr(picker, "_on_edited", lambda: None)
        monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_, p=chosen: str(p))
        picker.browse.click()
        assert picker.path == str(chosen)
        monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: "")
        picker.browse.click()
        assert picker.path == str(chosen)


def test_files_are_added_and_removed(
    viewer: Any, open_widget: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(tmp_path / f"{letter}.png") for letter in "ab"]
    for path in paths:
        imsave(path, np.zeros((64, 64), np.uint8), check_contrast=False)
    monkeypatch.setattr(QFileDialog, "getOpenFileNames", lambda *_: (paths, ""))
    sources = open_widget("MuViT: Pretrain").sources
    sources.add_files.click()
    assert sources.images() == tuple(paths)
    sources.table.selectRow(0)
    sources.remove.click()
    assert sources.images() == (paths[1],)


def test_a_click_on_the_image_can_be_switched_off(viewer: Any, open_widget: Any) -> None:
    viewer.add_image(np.zeros((256, 256), np.uint8), name="board")
    widget = open_widget("MuViT: Crops")
    before = widget.click.isChecked()
    widget.click.click()
    assert widget.click.isChecked() != before
    widget.follow.click()
    assert widget.follow.isChecked()
    widget.follow.click()


@pytest.fixture
def runs(viewer: Any, open_widget: Any, trained: SimpleNamespace, tmp_path: Path) -> Any:
    """The Runs widget on a run that was stopped in the middle."""
    config = {
        "images": (str(trained.image),), "levels": (1, 4), "crop_size": (32,), "preset": "tiny",
        "steps": 5000, "batch_size": 2, "tissue": "none", "threads": 1, "device": "cpu",
        "output": str(tmp_path / "runs" / "one"),
    }
    run = api.pretrain(config)
    for event in run:
        if getattr(event, "step", 0) >= 2:
            run.stop()
    widget = open_widget("MuViT: Runs")
    widget.parent_folder.set_path(str(tmp_path / "runs"))
    return widget


def test_a_stopped_run_is_resumed(
    runs: Any, qtbot: Any, notices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is a short one in its place; that a real one goes on is shown elsewhere."""
    asked: list[list[str]] = []
    real = subprocess.Popen

    def popen(command: list[str], **options: Any) -> Any:
        asked.append(command[1:])
        return real([sys.executable, "-c", "pass"], **options)

    monkeypatch.setattr(run_control.subprocess, "Popen", popen)
    qtbot.waitUntil(lambda: runs.resume.isEnabled(), timeout=WAIT_MS)
    folder = str(runs.chosen)
    runs.resume.click()
    assert not runs.resume.isEnabled()
    assert asked == [["-m", "napari_muvit.train", "resume", folder]]
    qtbot.waitUntil(lambda: runs.control is None and runs.resume.isEnabled(), timeout=WAIT_MS)
    assert notices == []


def test_runs_are_looked_for_again(
    runs: Any, qtbot: Any, trained: SimpleNamespace, tmp_path: Path
) -> None:
    qtbot.waitUntil(lambda: runs.list.count() == 1, timeout=WAIT_MS)
    runs._timer.stop()
    shutil.copytree(trained.run, tmp_path / "runs" / "two")
    runs.refresh.click()
    qtbot.waitUntil(lambda: runs.list.count() == 2, timeout=WAIT_MS)


def test_a_run_is_paused_and_goes_on(
    viewer: Any, open_widget: Any, trained: SimpleNamespace, qtbot: Any, tmp_path: Path
) -> None:
    """By the buttons of Runs, which ask through the folder."""
    viewer.open(str(trained.image), plugin="napari-muvit")
    trains = open_widget("MuViT: Pretrain")
    trains.form.set_values({
        "levels": (1, 4), "crop_size": (32,), "preset": "tiny", "steps": 5000, "batch_size": 2,
        "tissue": "none", "threads": 1, "device": "cpu", "checkpoint_every": 5000,
    })
    trains.sources.add_layer.click()
    trains.output.set_path(str(tmp_path / "runs" / "one"))
    trains.detached.click()
    assert not trains.detached.isChecked()
    trains.start.click()
    place = tmp_path / "runs" / "one"
    qtbot.waitUntil((place / "run.json").is_file, timeout=WAIT_MS)
    folder = api.RunFolder(place)
    qtbot.waitUntil(lambda: folder.status().step > 0, timeout=WAIT_MS)
    runs = open_widget("MuViT: Runs")
    runs.parent_folder.set_path(str(tmp_path / "runs"))
    qtbot.waitUntil(lambda: runs.pause.isEnabled(), timeout=WAIT_MS)
    runs.pause.click()
    assert runs.note.text() == "Asked to pause after the step in progress."
    qtbot.waitUntil(lambda: not folder.control_path.exists(), timeout=WAIT_MS)
    step = folder.status().step
    qtbot.wait(300)
    assert folder.status().step <= step + 1
    runs.go_on.click()
    qtbot.waitUntil(lambda: folder.status().step > step + 1, timeout=WAIT_MS)
    runs.stop.click()
    qtbot.waitUntil(lambda: trains.control is None, timeout=WAIT_MS)
    assert folder.status().state == "stopped"


def test_features_are_cancelled(
    viewer: Any, open_widget: Any, trained: SimpleNamespace, qtbot: Any, notices: list[str]
) -> None:
    viewer.open(str(trained.image), plugin="napari-muvit")
    widget = open_widget("MuViT: Features")
    widget.device.setCurrentText("cpu")
    widget.folder.set_path(str(trained.run))
    qtbot.waitUntil(lambda: widget.compute.isEnabled(), timeout=WAIT_MS)
    widget.follow.click()
    widget.compute.click()
    widget.cancel.click()
    qtbot.waitUntil(lambda: widget.job is None, timeout=WAIT_MS)
    assert not widget.follow.isChecked()
    assert widget.compute.isEnabled()
    assert widget.progress.value() <= 0
    assert notices == []


def test_following_a_training_is_switched_by_its_box(viewer: Any, open_widget: Any) -> None:
    widget = open_widget("MuViT: Predict")
    widget.follow.click()
    assert widget.follow.isChecked()


@pytest.mark.one_viewer
def test_a_typed_folder_is_meant_from_the_home_or_from_here(
    qtbot: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    picker = FolderPicker("A folder.")
    qtbot.addWidget(picker)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for typed, meant in (
        (" ~/runs ", str(tmp_path / "runs")), ("runs/a", str(tmp_path / "runs" / "a")),
        ("", ""), ("hf://owner/model", "hf://owner/model"),
    ):
        picker.set_path(typed)
        assert picker.path == meant
