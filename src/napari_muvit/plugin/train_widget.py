"""MuViT: Pretrain, and MuViT: Fine-tune. From images in the viewer to a run that is watched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qtpy.compat import isalive
from qtpy.QtCore import QTimer
from qtpy.QtGui import QGuiApplication
from qtpy.QtWidgets import QCheckBox, QFormLayout, QPushButton, QTabWidget, QVBoxLayout, QWidget

from napari_muvit.config import FinetuneConfig, PretrainConfig, RunConfig, parse_config
from napari_muvit.errors import ConfigError, RunError
from napari_muvit.plugin import checks, forms, run_control, runs
from napari_muvit.plugin.background import Job, LatestTask
from napari_muvit.plugin.config_form import ConfigForm
from napari_muvit.plugin.devices import DESK, DeviceDesk
from napari_muvit.plugin.dock import DockWidget, row, wrapped_label
from napari_muvit.plugin.folder_picker import FolderPicker
from napari_muvit.plugin.known_models import runs_folder
from napari_muvit.plugin.layer_copies import LayerSource, part_options
from napari_muvit.plugin.notices import notifies, show_failure, show_hint
from napari_muvit.plugin.preferences import preferred_options
from napari_muvit.plugin.remembered import recall, remember
from napari_muvit.plugin.run_view import PAUSED, STARTING, RunView
from napari_muvit.plugin.sources_picker import SourcesPicker
from napari_muvit.plugin.speed_panel import SpeedPanel

POLL_MS = 500
TAUGHT = ("preset", "levels", "crop_size", "scaled_axes", "normalization", "percentiles",
          "normalization_constant")
"""Options of a pretrained model that a fine-tuning of it keeps."""


class TrainWidget(DockWidget):
    """What the two training widgets have in common."""

    verb: run_control.Verb = "pretrain"
    kind: type[RunConfig] = PretrainConfig

    def __init__(
        self, napari_viewer: Any, backend: Any = None, desk: DeviceDesk = DESK
    ) -> None:
        super().__init__(napari_viewer, backend)
        self.control: Any = None
        self.job: Job | None = None
        self._is_paused = False
        self._part: dict[str, Any] = {}
        self._desk = desk
        self._leave: Callable[[], None] | None = None
        self._build()
        self._poll = QTimer(self)
        self._poll.setInterval(POLL_MS)
        self._poll.timeout.connect(self._on_poll)
        self._finder = LatestTask(run_control.find_trained)
        self._finder.finished.connect(self._on_found)
        self._finder.failed.connect(show_failure)
        self.destroyed.connect(self._finder.stop)
        self._look_for_run()
        self._on_changed()

    def _build(self) -> None:
        self.tabs = QTabWidget()
        self.options = self._tab("Options")
        self.body.addWidget(self.tabs)
        self._build_options()
        self.note, self.advice = wrapped_label(), wrapped_label()
        self.advice.setToolTip("A look at the images, and a count of weights and activations.")
        self.footer.addWidget(self.note)
        self.footer.addWidget(self.advice)
        self._adviser = LatestTask(checks.advise)
        self._adviser.finished.connect(self._on_advice)
        self._adviser.failed.connect(show_failure)
        self.destroyed.connect(self._adviser.stop)
        self._proposer = LatestTask(checks.suggest_options)
        self._proposer.finished.connect(self._on_proposal)
        self._proposer.failed.connect(show_failure)
        self.destroyed.connect(self._proposer.stop)
        self.speed = SpeedPanel(self)
        self.speed.changed.connect(self._show_state)
        self.footer.addWidget(self.speed)
        self._build_buttons()
        self.view = RunView(self)
        self.view.refreshed.connect(self._on_refreshed)
        shown = self._tab("Run")
        shown.addWidget(self.view)
        shown.addStretch(1)

    def _tab(self, title: str) -> QVBoxLayout:
        """A new tab, as the layout of what is in it."""
        content = QWidget()
        layout = QVBoxLayout(content)
        layout.setContentsMargins(0, 6, 0, 0)
        self.tabs.addTab(content, title)
        return layout

    def _build_options(self) -> None:
        self.sources = SourcesPicker(self, with_labels=self.verb == "finetune")
        self.sources.changed.connect(self._on_sources)
        self.sources.accept = self._take_part
        self.options.addWidget(self.sources)
        self.form = ConfigForm(self.kind, skip={"images", "labels", "output"})
        self.form.set_values(preferred_options())
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

    def _build_buttons(self) -> None:
        self.start = self._button("Start", "Start the run.", self._on_start)
        self.pause = self._button(
            "Pause", "Hold the run without losing anything, and go on later.", self._on_pause)
        self.stop = self._button(
            "Stop", "Write a checkpoint and end; Resume goes on from there.", self._on_stop)
        self.resume = self._button(
            "Resume", "Go on from the last checkpoint of the run in the tab Run, or else of the "
            "one in the run folder.", self._on_resume)
        self.copy = self._button(
            "Copy command", "Copy the shell command that does the same run without napari.",
            self._on_copy)
        self.copy_config = self._button(
            "Copy config", "Copy every option of the run as YAML, for --config or a script.",
            self._on_copy_config)
        self.footer.addLayout(row(self.start, self.pause, self.stop))
        self.footer.addLayout(row(self.resume, self.copy, self.copy_config))

    def _button(self, text: str, tooltip: str, slot: Callable[..., None]) -> QPushButton:
        button = QPushButton(text)
        button.setToolTip(tooltip)
        button.clicked.connect(slot)
        return button

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
            free = runs.free_folder(runs_folder(images[0]), self.verb)
            self.output.line.setText(str(free))
            known = recall(images[0], self.verb)
            self.form.set_values({**(known or {}), **self._part})
            if known is None:
                self._proposer.request(self.backend, images[0])
        self._on_changed()

    def _on_proposal(self, proposed: dict[str, Any]) -> None:
        """Take levels that suit the first image, unless others were chosen meanwhile."""
        if not isalive(self.form):
            return  # the viewer was closed since it was asked for
        shown = self.form.values()
        untouched = all(shown[name] == self.kind.model_fields[name].default for name in proposed)
        if proposed and untouched:
            self.form.set_values(proposed)
            self._on_changed()

    def _take_part(self, source: LayerSource) -> None:
        """Learn from the channel and time point that the layer shows, where its file has others."""
        self._part, said = part_options(source, self.form.values(), not self.sources.images())
        self.form.set_values(self._part)
        if said:
            show_hint(said)

    def _on_changed(self) -> None:
        """Check what the form says, and say what is wrong before anything starts."""
        text, field = "", None
        config: RunConfig | None = None
        try:
            config = self.config()
            self._adviser.request(self.backend, config, self._desk)
        except ConfigError as error:
            text, field = str(error), error.field
            self.advice.setText("")
        self.form.mark(field)
        self.note.setText(text)
        self.note.setVisible(bool(text))
        self.speed.judge(self.verb, config)
        self._show_state(is_ready=not text)

    def _show_state(self, is_ready: bool | None = None) -> None:
        if is_ready is None:
            is_ready = not self.note.text()
        is_running = self.control is not None
        self.start.setEnabled(is_ready and not is_running and not self.speed.is_busy)
        self.stop.setEnabled(is_running)
        self.pause.setEnabled(is_running)
        self.pause.setText("Continue" if self._is_paused else "Pause")
        self.resume.setEnabled(not is_running and self._resumable() is not None)
        self.copy.setEnabled(is_ready)
        self.copy_config.setEnabled(is_ready)
        self.view.tell(PAUSED if self._is_paused else STARTING if is_running else "")
        self.speed.allow(is_ready and not is_running)

    def _resumable(self) -> Path | None:
        """The run that Resume goes on with."""
        shown = self.view.picture
        if shown is not None and shown.can_resume:
            return shown.folder
        folder = Path(self.output.path)
        # What is shown may be a moment old: only a run that is seen to be complete stays so.
        is_complete = (shown is not None and shown.state == "completed"
                       and shown.folder.absolute() == folder.absolute())
        if not self.output.path or is_complete:
            return None
        return folder if (folder / "run.json").is_file() else None

    # -- coming back ---------------------------------------------------------------------

    def _look_for_run(self) -> None:
        """Look for the last run on the image that is shown, of an earlier napari."""
        choice = self.sources.image.choice
        last = recall(choice.path, f"{self.verb}_run") if choice and choice.path else None
        if last:
            self._finder.request(Path(str(last)))

    def _on_advice(self, text: str) -> None:
        if isalive(self.advice):  # the viewer may have been closed since it was asked for
            self.advice.setText(text)

    @notifies
    def _on_found(self, found: tuple[Path, bool] | None) -> None:
        """Show the run again; if it still goes on, it can be paused and stopped as before."""
        if found is None or self.control is not None:
            return
        folder, is_trained = found
        if is_trained:
            self.output.line.setText(str(folder))
            self._follow(run_control.AttachedRun(folder))
        else:
            self.view.watch(folder)

    # -- the run -------------------------------------------------------------------------

    @notifies
    def _on_start(self, checked: bool = False) -> None:
        config = self.config()
        changed = forms.changed_values(self.kind, self.form.values())
        folder = Path(config.output).expanduser().absolute()
        remember(config.images[0], **{self.verb: changed, f"{self.verb}_run": str(folder)})
        remember(None, runs=str(folder.parent))
        folder.parent.mkdir(parents=True, exist_ok=True)
        if self.detached.isChecked():
            self._follow(run_control.start_process(self.verb, config), config.device)
        else:
            train = getattr(self.backend, self.verb)
            control = run_control.ThreadRun(lambda: train(config), folder)
            self._follow_thread(control, config.device)

    @notifies
    def _on_resume(self, checked: bool = False) -> None:
        folder = self._resumable()
        if folder is None:
            raise RunError("there is no run to go on with. Name the folder of one.")
        device = run_control.device_of(folder)
        if self.detached.isChecked():
            self._follow(run_control.resume_process(folder), device)
        else:
            resume = self.backend.resume
            self._follow_thread(run_control.ThreadRun(lambda: resume(folder), folder), device)

    def _follow(self, control: Any, device: str | None = None) -> None:
        self.control, self._is_paused = control, False
        if device is not None:
            self._leave = self._desk.claim("training", f"the run {control.folder.name}", device)
            self.destroyed.connect(self._leave)
        self.view.watch(control.folder)
        self.tabs.setCurrentIndex(1)
        self._poll.start()
        self._show_state()

    def _follow_thread(self, control: run_control.ThreadRun, device: str | None) -> None:
        self.job = Job(control.events)
        self.job.ended.connect(self._on_ended)
        # A closed widget stops its run, which then writes a checkpoint.
        self.destroyed.connect(control.stop)
        self._follow(control, device)
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
        if self._leave is not None:
            self._leave()
            self._leave = None
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
            self._show_state()

    def _on_copy(self, checked: bool = False) -> None:
        values = forms.changed_values(self.kind, self.values())
        QGuiApplication.clipboard().setText(forms.command_line(self.verb, values))
        show_hint("The command for this run is in the clipboard.")

    @notifies
    def _on_copy_config(self, checked: bool = False) -> None:
        QGuiApplication.clipboard().setText(run_control.config_text(self.config()))
        show_hint("The configuration of this run is in the clipboard.")


class PretrainWidget(TrainWidget):
    """Learn from unlabelled images."""


class FinetuneWidget(TrainWidget):
    """Learn classes from labels."""

    verb: run_control.Verb = "finetune"
    kind: type[RunConfig] = FinetuneConfig

    def take_model(self, folder: str) -> None:
        """Start from the model in a run folder, which sees images as it learned to."""
        known = runs.options_of(Path(folder))
        taken = {name: known[name] for name in TAUGHT if known.get(name)}
        self.form.set_values({**taken, "pretrained": folder})
        self._on_changed()
