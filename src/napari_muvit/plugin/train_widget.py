"""MuViT: Pretrain, and MuViT: Fine-tune. From images in the viewer to a run that is watched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtpy.QtCore import QTimer
from qtpy.QtGui import QGuiApplication
from qtpy.QtWidgets import QCheckBox, QFormLayout, QPushButton, QTabWidget, QVBoxLayout, QWidget

from napari_muvit.config import FinetuneConfig, PretrainConfig, RunConfig, parse_config
from napari_muvit.errors import ConfigError
from napari_muvit.plugin import checks, forms, runs
from napari_muvit.plugin.background import Job, LatestTask
from napari_muvit.plugin.config_form import ConfigForm
from napari_muvit.plugin.dock import DockWidget, row, wrapped_label
from napari_muvit.plugin.folder_picker import FolderPicker
from napari_muvit.plugin.notices import notifies, show_failure, show_hint
from napari_muvit.plugin.remembered import recall, remember
from napari_muvit.plugin.run_view import RunView
from napari_muvit.plugin.sources_picker import SourcesPicker

POLL_MS = 500


class TrainWidget(DockWidget):
    """What the two training widgets have in common."""

    verb: runs.Verb = "pretrain"
    kind: type[RunConfig] = PretrainConfig

    def __init__(self, napari_viewer: Any, backend: Any = None) -> None:
        super().__init__(napari_viewer, backend)
        self.control: Any = None
        self.job: Job | None = None
        self._is_paused = False
        self._build()
        self._poll = QTimer(self)
        self._poll.setInterval(POLL_MS)
        self._poll.timeout.connect(self._on_poll)
        self._on_changed()

    def _build(self) -> None:
        self.sources = SourcesPicker(self, with_labels=self.verb == "finetune")
        self.sources.changed.connect(self._on_sources)
        self.tabs = QTabWidget()
        options = QWidget()
        self.options = QVBoxLayout(options)
        self.options.setContentsMargins(0, 6, 0, 0)
        self.tabs.addTab(options, "Options")
        self.body.addWidget(self.tabs)
        self.options.addWidget(self.sources)
        self.form = ConfigForm(self.kind, skip={"images", "labels", "output"})
        self.form.changed.connect(self._on_changed)
        self.options.addWidget(self.form)
        self.output = FolderPicker(
            self.kind.model_fields["output"].description or "", "a new folder"
        )
        self.output.changed.connect(self._on_changed)
        self.detached = QCheckBox("Own process: goes on when napari closes")
        self.detached.setToolTip(
            "Train in a process of its own, so that a crash or closing napari does not end it. "
            "Otherwise the run is a thread of napari, which starts at once."
        )
        self.detached.setChecked(True)
        form = QFormLayout()
        form.addRow("Run folder", self.output)
        self.options.addLayout(form)
        self.options.addWidget(self.detached)
        self.options.addStretch(1)
        self.note = wrapped_label()
        self.footer.addWidget(self.note)
        self.advice = wrapped_label()
        self.advice.setToolTip(
            "A look at the images and a count of weights and activations; the time that a run "
            "takes is shown after its first steps."
        )
        self.footer.addWidget(self.advice)
        self._adviser = LatestTask(checks.advise)
        self._adviser.finished.connect(self.advice.setText)
        self._adviser.failed.connect(show_failure)
        self.destroyed.connect(self._adviser.stop)
        self._build_buttons()
        self.view = RunView(lambda: self.backend)
        self.view.refreshed.connect(self._on_refreshed)
        shown = QWidget()
        around = QVBoxLayout(shown)
        around.setContentsMargins(0, 6, 0, 0)
        around.addWidget(self.view)
        around.addStretch(1)
        self.tabs.addTab(shown, "Run")

    def _build_buttons(self) -> None:
        self.start = QPushButton("Start")
        self.start.setToolTip("Start the run.")
        self.start.clicked.connect(self._on_start)
        self.pause = QPushButton("Pause")
        self.pause.setToolTip("Hold the run without losing anything, and go on later.")
        self.pause.clicked.connect(self._on_pause)
        self.stop = QPushButton("Stop")
        self.stop.setToolTip("Write a checkpoint and end; Resume goes on from there.")
        self.stop.clicked.connect(self._on_stop)
        self.resume = QPushButton("Resume")
        self.resume.setToolTip("Go on with the run in the run folder from its last checkpoint.")
        self.resume.clicked.connect(self._on_resume)
        self.copy = QPushButton("Copy command")
        self.copy.setToolTip("Copy the shell command that does the same run without napari.")
        self.copy.clicked.connect(self._on_copy)
        self.footer.addLayout(row(self.start, self.pause, self.stop))
        self.footer.addLayout(row(self.resume, self.copy))

    # -- options -------------------------------------------------------------------------

    def values(self) -> dict[str, Any]:
        """The options that the widget shows, those without a value left out."""
        given = {"images": self.sources.images(), **self.form.values(), "output": self.output.path}
        if self.verb == "finetune":
            given["labels"] = self.sources.label_paths()
        return {name: value for name, value in given.items() if value not in (None, (), "")}

    def config(self) -> RunConfig:
        """The checked config of the run.

        Raises
        ------
        ConfigError
            Naming the option that is wrong.
        """
        values = self.values()
        if "images" not in values:
            raise ConfigError("no images are chosen. Add a layer or files above.", "images")
        if "output" not in values:
            raise ConfigError("no run folder is named. Type a new folder's path.", "output")
        return parse_config(self.kind, values)

    def _on_sources(self) -> None:
        images = self.sources.images()
        if images and not self.output.path:
            parent = Path(images[0]).expanduser().resolve().parent / "muvit-runs"
            self.output.line.setText(str(runs.free_folder(parent, self.verb)))
            self.form.set_values(recall(images[0], self.verb) or {})
        self._on_changed()

    def _on_changed(self) -> None:
        """Check what the form says, and say what is wrong before anything starts."""
        text, field = "", None
        try:
            self._adviser.request(self.backend, self.config())
        except ConfigError as error:
            text, field = str(error), error.field
            self.advice.setText("")
        self.form.mark(field)
        self.note.setText(text)
        self._show_state(is_ready=not text)

    def _show_state(self, is_ready: bool | None = None) -> None:
        if is_ready is None:
            is_ready = not self.note.text()
        is_running = self.control is not None
        self.start.setEnabled(is_ready and not is_running)
        self.stop.setEnabled(is_running)
        self.pause.setEnabled(is_running)
        self.pause.setText("Continue" if self._is_paused else "Pause")
        self.resume.setEnabled(not is_running and bool(self.output.path))
        self.copy.setEnabled(is_ready)

    # -- the run -------------------------------------------------------------------------

    @notifies
    def _on_start(self, checked: bool = False) -> None:
        config = self.config()
        changed = forms.changed_values(self.kind, self.form.values())
        remember(config.images[0], **{self.verb: changed})
        remember(None, runs=str(Path(config.output).absolute().parent))
        Path(config.output).parent.mkdir(parents=True, exist_ok=True)
        if self.detached.isChecked():
            self._follow(runs.start_process(self.verb, config))
        else:
            train = getattr(self.backend, self.verb)
            self._follow_thread(runs.ThreadRun(lambda: train(config), Path(config.output)))

    @notifies
    def _on_resume(self, checked: bool = False) -> None:
        folder = Path(self.output.path)
        if self.detached.isChecked():
            self._follow(runs.resume_process(folder))
        else:
            resume = self.backend.resume
            self._follow_thread(runs.ThreadRun(lambda: resume(folder), folder))

    def _follow(self, control: Any) -> None:
        self.control, self._is_paused = control, False
        self.view.watch(control.folder)
        self.tabs.setCurrentIndex(1)
        self._poll.start()
        self._show_state()

    def _follow_thread(self, control: runs.ThreadRun) -> None:
        self.job = Job(control.events)
        self.job.ended.connect(self._on_ended)
        # A closed widget stops its run, which then writes a checkpoint.
        self.destroyed.connect(control.stop)
        self._follow(control)
        self.job.start()

    @notifies
    def _on_poll(self) -> None:
        """Look whether the process still runs (a thread tells by itself)."""
        if self.job is not None or self.control is None:
            return
        self.control.tell()
        if not self.control.is_running:
            self._on_ended(self.control.error())

    @notifies
    def _on_ended(self, error: BaseException | None) -> None:
        self._poll.stop()
        self.control, self.job, self._is_paused = None, None, False
        self.view.refresh()
        self._show_state()
        if error is not None:
            if self.view.picture is None:
                self.view.watch(None)
            show_failure(error)

    @notifies
    def _on_pause(self, checked: bool = False) -> None:
        if self.control is None:
            return
        if self._is_paused:
            self.control.resume()
        else:
            self.control.pause()
        self._is_paused = not self._is_paused
        self._show_state()

    @notifies
    def _on_stop(self, checked: bool = False) -> None:
        if self.control is not None:
            self.stop.setEnabled(False)
            self._is_paused = False
            self.control.stop()

    def _on_refreshed(self, picture: runs.RunPicture) -> None:
        if self.control is None and not picture.is_running:
            self.view.watch_no_more()

    def _on_copy(self, checked: bool = False) -> None:
        values = forms.changed_values(self.kind, self.values())
        QGuiApplication.clipboard().setText(forms.command_line(self.verb, values))
        show_hint("The command for this run is in the clipboard.")


class PretrainWidget(TrainWidget):
    """Learn from unlabelled images."""


class FinetuneWidget(TrainWidget):
    """Learn classes from labels."""

    verb: runs.Verb = "finetune"
    kind: type[RunConfig] = FinetuneConfig
