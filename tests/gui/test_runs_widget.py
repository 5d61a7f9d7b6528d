"""The Runs widget in a real viewer, on real run folders."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from napari._app_model import get_app_model
from qtpy.QtGui import QGuiApplication
from qtpy.QtWidgets import QFileDialog, QWidget

from napari_muvit.plugin import dock

WAIT_MS = 60_000


@pytest.fixture
def runs_folder(trained: SimpleNamespace, tmp_path: Path) -> Path:
    for name in ("one", "deep/two"):
        shutil.copytree(trained.run, tmp_path / "runs" / name)
    return tmp_path / "runs"


def test_lists_shows_and_compares(
    viewer: Any, open_widget: Any, runs_folder: Path, qtbot: Any
) -> None:
    widget = open_widget("MuViT: Runs")
    assert not widget.resume.isEnabled()
    widget.parent_folder.set_path(str(runs_folder))
    qtbot.waitUntil(lambda: widget.list.count() == 2, timeout=WAIT_MS)
    names = sorted(widget.list.item(i).text().split(":")[0] for i in range(2))
    assert names == ["deep/two", "one"]
    qtbot.waitUntil(lambda: widget.view.picture is not None, timeout=WAIT_MS)
    assert "levels:" in widget.config.toPlainText()
    assert not widget.resume.isEnabled()
    assert widget.use.isEnabled()
    qtbot.waitUntil(lambda: bool(widget.view.losses.plot.listDataItems()), timeout=WAIT_MS)
    before = len(widget.view.losses.plot.listDataItems())
    other = next(path for path in (runs_folder / "one", runs_folder / "deep" / "two")
                 if path != widget.chosen)
    config = other / "config.yaml"
    config.write_text(config.read_text().replace("batch_size: 2", "batch_size: 6"))
    widget.other.setCurrentIndex(widget.other.findData(str(other)))
    qtbot.waitUntil(lambda: len(widget.view.losses.plot.listDataItems()) == before + 1,
                    timeout=WAIT_MS)
    assert f"Dashed: {other.name}. Completed" in widget.view.beside.text()
    assert "Here / there: batch size 2 / 6." in widget.view.beside.text()
    widget.other.setCurrentIndex(0)
    qtbot.waitUntil(lambda: len(widget.view.losses.plot.listDataItems()) == before,
                    timeout=WAIT_MS)
    widget.copy.click()
    assert Path(QGuiApplication.clipboard().text()).parent.is_dir()


@pytest.mark.parametrize("name", ["MuViT: Runs", "MuViT: Fine-tune"])
def test_curves_follow_the_theme(viewer: Any, open_widget: Any, qtbot: Any, name: str) -> None:
    from napari.utils.theme import get_theme

    widget = open_widget(name)
    curves = (widget.view.losses, widget.view.scores, widget.view.rates)
    for theme in ("light", "dark", "light"):
        viewer.theme = theme
        colors = get_theme(theme)
        for shown in curves:
            drawn = shown.plot.backgroundBrush().color().getRgb()[:3]
            assert drawn == colors.background.as_rgb_tuple()[:3]
            for side in ("left", "bottom"):
                text = shown.plot.getAxis(side).textPen().color().getRgb()[:3]
                assert text == colors.text.as_rgb_tuple()[:3]


def test_runs_that_come_go_or_break_show_by_themselves(
    viewer: Any, open_widget: Any, runs_folder: Path, qtbot: Any, notices: list[str]
) -> None:
    widget = open_widget("MuViT: Runs")
    widget._timer.setInterval(200)
    widget.parent_folder.set_path(str(runs_folder))
    qtbot.waitUntil(lambda: widget.list.count() == 2, timeout=WAIT_MS)
    chosen = runs_folder / "one"
    rows = [widget.list.item(i).text() for i in range(2)]
    widget.list.setCurrentRow(next(i for i, text in enumerate(rows) if text.startswith("one")))
    widget.other.setCurrentIndex(widget.other.findData(str(runs_folder / "deep" / "two")))
    shutil.copytree(chosen, runs_folder / "three")
    qtbot.waitUntil(lambda: widget.list.count() == 3, timeout=WAIT_MS)
    assert widget.chosen == chosen
    assert widget.other.currentText() == "deep/two"
    (runs_folder / "three" / "run.json").write_text("{")
    qtbot.waitUntil(lambda: any("three: cannot be read" in widget.list.item(i).text()
                                for i in range(3)), timeout=WAIT_MS)
    shutil.rmtree(chosen)
    qtbot.waitUntil(lambda: widget.list.count() == 2, timeout=WAIT_MS)
    assert widget.chosen != chosen
    shutil.rmtree(runs_folder)
    qtbot.waitUntil(lambda: "is no folder" in widget.note.text(), timeout=WAIT_MS)
    assert notices == []


@pytest.mark.one_viewer
def test_a_run_started_headless_shows_live_and_obeys(
    viewer: Any, open_widget: Any, trained: SimpleNamespace, qtbot: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "cluster" / "run"
    command = [
        sys.executable, "-m", "napari_muvit.train", "pretrain", "--images", str(trained.image),
        "--levels", "1", "4", "--crop-size", "32", "--preset", "tiny", "--batch-size", "2",
        "--steps", "5000", "--tissue", "none", "--threads", "1", "--device", "cpu",
        "--output", str(folder),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        folder.parent.mkdir()
        widget = open_widget("MuViT: Runs")
        widget._timer.setInterval(300)
        widget.parent_folder.set_path(str(folder.parent))
        qtbot.waitUntil(lambda: widget.list.count() == 1, timeout=WAIT_MS)
        qtbot.waitUntil(lambda: widget.stop.isEnabled(), timeout=WAIT_MS)
        qtbot.waitUntil(lambda: widget.view.picture.step > 2, timeout=WAIT_MS)
        assert widget.use.text() == "Use to fine-tune"
        step = widget.view.picture.step
        qtbot.waitUntil(lambda: widget.view.picture.step > step, timeout=WAIT_MS)
        widget.stop.click()
        assert process.wait(60) == 0
        qtbot.waitUntil(lambda: widget.resume.isEnabled(), timeout=WAIT_MS)
        qtbot.waitUntil(lambda: "stopped" in widget.list.item(0).text(), timeout=WAIT_MS)
    finally:
        process.kill()
        process.wait()


def test_exports(
    viewer: Any, open_widget: Any, runs_folder: Path, tmp_path: Path, qtbot: Any,
    notices: list[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    widget = open_widget("MuViT: Runs")
    widget.parent_folder.set_path(str(runs_folder))
    qtbot.waitUntil(lambda: widget.export.isEnabled(), timeout=WAIT_MS)
    official, package = widget.export.menu().actions()
    for action, name in ((package, "package"), (official, "official")):
        target = str(tmp_path / name)
        monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_, t=target: (t, ""))
        action.trigger()
        qtbot.waitUntil(lambda: widget.job is None, timeout=WAIT_MS)
        assert widget.export.isEnabled()
        if name == "package":
            assert (tmp_path / name / "rdf.yaml").is_file()
            assert target in widget.note.text()
            assert notices == []
    assert "cannot be written in the official format" in notices[0]
    assert widget.note.text() == ""


def test_remembers_its_folder(
    viewer: Any, open_widget: Any, runs_folder: Path, qtbot: Any
) -> None:
    from napari_muvit.plugin.runs_widget import RunsWidget

    first = open_widget("MuViT: Runs")
    first.parent_folder.set_path(str(runs_folder))
    second = RunsWidget(viewer)
    viewer.window.add_dock_widget(second, name="again")
    assert second.parent_folder.path == str(runs_folder)
    qtbot.waitUntil(lambda: second.list.count() == 2, timeout=WAIT_MS)
    second.list.setCurrentRow(1)
    chosen = second.chosen
    third = RunsWidget(viewer)
    viewer.window.add_dock_widget(third, name="and again")
    qtbot.waitUntil(lambda: third.chosen == chosen, timeout=WAIT_MS)


@pytest.mark.faults
@pytest.mark.parametrize(("failure", "said"), [
    (OSError(28, "No space left on device", "package"), "No space left on device: package."),
    (MemoryError(), "There is not enough memory"),
])
def test_export_that_fails(
    failure: Exception, said: str, viewer: Any, open_widget: Any, runs_folder: Path,
    tmp_path: Path, qtbot: Any, notices: list[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: Any) -> Any:
        raise failure

    widget = open_widget("MuViT: Runs")
    widget.parent_folder.set_path(str(runs_folder))
    qtbot.waitUntil(lambda: widget.export.isEnabled(), timeout=WAIT_MS)
    monkeypatch.setattr(widget.backend, "export", fail)
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(tmp_path / "out"), ""))
    widget.export.menu().actions()[0].trigger()
    qtbot.waitUntil(lambda: bool(notices), timeout=WAIT_MS)
    assert said in notices[0]
    assert widget.export.isEnabled()
    assert widget.note.text() == ""


def test_folder_without_runs_and_no_folder(
    viewer: Any, open_widget: Any, tmp_path: Path, notices: list[str], qtbot: Any
) -> None:
    widget = open_widget("MuViT: Runs")
    widget.parent_folder.set_path(str(tmp_path))
    qtbot.waitUntil(lambda: "no runs" in widget.note.text(), timeout=WAIT_MS)
    widget.parent_folder.set_path(str(tmp_path / "missing"))
    qtbot.waitUntil(lambda: bool(notices), timeout=WAIT_MS)
    assert "no folder" in notices[0]


def test_a_widget_opened_from_the_menu_is_used_again(viewer: Any, qtbot: Any) -> None:
    opened = QWidget()
    holder = viewer.window.add_dock_widget(opened, name="MuViT: Predict (MuViT)")
    holder.hide()
    assert dock.open_widget(viewer, "MuViT: Predict") is opened
    assert holder.isVisible()
    runs = dock.open_widget(viewer, "MuViT: Runs")
    assert dock.open_widget(viewer, "MuViT: Runs") is runs


def test_the_menu_finds_a_widget_that_was_opened_by_a_button(viewer: Any, qtbot: Any) -> None:
    opened = dock.open_widget(viewer, "MuViT: Runs")
    qtbot.waitUntil(opened.isVisible, timeout=WAIT_MS)
    get_app_model().commands.execute_command("napari-muvit.runs")
    assert not opened.isVisible()  # the entry is checked, so choosing it hides the widget
    get_app_model().commands.execute_command("napari-muvit.runs")
    assert opened.isVisible()
    assert [title for title in viewer.window.dock_widgets if "Runs" in title] == [
        "MuViT: Runs (MuViT)"]
