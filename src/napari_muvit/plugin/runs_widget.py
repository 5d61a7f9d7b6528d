"""MuViT: Runs. Every run below a folder, whoever started it: watched, compared, resumed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtGui import QGuiApplication
from qtpy.QtWidgets import (
    QComboBox,
    QFileDialog,
    QFormLayout,
    QListWidget,
    QListWidgetItem,
    QMenu,
    QPlainTextEdit,
    QPushButton,
)
from superqt import QCollapsible

from napari_muvit.errors import RunError
from napari_muvit.plugin import runs
from napari_muvit.plugin.background import Job, LatestTask
from napari_muvit.plugin.dock import DockWidget, row, wrapped_label
from napari_muvit.plugin.folder_picker import FolderPicker
from napari_muvit.plugin.notices import notifies, show_failure, show_hint
from napari_muvit.plugin.remembered import recall, remember
from napari_muvit.plugin.run_view import RunView

PREDICT = "MuViT: Predict"
LIST_HEIGHT = 110
FORMATS = (("for the muvit package", "official"), ("for bioimage.io", "bioimageio"))
ASKING: tuple[tuple[str, runs.Action, str], ...] = (
    ("Pause", "pause", "Hold the run, also one of another process or computer."),
    ("Continue", "resume", "Let a paused run go on."),
    ("Stop", "stop", "Let the run write a checkpoint and end; Resume goes on from there."),
)
ASKED = {
    "pause": "Asked to pause after the step in progress.", "resume": "Asked to go on.",
    "stop": "Asked to write a checkpoint and end.",
}


class RunsWidget(DockWidget):
    """Lists run folders, also those on a shared disk or started without napari."""

    def __init__(self, napari_viewer: Any, backend: Any = None) -> None:
        super().__init__(napari_viewer, backend)
        self.control: runs.ProcessRun | None = None
        self.job: Job | None = None
        self._finder = LatestTask(runs.list_runs)
        self._build()
        self._finder.finished.connect(self._on_found)
        self._finder.failed.connect(show_failure)
        self.destroyed.connect(self._finder.stop)
        last = recall(None, "runs")
        if last and Path(str(last)).is_dir():
            self.parent_folder.set_path(str(last))
        self._show_state()

    def _build(self) -> None:
        self.parent_folder = FolderPicker(
            "Folder below which runs are looked for, three folders deep.", "folder of runs"
        )
        self.parent_folder.changed.connect(self._on_refresh)
        self.refresh = QPushButton("Look again")
        self.refresh.setToolTip("Look for new runs in the folder.")
        self.refresh.clicked.connect(self._on_refresh)
        form = QFormLayout()
        form.addRow("Folder", self.parent_folder)
        self.body.addLayout(form)
        self.body.addWidget(self.refresh)
        self.list = QListWidget()
        self.list.setToolTip("Runs, the newest first.")
        self.list.setFixedHeight(LIST_HEIGHT)
        self.list.setTextElideMode(Qt.TextElideMode.ElideMiddle)
        self.list.currentItemChanged.connect(self._on_chosen)
        self.body.addWidget(self.list)
        self.resume = QPushButton("Resume")
        self.resume.setToolTip("Go on from the last checkpoint, in a process of its own.")
        self.resume.clicked.connect(self._on_resume)
        self.use = QPushButton("Use to predict")
        self.use.setToolTip("Open the Predict widget with this run's model.")
        self.use.clicked.connect(self._on_use)
        self.copy = QPushButton("Copy path")
        self.copy.setToolTip("Copy the path of the run folder.")
        self.copy.clicked.connect(self._on_copy)
        self.body.addLayout(row(self.resume, self.use, self.copy))
        self.pause, self.go_on, self.stop = (self._asking(*words) for words in ASKING)
        self.body.addLayout(row(self.pause, self.go_on, self.stop))
        self.export = QPushButton("Export …")
        self.export.setToolTip(
            "Write the run's model for other programs: the folder that the muvit package reads, or "
            "a package for bioimage.io."
        )
        menu = QMenu(self.export)
        for text, kind in FORMATS:
            action = menu.addAction(text)
            action.triggered.connect(partial(self._on_export, kind))
        self.export.setMenu(menu)
        self.body.addWidget(self.export)
        self.other = QComboBox()
        self.other.setToolTip("A second run whose loss is drawn into the same axes.")
        self.other.currentIndexChanged.connect(self._on_compare)
        compare = QFormLayout()
        compare.addRow("Compare with", self.other)
        self.body.addLayout(compare)
        self.view = RunView(lambda: self.backend)
        self.view.refreshed.connect(self._show_state)
        self.body.addWidget(self.view)
        self._build_config()
        self.note = wrapped_label()
        self.body.addWidget(self.note)
        self.body.addStretch(1)

    def _asking(self, text: str, action: runs.Action, tooltip: str) -> QPushButton:
        """A button that asks the chosen run for something, whoever started it."""
        button = QPushButton(text)
        button.setToolTip(tooltip)
        button.clicked.connect(lambda: self._on_ask(action))
        return button

    @notifies
    def _on_ask(self, action: runs.Action) -> None:
        folder = self.chosen
        if folder is None or not runs.ask_run(folder, action):
            raise RunError("the run does not go on any more. Press Resume to continue it.")
        self.note.setText(ASKED[action])

    def _build_config(self) -> None:
        self.config = QPlainTextEdit()
        self.config.setReadOnly(True)
        self.config.setMinimumHeight(160)
        self.config.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        fold = QCollapsible("Configuration")
        fold.addWidget(self.config)
        self.body.addWidget(fold)

    @property
    def chosen(self) -> Path | None:
        """The run folder that is chosen."""
        item = self.list.currentItem()
        return None if item is None else Path(item.data(Qt.ItemDataRole.UserRole))

    def _on_refresh(self, text: Any = None) -> None:
        if self.parent_folder.path:
            folder = Path(self.parent_folder.path).expanduser()
            remember(None, runs=str(folder.absolute()))
            self._finder.request(self.backend, folder)

    @notifies
    def _on_found(self, found: list[runs.RunLine]) -> None:
        before = self.chosen
        self.list.blockSignals(True)
        self.other.blockSignals(True)
        self.list.clear()
        self.other.clear()
        self.other.addItem("none", None)
        for line in found:
            item = QListWidgetItem(line.text)
            item.setData(Qt.ItemDataRole.UserRole, str(line.folder))
            item.setToolTip(str(line.folder))
            self.list.addItem(item)
            self.other.addItem(line.name, str(line.folder))
            if line.folder == before:
                self.list.setCurrentItem(item)
        self.list.blockSignals(False)
        self.other.blockSignals(False)
        self.note.setText("" if found else "There are no runs below this folder.")
        if self.chosen != before or before is None:
            self.list.setCurrentRow(0)
        self._show_state()

    @notifies
    def _on_chosen(self, item: Any, previous: Any) -> None:
        folder = self.chosen
        self.view.watch(folder)
        text = ""
        if folder is not None and (folder / "config.yaml").is_file():
            text = (folder / "config.yaml").read_text(encoding="utf-8")
        self.config.setPlainText(text)
        self._show_state()

    @notifies
    def _on_compare(self, index: int) -> None:
        data = self.other.currentData()
        other = None if data is None else runs.read_run(self.backend, Path(data))
        self.view.compare_with(other)

    def _show_state(self, picture: Any = None) -> None:
        shown = self.view.picture
        has_run = self.chosen is not None
        self.resume.setEnabled(shown is not None and shown.can_resume)
        for button in (self.pause, self.go_on, self.stop):
            button.setEnabled(shown is not None and shown.is_running)
        self._tell_failure()
        self.use.setEnabled(has_run and shown is not None and shown.kind != "pretrain")
        self.copy.setEnabled(has_run)
        self.export.setEnabled(has_run and self.job is None and shown is not None)
        self.refresh.setEnabled(bool(self.parent_folder.path))

    def _tell_failure(self) -> None:
        """Say once why a run that was resumed here ended."""
        error = None if self.control is None else self.control.error()
        if error is not None:
            self.control = None
            show_failure(error)

    @notifies
    def _on_resume(self, checked: bool = False) -> None:
        folder = self.chosen
        if folder is None:
            raise RunError("no run is chosen. Choose one in the list.")
        self.control = runs.resume_process(folder)
        self.view.watch(folder)
        self.resume.setEnabled(False)

    @notifies
    def _on_use(self, checked: bool = False) -> None:
        _, widget = self.viewer.window.add_plugin_dock_widget("napari-muvit", PREDICT)
        widget.folder.set_path(str(self.chosen))

    @notifies
    def _on_export(self, kind: str, checked: bool = False) -> None:
        folder = self.chosen
        if folder is None:
            raise RunError("no run is chosen. Choose one in the list.")
        first = str(folder.with_name(f"{folder.name}-{kind}"))
        path, _ = QFileDialog.getSaveFileName(self, "New folder of the exported model", first)
        if not path:
            return
        backend = self.backend

        def generate() -> Iterator[Path]:
            yield backend.export(folder, path, kind)

        self.job = Job(generate)
        self.job.reported.connect(self._on_exported)
        self.job.ended.connect(self._on_export_ended)
        self.note.setText("Exporting the model …")
        self.job.start()
        self._show_state()

    def _on_exported(self, written: Path) -> None:
        self.note.setText(f"The model was written to {written}.")

    def _on_export_ended(self, error: BaseException | None) -> None:
        self.job = None
        self._show_state()
        if error is not None:
            self.note.setText("")
            show_failure(error)

    def _on_copy(self, checked: bool = False) -> None:
        QGuiApplication.clipboard().setText(str(self.chosen))
        show_hint("The path of the run folder is in the clipboard.")
