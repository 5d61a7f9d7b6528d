"""MuViT: Features. What the encoder sees alike, at each level."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from qtpy.QtWidgets import QComboBox, QFormLayout, QProgressBar, QPushButton, QSpinBox

from napari_muvit.errors import InputError
from napari_muvit.plugin import features
from napari_muvit.plugin.background import Job, LatestTask
from napari_muvit.plugin.dock import DockWidget, ImagePicker, row, wrapped_label
from napari_muvit.plugin.folder_picker import FolderPicker
from napari_muvit.plugin.layers import ResolvedImage, visible_box
from napari_muvit.plugin.notices import notifies, show_failure
from napari_muvit.plugin.preferences import preference

MODES = ("Colours", "Groups")
ALIKE, ATTENDED, NOTHING = CLICKS = ("what is alike", "what it attends to", "nothing")


class FeaturesWidget(DockWidget):
    """Encoder features of what is in view: as colours, as groups, and as likeness to a place."""

    def __init__(self, napari_viewer: Any, backend: Any = None) -> None:
        super().__init__(napari_viewer, backend)
        self.model: features.LoadedEncoder | None = None
        self.job: Job | None = None
        self.maps: list[features.FeatureMap] = []
        self.image: ResolvedImage | None = None
        self._build()
        self._loader = LatestTask(features.load)
        self._loader.finished.connect(self._on_loaded)
        self._loader.failed.connect(self._on_load_failed)
        self.destroyed.connect(self._loader.stop)
        self._attender = LatestTask(features.attended)
        self._attender.finished.connect(self._on_attended)
        self._attender.failed.connect(show_failure)
        self.destroyed.connect(self._attender.stop)
        self.listen_mouse(self.viewer.mouse_drag_callbacks, self._on_click)
        self._show_state()

    def _build(self) -> None:
        self.picker = ImagePicker(self, "Image whose features are shown.")
        self.picker.changed.connect(self._show_state)
        self.folder = FolderPicker("Folder of a pretraining or fine-tuning run.", "run folder")
        self.folder.changed.connect(self._on_folder)
        self.device = QComboBox()
        self.device.addItems(["auto", "cpu", "cuda", "mps"])
        self.device.setToolTip("Where the model runs; auto takes a graphics card if there is one.")
        self.device.setCurrentText(str(preference("device", "auto")))
        self.mode = QComboBox()
        self.mode.addItems(MODES)
        self.mode.setToolTip(
            "Colours: the three strongest directions of the features as red, green and blue, so "
            "that like places have like colours. Groups: like places in a number of groups."
        )
        self.mode.currentTextChanged.connect(self._show_maps)
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
        self.compute = QPushButton("Compute in view")
        self.compute.setToolTip("Compute the features of what the canvas shows, at every level.")
        self.compute.clicked.connect(self._on_compute)
        self.cancel = QPushButton("Cancel")
        self.cancel.setToolTip("Stop after the level in progress.")
        self.cancel.clicked.connect(self._on_cancel)
        self.body.addLayout(row(self.compute, self.cancel))
        self.progress = QProgressBar()
        self.body.addWidget(self.progress)
        self.click = QComboBox()
        self.click.addItems(CLICKS)
        self.click.setToolTip(
            "What is alike: how alike each place of the computed view is to the one clicked on "
            "(cosine similarity of the features). What it attends to: where the model looks, at "
            "every level, to understand the place clicked on. Bright is more."
        )
        self.layer = QSpinBox()
        self.layer.setRange(1, 1)
        self.layer.setToolTip("Layer of the encoder whose attention is shown; the last is nearest "
                              "to the result.")
        below = QFormLayout()
        below.addRow("A click shows", self.click)
        below.addRow("Layer", self.layer)
        self.body.addLayout(below)
        self.note = wrapped_label()
        self.body.addWidget(self.note)
        self.body.addStretch(1)

    # -- computing -----------------------------------------------------------------------

    def _on_folder(self, text: str = "") -> None:
        self.model = None
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
        image, model = self.picker.resolve(self.backend), self.model
        choice = self.picker.choice
        if image is None or model is None or choice is None:
            raise InputError("choose an image and the folder of a run first.")
        box = visible_box(choice.layers[0], image.transform)
        if box is None:
            raise InputError("the view shows no part of the image. Move the image into the view.")
        backend, device = self.backend, self.device.currentText()

        def generate() -> Iterator[features.FeatureMap]:
            return features.compute_maps(backend, image, model, box, device)

        self.image, self.maps = image, []
        self.progress.setRange(0, len(model.levels))
        self.progress.setValue(0)
        self.job = Job(generate)
        self.job.reported.connect(self._on_map)
        self.job.ended.connect(self._on_ended)
        self.destroyed.connect(self.job.cancel)
        self.job.start()
        self._show_state()

    @notifies
    def _on_map(self, found: features.FeatureMap) -> None:
        self.maps.append(found)
        self.progress.setValue(len(self.maps))
        self._show_map(found)

    def _on_ended(self, error: BaseException | None) -> None:
        self.job = None
        self._show_state()
        if error is not None:
            show_failure(error)
        elif self.maps:
            self.note.setText("Click in the image to see what the encoder finds alike.")

    def _on_cancel(self, checked: bool = False) -> None:
        if self.job is not None:
            self.job.cancel()

    def _show_state(self) -> None:
        is_running = self.job is not None
        is_ready = self.model is not None and self.picker.choice is not None
        self.compute.setEnabled(is_ready and not is_running)
        self.cancel.setEnabled(is_running)
        if not is_running:
            self.progress.setRange(0, 1)
            self.progress.reset()

    # -- layers --------------------------------------------------------------------------

    @notifies
    def _show_maps(self, value: Any = None) -> None:
        for found in self.maps:
            self._show_map(found)

    def _show_map(self, found: features.FeatureMap) -> None:
        name = f"features, level {found.level:g}"
        if self.mode.currentText() == "Groups":
            data: Any = features.groups(found.values, self.count.value())
            self._show_layer(name, "labels", data, found, opacity=0.6)
        else:
            data = features.pca_colours(found.values)
            self._show_layer(name, "image", data, found, rgb=True, opacity=0.7)

    def _on_click(self, viewer: Any, event: Any) -> Iterator[None]:
        """A click, not a drag, asks what is alike there."""
        if self.click.currentText() == NOTHING or event.button != 1:
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
        if self.image is None:
            return
        place = self.image.transform.to_world(viewer_position)
        for found in self.maps:
            patch = found.patch_at(place)
            if patch is None:
                continue
            self._show_layer(
                f"alike, level {found.level:g}", "image",
                features.likeness(found.values, patch), found, colormap="inferno",
                contrast_limits=(0.0, 1.0), opacity=0.6, blending="translucent_no_depth",
            )

    @notifies
    def show_attended(self, viewer_position: Any) -> None:
        """Show where the model looks to understand a viewer position, at each level."""
        image, model = self.picker.resolve(self.backend), self.model
        if image is None or model is None:
            raise InputError("choose an image and the folder of a run first.")
        self.image = image
        place = image.transform.to_world(viewer_position)
        self._attender.request(self.backend, image, model, place, self.layer.value() - 1,
                               self.device.currentText())

    @notifies
    def _on_attended(self, found: list[features.AttendedLevel]) -> None:
        for part in found:
            self._place_layer(
                f"attended, level {part.level:g}", "image", part.weights, part.factor,
                part.offset, colormap="inferno", opacity=0.6, blending="translucent_no_depth",
                contrast_limits=(0.0, float(part.weights.max()) or 1.0),
            )
        shares = ", ".join(f"level {part.level:g}: {part.share:.0%}" for part in found[::-1])
        self.note.setText(f"Attention in layer {self.layer.value()} goes to {shares}.")

    def _show_layer(
        self, name: str, kind: str, data: Any, found: features.FeatureMap, **style: Any
    ) -> None:
        """A layer of one value for each patch, in the place of the one of the same name."""
        self._place_layer(name, kind, data, found.region.factor, found.region.offset(), **style)

    def _place_layer(
        self, name: str, kind: str, data: Any, factor: Any, offset: Any, **style: Any
    ) -> None:
        if self.image is None:
            return
        if name in self.viewer.layers:
            self.viewer.layers.remove(name)
        place = {**self.image.transform.layer_kwargs(), "scale": np.broadcast_to(factor, 2),
                 "translate": np.asarray(offset)}
        active = self.viewer.layers.selection.active
        add = self.viewer.add_labels if kind == "labels" else self.viewer.add_image
        add(data, name=name, **place, **style)
        if active is not None and active in self.viewer.layers:
            self.viewer.layers.selection.active = active
