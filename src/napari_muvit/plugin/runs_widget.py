"""MuViT: Runs. Every run below a folder, whoever started it: watched, compared, resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt, QTimer
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

from napari_muvit.errors import RunError
from napari_muvit.plugin import run_control, runs
from napari_muvit.plugin.background import Job, LatestTask
from napari_muvit.plugin.devices import DESK, DeviceDesk
from napari_muvit.plugin.dock import DockWidget, open_widget, row, wrapped_label
from napari_muvit.plugin.fold import Fold
from napari_muvit.plugin.folder_picker import FolderPicker
from napari_muvit.plugin.notices import notifies, sentence, show_failure, show_hint
from napari_muvit.plugin.remembered import recall, remember
from napari_muvit.plugin.run_view import STARTING, RunView

USES = {
    "pretrain": ("MuViT: Fine-tune", "Use to fine-tune"),
    "finetune": ("MuViT: Predict", "Use to predict"),
}
"""Kind of run: the widget that takes its model, and what the button says."""

LIST_HEIGHT = 110
LIST_MS = 5000
"""How often runs are looked for."""
FORMATS = (("for the muvit package", "official"), ("for bioimage.io", "bioimageio"))
ASKING: tuple[tuple[str, run_control.Action, str], ...] = (
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

    def __init__(
        self, napari_viewer: Any, backend: Any = None, desk: DeviceDesk = DESK
    ) -> None:
        super().__init__(napari_viewer, backend)
        self.control: run_control.ProcessRun | None = None
        self.job: Job | None = None
        self._desk = desk
        self._leave: Callable[[], None] | None = None
        self._is_asked = False
        self._listed: list[tuple[Path, str]] | None = None
        self._finder = LatestTask(runs.list_runs)
        self._build()
        self._finder.finished.connect(self._on_found)
        self._finder.failed.connect(self._on_not_found)
        self.destroyed.connect(self._finder.stop)
        self._timer = QTimer(self)
        self._timer.setInterval(LIST_MS)
        self._timer.timeout.connect(self._look)
        self._timer.start()
        last = recall(None, "runs")
        if last and Path(str(last)).is_dir():
            self.parent_folder.set_path(str(last))
        self._show_state()

    def _build(self) -> None:
        self._build_list()
        self._build_buttons()
        self.other = QComboBox()
        self.other.setToolTip(
            "A second run that is drawn with dashes into the same axes, and the options in which "
            "the two differ."
        )
        self.other.currentIndexChanged.connect(self._on_compare)
        compare = QFormLayout()
        compare.addRow("Compare with", self.other)
        self.body.addLayout(compare)
        self.view = RunView(self)
        self.view.refreshed.connect(self._show_state)
        self.body.addWidget(self.view)
        self._build_config()
        self.note = wrapped_label()
        self.body.addWidget(self.note)
        self.body.addStretch(1)

    def _build_list(self) -> None:
        self.parent_folder = FolderPicker(
            "Folder below which runs are looked for, three folders deep.", "folder of runs"
        )
        self.parent_folder.changed.connect(self._on_refresh)
        self.refresh = self._button(
            "Look again", "Look for new runs in the folder now; it is done every few seconds.",
            self._on_refresh)
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

    def _build_buttons(self) -> None:
        self.resume = self._button(
            "Resume", "Go on from the last checkpoint, in a process of its own.", self._on_resume)
        self.use = self._button(
            USES["finetune"][1], "Open the widget that takes this run's model.", self._on_use)
        self.copy = self._button("Copy path", "Copy the path of the run folder.", self._on_copy)
        self.body.addLayout(row(self.resume, self.use, self.copy))
        self.pause, self.go_on, self.stop = (
            self._button(text, tooltip, partial(self._on_ask, action))
            for text, action, tooltip in ASKING
        )
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

    def _button(self, text: str, tooltip: str, slot: Callable[..., None]) -> QPushButton:
        button = QPushButton(text)
        button.setToolTip(tooltip)
        button.clicked.connect(slot)
        return button

    @notifies
    def _on_ask(self, action: run_control.Action, checked: bool = False) -> None:
        folder = self.chosen
        if folder is None or not run_control.ask_run(folder, action):
            raise RunError("the run does not go on any more. Press Resume to continue it.")
        self.note.setText(ASKED[action])

    def _build_config(self) -> None:
        self.config = QPlainTextEdit()
        self.config.setReadOnly(True)
        self.config.setMinimumHeight(160)
        self.config.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        fold = Fold("Configuration")
        fold.addWidget(self.config)
        self.body.addWidget(fold)

    @property
    def chosen(self) -> Path | None:
        """The run folder that is chosen."""
        item = self.list.currentItem()
        return None if item is None else Path(item.data(Qt.ItemDataRole.UserRole))

    def _on_refresh(self, text: Any = None) -> None:
        if self.parent_folder.path:
            self._is_asked = True
            remember(None, runs=str(self._runs_folder().absolute()))
            self._look()

    def _runs_folder(self) -> Path:
        return Path(self.parent_folder.path)

    def _look(self) -> None:
        """Look what runs there are now, while somebody can see it."""
        if self.parent_folder.path and (self._is_asked or self.isVisible()):
            self._finder.request(self.backend, self._runs_folder())

    def _on_not_found(self, error: BaseException) -> None:
        is_asked, self._is_asked = self._is_asked, False
        self.note.setText(sentence(error))
        if is_asked:
            show_failure(error)

    @notifies
    def _on_found(self, found: list[runs.RunLine]) -> None:
        self._is_asked = False
        before, other = self.chosen, self.other.currentData()
        for part in (self.list, self.other):
            part.blockSignals(True)
        if [(line.folder, line.name) for line in found] != self._listed:
            scrolled = self.list.verticalScrollBar().value()
            self._fill(found)
            self._choose(found, before, other)
            if self.chosen == before:
                self.list.verticalScrollBar().setValue(scrolled)
        for index, line in enumerate(found):
            self.list.item(index).setText(line.text)
        for part in (self.list, self.other):
            part.blockSignals(False)
        if not found:
            self.note.setText("There are no runs below this folder.")
        elif self.note.text().startswith("There are no runs"):
            self.note.setText("")
        if self.chosen != before:
            self._on_chosen(None, None)
        if self.other.currentData() != other:
            self._on_compare(0)
        self._show_state()

    def _fill(self, found: list[runs.RunLine]) -> None:
        """List other runs than before; a list that stays keeps what one looks at in place."""
        self._listed = [(line.folder, line.name) for line in found]
        self.list.clear()
        self.other.clear()
        self.other.addItem("none", None)
        for line in found:
            item = QListWidgetItem(line.text)
            item.setData(Qt.ItemDataRole.UserRole, str(line.folder))
            item.setToolTip(str(line.folder))
            self.list.addItem(item)
            self.other.addItem(line.name, str(line.folder))

    def _choose(self, found: list[runs.RunLine], before: Path | None, other: Any) -> None:
        """The run that was chosen stays so; else the one of last time, else the newest."""
        folders = [line.folder for line in found]
        last = recall(None, "run")
        wanted = [folder for folder in (before, Path(str(last)) if last else None)
                  if folder in folders]
        if found:
            self.list.setCurrentRow(folders.index(wanted[0]) if wanted else 0)
        self.other.setCurrentIndex(max(0, self.other.findData(other)))

    @notifies
    def _on_chosen(self, item: Any, previous: Any) -> None:
        folder = self.chosen
        self.view.watch(folder)
        self.note.setText("")
        text = ""
        if folder is not None:
            remember(None, run=str(folder))
            if (folder / "config.yaml").is_file():
                text = (folder / "config.yaml").read_text(encoding="utf-8")
        self.config.setPlainText(text)
        self._show_state()

    @notifies
    def _on_compare(self, index: int) -> None:
        data = self.other.currentData()
        self.view.compare_with(None if data is None else Path(data))

    def _show_state(self, picture: Any = None) -> None:
        shown = self.view.picture
        has_run = self.chosen is not None
        self.resume.setEnabled(shown is not None and shown.can_resume and self.control is None)
        for button in (self.pause, self.go_on, self.stop):
            button.setEnabled(shown is not None and shown.is_running)
        if self.note.text() in ASKED.values() and not self.stop.isEnabled():
            self.note.setText("")  # it has done what it was asked
        self._look_after()
        resumed = None if self.control is None else self.control.folder
        self.view.tell(STARTING if resumed is not None and resumed == self.view.folder else "")
        kind = "finetune" if shown is None else shown.kind
        self.use.setText(USES.get(kind, USES["finetune"])[1])
        self.use.setEnabled(has_run and shown is not None and kind in USES)
        self.copy.setEnabled(has_run)
        self.export.setEnabled(has_run and self.job is None and shown is not None)
        self.refresh.setEnabled(bool(self.parent_folder.path))

    def _look_after(self) -> None:
        """Say once why a run that was resumed here ended."""
        if self.control is None or self.control.is_running:
            return
        error = self.control.error()
        self.control = None
        if self._leave is not None:
            self._leave()
            self._leave = None
        if error is not None:
            show_failure(error)

    @notifies
    def _on_resume(self, checked: bool = False) -> None:
        folder = self.chosen
        if folder is None:
            raise RunError("no run is chosen. Choose one in the list.")
        self.control = run_control.resume_process(folder)
        device = run_control.device_of(folder)
        self._leave = self._desk.claim("training", f"the run {folder.name}", device)
        self.destroyed.connect(self._leave)
        self.view.watch(folder)
        self._show_state()

    @notifies
    def _on_use(self, checked: bool = False) -> None:
        kind = "finetune" if self.view.picture is None else self.view.picture.kind
        name, _ = USES.get(kind, USES["finetune"])
        widget = open_widget(self.viewer, name)
        if kind == "pretrain":
            widget.take_model(str(self.chosen))
        else:
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
        self.destroyed.connect(self.job.cancel)
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
