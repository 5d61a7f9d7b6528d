"""The Runs widget in a real viewer, on real run folders."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from qtpy.QtGui import QGuiApplication
from qtpy.QtWidgets import QFileDialog

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
    before = len(widget.view.losses.plot.listDataItems())
    widget.other.setCurrentIndex(1)
    assert len(widget.view.losses.plot.listDataItems()) == before + 1
    widget.copy.click()
    assert Path(QGuiApplication.clipboard().text()).parent.is_dir()


@pytest.mark.one_viewer
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


def test_folder_without_runs_and_no_folder(
    viewer: Any, open_widget: Any, tmp_path: Path, notices: list[str], qtbot: Any
) -> None:
    widget = open_widget("MuViT: Runs")
    widget.parent_folder.set_path(str(tmp_path))
    qtbot.waitUntil(lambda: "no runs" in widget.note.text(), timeout=WAIT_MS)
    widget.parent_folder.set_path(str(tmp_path / "missing"))
    qtbot.waitUntil(lambda: bool(notices), timeout=WAIT_MS)
    assert "no folder" in notices[0]
