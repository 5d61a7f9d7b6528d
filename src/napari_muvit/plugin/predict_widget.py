"""MuViT: Predict. Labels for what is in view, or for the whole image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qtpy.QtWidgets import QCheckBox, QComboBox, QFormLayout, QProgressBar, QPushButton

from napari_muvit.errors import InputError
from napari_muvit.plugin import predict, predict_layers
from napari_muvit.plugin.background import Job, LatestTask
from napari_muvit.plugin.camera import center_view
from napari_muvit.plugin.dock import DockWidget, ImagePicker, RegionPicker, row, wrapped_label
from napari_muvit.plugin.folder_picker import FolderPicker
from napari_muvit.plugin.known_models import KnownModels
from napari_muvit.plugin.layer_copies import whole_image
from napari_muvit.plugin.layers import ResolvedImage
from napari_muvit.plugin.live import LiveSession
from napari_muvit.plugin.notices import Reasons, notifies, show_failure, show_hint
from napari_muvit.plugin.predict_layers import RegionPainter, hide_others
from napari_muvit.plugin.predict_queue import PredictQueue, many_rows
from napari_muvit.plugin.preferences import cache_folder, preference
from napari_muvit.plugin.remembered import recall, recall_own, remember
from napari_muvit.plugin.results_view import ResultsView


class PredictWidget(DockWidget):
    """Runs a fine-tuned model on an image in the viewer."""

    def __init__(self, napari_viewer: Any, backend: Any = None) -> None:
        super().__init__(napari_viewer, backend)
        self.model: predict.LoadedModel | None = None
        self.job: Job | None = None
        self.session: LiveSession | None = None
        self._own_output = ""
        self._after_load: Callable[[], None] | None = None
        self._finish: Callable[[], None] | None = None
        self._painter: RegionPainter | None = None
        self._loader = LatestTask(predict.load)
        self._build()
        self._loader.finished.connect(self._on_loaded)
        self._loader.failed.connect(self._on_load_failed)
        self.destroyed.connect(self._loader.stop)
        self._on_image()

    def _build(self) -> None:
        self.picker = ImagePicker(self, "Image to predict.")
        self.picker.changed.connect(self._on_image)
        self.folder = FolderPicker("Folder of a fine-tuning run, or a model folder.", "run folder")
        self.folder.changed.connect(self._on_folder)
        self.known = KnownModels(self, "finetune")
        self.known.picked.connect(self.folder.set_path)
        self.known.offered.connect(self._on_offered)
        self.device = QComboBox()
        self.device.addItems(["auto", "cpu", "cuda", "mps"])
        self.device.setToolTip("Where the model runs; auto takes a graphics card if there is one.")
        self.device.setCurrentText(str(preference("device", "auto")))
        self.output = FolderPicker(
            "OME-Zarr that the whole image's labels are written to. A prediction that was "
            "interrupted goes on where it stopped.", "in the run folder",
        )
        self.region = RegionPicker(self, "Predict only inside a rectangle of this Shapes layer.")
        self.region.changed.connect(self._on_region)
        form = QFormLayout()
        form.addRow("Image", self.picker)
        form.addRow("Recent runs", self.known)
        form.addRow("Model", self.folder)
        form.addRow("Device", self.device)
        form.addRow("Output", self.output)
        form.addRow("Region", self.region)
        self.body.addLayout(form)
        self.about = wrapped_label()
        self.body.addWidget(self.about)
        self._build_live()
        self._build_jobs()
        self.note = wrapped_label()
        self.body.addWidget(self.note)
        self.results = ResultsView(lambda: self.backend)
        self.body.addWidget(self.results)
        self.body.addStretch(1)

    def _build_live(self) -> None:
        self.live = QPushButton("Live in view")
        self.live.setCheckable(True)
        self.live.setToolTip(
            "Predict what the canvas shows as you move, until pressed again. What was predicted "
            "is kept and shown again at once."
        )
        self.live.clicked.connect(self._on_live)
        self.follow = QCheckBox("Follow training")
        self.follow.setToolTip(
            "While the model is still trained, change to its newest checkpoint as it comes."
        )
        self.follow.toggled.connect(self._on_follow)
        self.confidence = QCheckBox("Confidence")
        self.confidence.setToolTip(
            "Show how sure the model is as a layer: yellow is certain, blue is a guess."
        )
        self.confidence.toggled.connect(self._on_confidence)
        self.uncertain = QPushButton("Next uncertain place")
        self.uncertain.setToolTip(
            "Move to the predicted place where the model is least sure; annotating there teaches "
            "it most."
        )
        self.uncertain.clicked.connect(self._on_uncertain)
        self.body.addLayout(row(self.live, self.uncertain))
        self.body.addLayout(row(self.follow, self.confidence))

    def _build_jobs(self) -> None:
        self.view = QPushButton("Predict view")
        self.view.setToolTip(
            "Predict what the canvas shows once, with blended tiles, into a layer of its own."
        )
        self.view.clicked.connect(self._on_view)
        self.whole = QPushButton("Predict whole image")
        self.whole.setToolTip("Predict the image, or the region of it, to labels on disk.")
        self.whole.clicked.connect(self._on_whole)
        self.body.addLayout(row(self.view, self.whole))
        self.queue = PredictQueue(self)
        self.queue.wanted.connect(self._on_queue)
        self.queue.changed.connect(self._show_state)
        self.body.addWidget(self.queue)
        self.progress = QProgressBar()
        self.cancel = QPushButton("Cancel")
        self.cancel.setToolTip("Stop after the tile in progress; what is done stays.")
        self.cancel.clicked.connect(self._on_cancel)
        self.body.addLayout(row(self.progress, self.cancel))

    def _on_image(self) -> None:
        """Offer the model and the output that were last used on this image."""
        choice = self.picker.choice
        if choice is not None:
            model, output = recall(choice.key, "model"), recall_own(choice.key, "prediction")
            if model and not self.folder.path and Path(str(model)).is_dir():
                self.folder.set_path(str(model))
            self.output.show_path(str(output) if output and Path(str(output)).is_dir() else "")
            is_own = Path(self.output.path).parent.name == predict.FOLDER
            self._own_output = self.output.path if is_own else ""
        self.known.set_image(choice)
        self._show_state()

    def _on_region(self) -> None:
        """Say on the button what is predicted."""
        is_part = self.region.layer is not None
        self.whole.setText("Predict region" if is_part else "Predict whole image")

    # -- model ---------------------------------------------------------------------------

    def _on_offered(self, folder: str) -> None:
        """Take the newest model of the image where none was used on it yet."""
        if not self.folder.path:
            self.folder.set_path(folder)

    def _on_folder(self, text: str = "") -> None:
        self.model = None
        self.known.show_folder(self.folder.path)
        self.about.setText("")
        if self.folder.path:
            self._load(None)
        self._show_state()

    def _load(self, after: Callable[[], None] | None) -> None:
        self._after_load = after
        self.about.setText("Loading the model …")
        self._loader.request(self.backend, self.folder.path)

    @notifies
    def _on_loaded(self, model: predict.LoadedModel) -> None:
        self.model = model
        self.about.setText(model.summary())
        if self.picker.choice is not None:
            remember(self.picker.choice.key, model=str(Path(model.folder).absolute()))
        self._show_state()
        after, self._after_load = self._after_load, None
        if after is not None:
            after()

    def _on_load_failed(self, error: BaseException) -> None:
        self._after_load = None
        self.about.setText("")
        self.live.setChecked(False)
        self._show_state()
        show_failure(error)

    # -- live ----------------------------------------------------------------------------

    @notifies
    def _on_live(self, checked: bool = False) -> None:
        if not self.live.isChecked():
            self._stop_live()
            return
        try:
            self._start_live()
        except Exception:
            self.live.setChecked(False)
            raise

    def _start_live(self) -> None:
        image, model = self._ready()
        if model is None:
            self._load(self._on_live)
            return
        predict.check_fit(model, image)
        layers = self.picker.choice.layers if self.picker.choice else ()
        session = LiveSession(
            self.viewer, self.backend, image, layers, model, device=self.device.currentText(),
            cache=cache_folder() / "live",
        )
        session.follow_checkpoints = self.follow.isChecked()
        session.show_confidence(self.confidence.isChecked())
        session.pending.connect(self._on_pending)
        session.warned.connect(show_hint)
        session.ended.connect(self._on_live_ended)
        session.moved.connect(self._on_moved)
        self.destroyed.connect(session.release)
        self.session = session
        self.note.setText("Planning the prediction …")
        if hidden := hide_others(self.viewer, image.name, predict_layers.LIVE):
            show_hint(hidden)
        session.start()
        self._show_state()

    def _stop_live(self) -> None:
        if self.session is not None:
            self.session.stop()

    def _on_moved(self) -> None:
        """Another time point is shown: predict that."""
        self._stop_live()
        self.live.setChecked(True)
        self._on_live()

    def _on_follow(self, checked: bool) -> None:
        if self.session is not None:
            self.session.follow_checkpoints = checked

    def _on_confidence(self, checked: bool) -> None:
        if self.session is not None:
            self.session.show_confidence(checked)

    @notifies
    def _on_uncertain(self, checked: bool = False) -> None:
        if self.session is not None:
            place = self.session.next_uncertain()
            center_view(self.viewer, self.session.image.transform, place)

    def _on_pending(self, pending: int) -> None:
        self.note.setText(f"{pending} tiles in view to come." if pending else "")

    def _on_live_ended(self, error: BaseException | None) -> None:
        self.session = None
        self.live.setChecked(False)
        self.note.setText("")
        self._show_state()
        if error is not None:
            show_failure(error)

    # -- jobs ----------------------------------------------------------------------------

    @notifies
    def _on_view(self, checked: bool = False) -> None:
        image, model = self._ready()
        if model is None:
            self._load(self._on_view)
            return
        predict.check_fit(model, image)
        self._stop_live()
        if hidden := hide_others(self.viewer, image.name, predict_layers.IN_VIEW):
            show_hint(hidden)
        layers = self.picker.choice.layers if self.picker.choice else ()
        painter = predict_layers.begin_view(self.viewer, image, layers, model)
        backend, device, region = self.backend, self.device.currentText(), painter.region
        self._start(
            lambda: predict.predict_region(backend, image, model, region, device), painter)

    @notifies
    def _on_whole(self, checked: bool = False) -> None:
        image, model = self._ready()
        if model is None:
            self._load(self._on_whole)
            return
        predict.check_fit(model, image)
        backend, device = self.backend, self.device.currentText()
        region = self.region.box(image.transform, self.viewer.dims.point)
        own = predict.default_output(image, model.folder, region)
        if self.output.path in ("", self._own_output):  # nobody chose it: each region has its own
            self._own_output = str(own)
            self.output.show_path(self._own_output)
        output = predict.output_in(self.output.path, own)
        output.parent.mkdir(parents=True, exist_ok=True)
        box = predict.roi_of(region, image.pyramid, model)

        def generate() -> Iterator[Any]:
            return iter(backend.predict_to_zarr(
                image.pyramid, model.folder, output, device=device, roi=box))

        self._start(generate, finish=lambda: self._show_store(output, image, model))

    @notifies
    def _on_queue(self) -> None:
        if not self.folder.path:
            raise InputError("no model is chosen. Choose the folder of a fine-tuning run.")
        config = self.queue.config(self.folder.path, self.device.currentText())
        backend = self.backend

        def finish() -> None:
            failed = predict.failed_text(self._failed, len(config.images))
            self.note.setText(f"The labels are in {config.output}. {failed}".strip())

        self._start(lambda: iter(backend.predict_images(config)), finish=finish)

    def _ready(self) -> tuple[ResolvedImage, predict.LoadedModel | None]:
        choice = self.picker.choice
        if choice is None:
            raise InputError("no image is chosen. Open an image and choose it above.")
        image = whole_image(choice, self.backend, self.viewer.dims.point)
        if not self.folder.path:
            raise InputError("no model is chosen. Choose the folder of a fine-tuning run.")
        return image, self.model

    def _start(
        self, generate: Callable[[], Iterator[Any]], painter: RegionPainter | None = None,
        finish: Callable[[], None] | None = None,
    ) -> None:
        self._painter, self._finish = painter, finish
        self._reasons, self._failed = Reasons(), 0
        self.progress.setRange(0, 0)
        self.note.setText("")
        self.job = Job(generate)
        self.job.reported.connect(self._on_reported)
        self.job.ended.connect(self._on_ended)
        self.destroyed.connect(self.job.cancel)
        self.job.start()
        self._show_state()

    @notifies
    def _on_reported(self, event: Any) -> None:
        if hasattr(event, "message") and (said := self._reasons.fresh(event.message)):
            show_hint(said)
        if hasattr(event, "areas"):
            self._failed += event.failed
            self.results.show_results(Path(event.output), many_rows(event.areas))
        if not hasattr(event, "done"):
            return
        self.progress.setRange(0, event.total)
        self.progress.setValue(event.done)
        parts = (getattr(event, "image", ""), predict.remaining_text(event.remaining))
        self.note.setText(", ".join(filter(None, parts)))
        if self._painter is None:
            return
        if self._painter.is_there:
            self._painter.paint(event)
        elif self.job is not None:
            self.job.cancel()

    @notifies
    def _on_ended(self, error: BaseException | None) -> None:
        is_cancelled = self.job is not None and self.job.is_cancelled
        is_gone = self._painter is not None and not self._painter.is_there
        self.job = None
        finish, self._finish, self._painter = self._finish, None, None
        said = "The layer was removed, so its prediction was stopped." if is_gone else (
            "Cancelled; what is done stays." if is_cancelled else "")
        self.note.setText(said)
        self._show_state()
        if error is not None:
            show_failure(error)
        elif finish is not None and not is_cancelled:
            finish()

    def _on_cancel(self, checked: bool = False) -> None:
        if self.job is not None:
            self.note.setText("Stopping after this tile …")
            self.cancel.setEnabled(False)
            self.job.cancel()

    def _show_state(self) -> None:
        is_running = self.job is not None
        can_start = not is_running and self.picker.choice is not None and bool(self.folder.path)
        self.view.setEnabled(can_start)
        self.whole.setEnabled(can_start)
        self.queue.start.setEnabled(
            not is_running and bool(self.folder.path) and bool(self.queue.sources.images()))
        self.live.setEnabled(self.session is not None or can_start)
        self.uncertain.setEnabled(self.session is not None)
        self.cancel.setEnabled(is_running)
        if not is_running:
            self.progress.setRange(0, 1)
            self.progress.reset()

    def _show_store(self, output: Path, image: ResolvedImage, model: predict.LoadedModel) -> None:
        said = ["Live prediction was stopped."] * (self.session is not None)
        self._stop_live()
        hidden = hide_others(self.viewer, image.name, predict_layers.WHOLE)
        predict_layers.show_store(self.viewer, self.backend, output, image, model.table)
        said += [hidden, predict.failed_text(self._failed)]
        self.note.setText(" ".join([f"The labels are in {output}.", *filter(None, said)]))
        remember(image.key, prediction=str(output.absolute()))
