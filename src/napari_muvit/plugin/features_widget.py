"""MuViT: Features. What the encoder sees alike, at each level."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFormLayout,
    QProgressBar,
    QPushButton,
    QSpinBox,
)

from napari_muvit.errors import InputError
from napari_muvit.plugin import features, features_layers
from napari_muvit.plugin.background import Job, LatestTask
from napari_muvit.plugin.camera import is_navigating
from napari_muvit.plugin.devices import DESK, DeviceDesk, Placing
from napari_muvit.plugin.dock import DockWidget, ImagePicker, row, wrapped_label
from napari_muvit.plugin.folder_picker import FolderPicker
from napari_muvit.plugin.layers import ResolvedImage, visible_box
from napari_muvit.plugin.notices import notifies, show_failure
from napari_muvit.plugin.preferences import preference
from napari_muvit.plugin.priority import lower_thread

ALIKE, ATTENDED, NOTHING = CLICKS = ("what is alike", "what it attends to", "nothing")
LOOK_MS = 400
"""How often the view is compared with what was computed, while it is followed."""


class FeaturesWidget(DockWidget):
    """Encoder features of what is in view: as colours, as groups, and as likeness to a place."""

    def __init__(
        self, napari_viewer: Any, backend: Any = None, desk: DeviceDesk = DESK
    ) -> None:
        super().__init__(napari_viewer, backend)
        self._desk = desk
        self._leave: Callable[[], None] | None = None
        self._placing = self._asking = Placing(self.backend, desk, "cpu", features.WHO)
        self.model: features.LoadedEncoder | None = None
        self.job: Job | None = None
        self.maps: dict[float, features.FeatureMap] = {}
        self.image: ResolvedImage | None = None
        self._cache: features.FeatureCache | None = None
        self._key: tuple[Any, ...] = ()
        self._box: Any = None
        self._seen_plane: tuple[int, ...] = ()
        self._asked: Any = None
        self._chosen: dict[float, Any] = {}
        self._wide: list[float] = []
        self._build()
        self._loader = self._task(features.load, self._on_loaded, self._on_load_failed)
        self._attender = self._task(features.attended, self._on_attended, show_failure)
        self._fitted = features.Painter()
        self._painter = self._task(self._fitted.paint, self._on_painted, show_failure)
        self._timer = QTimer(self)
        self._timer.setInterval(LOOK_MS)
        self._timer.timeout.connect(self._on_look)
        self.listen_mouse(self.viewer.mouse_drag_callbacks, self._on_click)
        self._show_state()

    def _task(
        self, function: Callable[..., Any], done: Callable[[Any], None],
        failed: Callable[[BaseException], None],
    ) -> LatestTask:
        task = LatestTask(function)
        task.finished.connect(done)
        task.failed.connect(failed)
        self.destroyed.connect(task.stop)
        return task

    def _build(self) -> None:
        self._build_choice()
        self.compute = QPushButton("Compute in view")
        self.compute.setToolTip(
            "Compute the features of what the canvas shows, at every level, and choose colours "
            "and groups anew."
        )
        self.compute.clicked.connect(self._on_compute)
        self.follow = QCheckBox("Follow the view")
        self.follow.setToolTip(
            "Compute what comes into view while you move. Colours and groups keep their meaning."
        )
        self.follow.toggled.connect(self._on_follow)
        self.cancel = QPushButton("Cancel")
        self.cancel.setToolTip("Stop after the part in progress.")
        self.cancel.clicked.connect(self._on_cancel)
        self.body.addLayout(row(self.compute, self.follow, self.cancel))
        self.progress = QProgressBar()
        self.body.addWidget(self.progress)
        self._build_click()
        self.note = wrapped_label()
        self.body.addWidget(self.note)
        self.body.addStretch(1)

    def _build_choice(self) -> None:
        """Image, model, device, and how features are shown."""
        self.picker = ImagePicker(self, "Image whose features are shown.")
        self.picker.changed.connect(self._on_image)
        self.folder = FolderPicker("Folder of a pretraining or fine-tuning run.", "run folder")
        self.folder.changed.connect(self._on_folder)
        self.device = QComboBox()
        self.device.addItems(["auto", "cpu", "cuda", "mps"])
        self.device.setToolTip("Where the model runs; auto takes a graphics card if there is one.")
        self.device.setCurrentText(str(preference("device", "auto")))
        self.mode = QComboBox()
        self.mode.addItems(features.MODES)
        self.mode.setToolTip(
            "Colours: the three strongest directions of the features as red, green and blue, so "
            "that like places have like colours. Groups: like places in a number of groups."
        )
        self.mode.currentTextChanged.connect(self._on_mode)
        self.count = QSpinBox()
        self.count.setRange(2, 20)
        self.count.setValue(5)
        self.count.setToolTip("Number of groups.")
        self.count.valueChanged.connect(self._show_maps)
        form = QFormLayout()
        form.addRow("Image", self.picker)
        form.addRow("Model", self.folder)
        form.addRow("Device", self.device)
        form.addRow("Show", row(self.mode, "groups", self.count))
        self.body.addLayout(form)

    def _build_click(self) -> None:
        """What a click shows, and in which layer of the encoder."""
        self.click = QComboBox()
        self.click.addItems(CLICKS)
        self.click.currentTextChanged.connect(self._show_state)
        self.click.setToolTip(
            "What is alike: how alike each place of the computed view is to the one clicked on "
            "(cosine similarity of the features). What it attends to: where the model looks, at "
            "every level, to understand the place clicked on. Bright is more."
        )
        self.layer = QSpinBox()
        self.layer.setRange(1, 1)
        self.layer.setToolTip(
            "Layer of the encoder whose attention is shown; the last is nearest to the result.")
        self.layer.valueChanged.connect(self._on_layer)
        form = QFormLayout()
        form.addRow("A click shows", self.click)
        form.addRow("Layer", self.layer)
        self.body.addLayout(form)

    # -- computing -----------------------------------------------------------------------

    def _on_image(self) -> None:
        self._forget()
        self._show_state()

    def _forget(self) -> None:
        """Another image or model: nothing that was computed counts any more."""
        self.maps, self._chosen, self._cache, self._box, self._asked = {}, {}, None, None, None
        if self.job is not None:
            self.job.cancel()

    def _on_folder(self, text: str = "") -> None:
        self.model = None
        self._forget()
        self.note.setText("")
        if self.folder.path:
            self.note.setText("Loading the model …")
            self._loader.request(self.backend, self.folder.path)
        self._show_state()

    def _on_loaded(self, model: features.LoadedEncoder) -> None:
        self.model = model
        self.layer.setRange(1, model.num_layers)
        self.layer.setValue(model.num_layers)
        levels = ", ".join(f"{level:g}" for level in model.levels)
        self.note.setText(f"Levels {levels}; patches of {model.patch} px.")
        self._show_state()

    def _on_load_failed(self, error: BaseException) -> None:
        self.note.setText("")
        self._show_state()
        show_failure(error)

    @notifies
    def _on_compute(self, checked: bool = False) -> None:
        self._fitted.forget()
        self._chosen = {}
        self._compute()

    def _compute(self) -> None:
        """Compute what is in view, in the background."""
        image, model, choice = self.picker.resolve(self.backend), self.model, self.picker.choice
        if image is None or model is None or choice is None:
            raise InputError("choose an image and the folder of a run first.")
        box = visible_box(choice.layers[0], image.transform)
        if box is None:
            raise InputError("the view shows no part of the image. Move the image into the view.")
        device = self.device.currentText()
        cache, key = self._cache, (choice.name, self._plane(), device)
        if cache is None or key != self._key:
            self._placing = Placing(self.backend, self._desk, device, features.WHO)
            cache = features.FeatureCache(self.backend, image, model, self._placing)
        self._cache, self._key, self.image, self._box = cache, key, image, box
        self._seen_plane = self._plane()
        self._wide = []
        self.progress.setRange(0, len(model.levels))
        self.progress.setValue(0)
        self.job = Job(lambda: _giving_way(cache, box))
        self.job.reported.connect(self._on_map)
        self.job.ended.connect(self._on_ended)
        self.destroyed.connect(self.job.cancel)
        who = f"{features.WHO.capitalize()} of {image.name}"
        self._leave = self._desk.claim("live", who, device)
        self.destroyed.connect(self._leave)
        self.job.start()
        self._show_state()

    def _plane(self) -> tuple[int, ...]:
        """Where the sliders stand, by which planes are told apart."""
        return tuple(self.viewer.dims.current_step[:-2])

    @notifies
    def _on_follow(self, checked: bool) -> None:
        if checked:
            self._timer.start()
        else:
            self._timer.stop()

    def _on_look(self) -> None:
        """Compute again where the view has moved; what is under way for another view is left."""
        choice = self.picker.choice
        if choice is None or self.model is None:
            return
        try:
            image = self.image or self.picker.resolve(self.backend)
            box = None if image is None else visible_box(choice.layers[0], image.transform)
            is_seen = self._box is not None and self._plane() == self._seen_plane
            if box is None or (is_seen and np.allclose(box, self._box, atol=1)):
                return
            if self.job is not None:
                self.job.cancel()
            else:
                self._compute()
        except Exception as error:  # noqa: BLE001 - said once, not at every look
            self.follow.setChecked(False)
            show_failure(error)

    @notifies
    def _on_map(self, found: features.FeatureMap | features.TooWide) -> None:
        if self.job is None or self.job.is_cancelled or self._cache is None:
            return
        if isinstance(found, features.TooWide):
            self._wide.append(found.level)
            self.maps.pop(found.level, None)
        elif found.is_whole:
            self.maps[found.level] = found
            self._show_maps()
            self._show_alike(found)
        else:
            return
        self.progress.setValue(len(self.maps) + len(self._wide))

    def _on_ended(self, error: BaseException | None) -> None:
        self.job = None
        if self._leave is not None:
            self._leave()
            self._leave = None
        self._show_state()
        if error is not None:
            self.follow.setChecked(False)
            show_failure(error)
        elif self._wide:
            levels = ", ".join(f"{level:g}" for level in self._wide)
            self._say(f"The view is too wide for level {levels}: zoom in to see it.",
                      self._placing)
        elif self.maps:
            self._say("Click in the image to see what the encoder finds alike.", self._placing)

    def _say(self, text: str, placing: Placing) -> None:
        """Note `text`, and where it was computed, if not where one would think."""
        self.note.setText(f"{text} {placing.text}".strip())

    def _on_cancel(self, checked: bool = False) -> None:
        self.follow.setChecked(False)
        if self.job is not None:
            self.job.cancel()

    def _on_mode(self, mode: str) -> None:
        self._show_state()
        self._show_maps()

    def _show_state(self, text: str = "") -> None:
        is_running = self.job is not None
        is_ready = self.model is not None and self.picker.choice is not None
        self.compute.setEnabled(is_ready and not is_running)
        self.follow.setEnabled(is_ready)
        self.cancel.setEnabled(is_running)
        self.count.setEnabled(self.mode.currentText() == features.GROUPS)
        self.layer.setEnabled(self.click.currentText() == ATTENDED)
        if not is_running:
            self.progress.setRange(0, 1)
            self.progress.reset()

    # -- layers --------------------------------------------------------------------------

    def _show_maps(self, value: Any = None) -> None:
        if self.maps:
            self._painter.request(
                list(self.maps.values()), self.mode.currentText(), self.count.value())

    @notifies
    def _on_painted(self, paintings: list[features.Painting]) -> None:
        for painting in paintings:
            found = painting.found
            if self.maps.get(found.level) is not found:
                continue
            if self.image is not None:
                features_layers.show_painting(self.viewer, self.image, painting)

    def _on_click(self, viewer: Any, event: Any) -> Iterator[None]:
        """A click, not a drag, asks what is alike there."""
        is_meant = event.button == 1 and is_navigating(viewer)
        if self.click.currentText() == NOTHING or not is_meant:
            return
        yield
        if event.type == "mouse_move":
            return
        if self.click.currentText() == ALIKE:
            self.show_likeness(event.position)
        else:
            self.show_attended(event.position)

    @notifies
    def show_likeness(self, viewer_position: Any) -> None:
        """Show how alike every place is to the one at a viewer position, at each level."""
        if self.model is None:
            return
        if self.image is None or not self.maps:
            self.note.setText("Press Compute in view first; then click.")
            return
        place = self.image.transform.to_world(viewer_position)
        patches = {found: found.patch_at(place) for found in self.maps.values()}
        if all(patch is None for patch in patches.values()):
            self.note.setText("Nothing is computed at this place. Move there and press Compute in "
                              "view, or tick Follow the view.")
            return
        features_layers.hide_layers(self.viewer, "attended")
        for found, patch in patches.items():
            if patch is not None:
                self._chosen[found.level] = found.values[(slice(None), *patch)].copy()
                self._show_alike(found)

    def _show_alike(self, found: features.FeatureMap) -> None:
        """Show what is like the place that was clicked on, also after the view has moved."""
        if found.level in self._chosen and self.image is not None:
            features_layers.show_alike(
                self.viewer, self.image, found, self._chosen[found.level])

    @notifies
    def show_attended(self, viewer_position: Any) -> None:
        """Show where the model looks to understand a viewer position, at each level."""
        image, model = self.picker.resolve(self.backend), self.model
        if image is None or model is None:
            raise InputError("choose an image and the folder of a run first.")
        place = image.transform.to_world(viewer_position)
        low, high = np.asarray(image.pyramid.extent)
        if np.any(place < low) or np.any(place > high):
            self.note.setText("This place is outside the image. Click into the image.")
            return
        self.image, self._asked = image, viewer_position
        self._asking = Placing(self.backend, self._desk, self.device.currentText(), features.WHO)
        self._attender.request(
            self.backend, image, model, place, self.layer.value() - 1, self._asking)

    def _on_layer(self, number: int) -> None:
        """Show the attention of another layer at the place that was clicked on."""
        if self._asked is not None and self.click.currentText() == ATTENDED:
            self.show_attended(self._asked)

    @notifies
    def _on_attended(self, found: list[features.AttendedLevel]) -> None:
        if self.image is None:
            return
        features_layers.hide_layers(self.viewer, "alike")
        for part in found:
            features_layers.show_attended(self.viewer, self.image, part)
        shares = ", ".join(f"level {part.level:g}: {part.share:.0%}" for part in found[::-1])
        self._say(f"Attention in layer {self.layer.value()} goes to {shares}.", self._asking)


def _giving_way(
    cache: features.FeatureCache, box: Any
) -> Iterator[features.FeatureMap | features.TooWide]:
    """Features of a region, computed with what the viewer leaves of the processor."""
    lower_thread()
    yield from cache.maps(box)
