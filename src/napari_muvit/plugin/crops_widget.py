"""MuViT: Crops. Nested crops moved with the mouse: boxes, thumbnails, table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from qtpy.QtCore import Qt
from qtpy.QtGui import QGuiApplication
from qtpy.QtWidgets import (
    QCheckBox,
    QFormLayout,
    QLineEdit,
    QPushButton,
)
from superqt import QLabeledSlider, QRangeSlider

from napari_muvit.errors import InputError
from napari_muvit.geometry import FloatArray
from napari_muvit.plugin import crops
from napari_muvit.plugin.background import LatestTask
from napari_muvit.plugin.camera import is_navigating, view_center
from napari_muvit.plugin.crops_layer import draw_boxes, fit_to_zoom
from napari_muvit.plugin.crops_samples import SampleDrawer, ShownSample
from napari_muvit.plugin.crops_table import BoxTable
from napari_muvit.plugin.crops_thumbnails import Thumbnails, read_pictures
from napari_muvit.plugin.dock import DockWidget, ImagePicker, row, wrapped_label
from napari_muvit.plugin.image_choices import NUM_AXES
from napari_muvit.plugin.layer_copies import shown_channels
from napari_muvit.plugin.layers import ResolvedImage
from napari_muvit.plugin.notices import notifies, sentence, show_failure, show_hint
from napari_muvit.plugin.remembered import remember

LARGEST_EXPONENT = 10
SIZE_STEP = 16
LARGEST_DEPTH = 64
GRAB_PX = 12
"""How near to the crop's centre, in screen pixels, a press takes hold of it."""


class CropsWidget(DockWidget):
    """Shows what the model would see at a place."""

    def __init__(self, napari_viewer: Any, backend: Any = None) -> None:
        super().__init__(napari_viewer, backend)
        self.choice = crops.CropChoice()
        self.image: ResolvedImage | None = None
        self._shapes: Any = None
        self._is_drawing = False
        self._reader = LatestTask(read_pictures)
        self._build()
        self._reader.finished.connect(self._on_crop)
        self._reader.failed.connect(show_failure)
        self.destroyed.connect(self._reader.stop)
        self._sampler = LatestTask(SampleDrawer().draw)
        self._sampler.finished.connect(self._on_sampled)
        self._sampler.failed.connect(self._on_sample_failed)
        self.destroyed.connect(self._sampler.stop)
        self._number = 0
        self.listen_mouse(self.viewer.mouse_drag_callbacks, self._on_drag)
        self.listen_mouse(self.viewer.mouse_move_callbacks, self._on_move)
        self.listen(self.viewer.scene.camera.events.zoom, self._on_zoom)
        self.listen(self.viewer.dims.events.point, self._on_plane)
        self.listen(self.viewer.dims.events.ndisplay, self.update_crop)
        self._on_image()

    def _build(self) -> None:
        self.picker = ImagePicker(self, "Image to crop. Channels of one file are offered together.")
        self.picker.changed.connect(self._on_image)
        self._build_levels()
        self._build_sizes()
        self.form = QFormLayout()
        self.form.addRow("Image", self.picker)
        self.form.addRow("Levels", self.levels_edit)
        self.form.addRow("", self.levels_slider)
        self.form.addRow("Crop size", self.size)
        self.form.addRow("Planes", self.depth)
        self.body.addLayout(self.form)
        self.click = QCheckBox("Click places the crop")
        self.click.setToolTip("Click in the image to move the crops there; drag the inner box.")
        self.click.setChecked(True)
        self.follow = QCheckBox("Follow the cursor")
        self.follow.setToolTip("Move the crops with the mouse, without clicking.")
        self.body.addLayout(row(self.click, self.follow))
        self._build_buttons()
        self.thumbnails = Thumbnails()
        self.body.addLayout(self.thumbnails)
        self.table = BoxTable()
        self.body.addWidget(self.table)
        self.note = wrapped_label()
        self.body.addWidget(self.note)
        self.body.addStretch(1)

    def _build_sizes(self) -> None:
        self.size = QLabeledSlider(Qt.Orientation.Horizontal)
        self.size.setRange(SIZE_STEP, 1024)
        self.size.setSingleStep(SIZE_STEP)
        self.size.setToolTip("Side of every level's crop, in pixels of that level.")
        self.size.setValue(self._side)
        self.size.valueChanged.connect(self._on_size)
        self.depth = QLabeledSlider(Qt.Orientation.Horizontal)
        self.depth.setRange(1, LARGEST_DEPTH)
        self.depth.setToolTip("Planes of every level's crop: 1 for a model that reads planes, more "
                              "for one that reads volumes.")
        self.depth.setValue(1)
        self.depth.valueChanged.connect(self._on_depth)

    def _build_buttons(self) -> None:
        self.centre = QPushButton("Place in view")
        self.centre.setToolTip("Move the crops to the middle of what the canvas shows.")
        self.centre.clicked.connect(self._on_centre)
        self.copy = QPushButton("Copy as code")
        self.copy.setToolTip("Copy Python that reads exactly this crop.")
        self.copy.clicked.connect(self._on_copy)
        self.body.addLayout(row(self.centre, self.copy))
        self.sample = QPushButton("As sampled in training")
        self.sample.setToolTip("Draw a random nested crop as training would read it: place, "
                               "augmentation and normalisation. Press again for another.")
        self.sample.clicked.connect(self._on_sample)
        self.body.addWidget(self.sample)

    def _build_levels(self) -> None:
        self.levels_edit = QLineEdit(crops.levels_text(self.choice.levels))
        self.levels_edit.setToolTip("Downsampling factors that the model reads together, "
                                    "ascending: 1 is full resolution.")
        self.levels_edit.editingFinished.connect(self._on_levels_text)
        self.levels_slider = QRangeSlider(Qt.Orientation.Horizontal)
        self.levels_slider.setRange(0, LARGEST_EXPONENT)
        self.levels_slider.setToolTip("One handle for each level, in powers of two.")
        self._show_levels()
        self.levels_slider.valueChanged.connect(self._on_levels_slider)

    @property
    def _stored(self) -> float:
        """Factor of the image's smallest array."""
        return 1.0 if self.image is None else float(max(self.image.pyramid.factors[-1]))

    # -- choices -------------------------------------------------------------------------

    @notifies
    def _on_image(self) -> None:
        self._show_depth()
        self.image = None
        reason = "Open an image to see its nested crops."
        try:
            self.image = self.picker.resolve(self.backend, self._num_axes)
        except Exception as error:
            reason = sentence(error)
            raise
        finally:
            if self.image is None:
                self._show_nothing(reason)
            choices = (self.depth, self.levels_slider, self.levels_edit, self.size)
            for widget in (self.centre, self.copy, self.sample, *choices):
                widget.setEnabled(self.image is not None)
        if self.image is None:
            return
        self.choice = self._first_choice(self.image)
        self.size.blockSignals(True)
        self.size.setValue(self._side)
        self.size.blockSignals(False)
        self._show_levels()
        self.update_crop()

    def _show_nothing(self, reason: str) -> None:
        """There is no image: nothing of the last one stays, and it is said why."""
        self.note.setText(reason)
        self.thumbnails.clear()
        self.table.show_rows((), NUM_AXES)
        if self._shapes is not None and self._shapes in self.viewer.layers:
            self._shapes.data = []

    def _first_choice(self, image: ResolvedImage) -> crops.CropChoice:
        """Levels and size as they were last chosen for the image, else what suits it."""
        extent = np.asarray(image.pyramid.extent)
        size, levels = crops.first_crops(self.backend, image.pyramid, image.key)
        center = extent.mean(axis=0)
        if len(center) > NUM_AXES:
            center[0] = image.transform.to_world(self.viewer.dims.point)[0]
        return crops.CropChoice(levels, self._size_of(size), tuple(center.tolist()))

    @property
    def _side(self) -> int:
        """Side of the crop in pixels, whatever its depth."""
        size = self.choice.size
        return size if isinstance(size, int) else size[-1]

    def _size_of(self, side: int) -> int | tuple[int, ...]:
        return side if self._num_axes == NUM_AXES else (self.depth.value(), side, side)

    @property
    def _num_axes(self) -> int:
        """2 where planes are cropped, 3 where volumes are."""
        choice = self.picker.choice
        is_volume = choice is not None and choice.has_depth and self.depth.value() > 1
        return NUM_AXES + is_volume

    def _show_depth(self) -> None:
        choice = self.picker.choice
        self.form.setRowVisible(self.depth, choice is not None and choice.has_depth)

    def _on_depth(self, value: int) -> None:
        center = self.choice.center[-NUM_AXES:]
        self._on_image()
        if self.image is not None:
            lead = self.choice.center[:-NUM_AXES]
            self.move_to((*lead, *center))

    @notifies
    def _on_plane(self, event: Any = None) -> None:
        """Another plane of a volume or series is shown: the same place in that plane."""
        num_axes = 0 if self.image is None else self.image.transform.num_axes
        if self._is_drawing or self.image is None or len(self.viewer.dims.point) < num_axes:
            return  # the image is just being taken out of the viewer
        if self._shapes is not None and self._shapes not in self.viewer.layers:
            return  # so are the boxes: to draw them again would never let the viewer close
        if num_axes > NUM_AXES:
            plane = self.image.transform.to_world(self.viewer.dims.point)[0]
            self.move_to((plane, *self.choice.center[1:]))
        elif self.image.plane:
            self.image = self.picker.resolve(self.backend)
            self.update_crop()

    @notifies
    def _on_levels_text(self) -> None:
        try:
            levels = crops.parse_levels_text(self.levels_edit.text())
        except InputError:
            self._show_levels()
            raise
        self._set_choice(levels=levels)

    def _on_levels_slider(self, exponents: tuple[int, ...]) -> None:
        self._set_choice(levels=tuple(sorted({2 ** int(e) for e in exponents})))

    def _on_size(self, value: int) -> None:
        stepped = max(1, round(value / SIZE_STEP)) * SIZE_STEP
        self.size.setValue(stepped)
        self._set_choice(size=self._size_of(stepped))

    def _set_choice(self, **changes: Any) -> None:
        values = {"levels": self.choice.levels, "size": self.choice.size,
                  "center": self.choice.center, **changes}
        choice = crops.CropChoice(**values)
        if choice != self.choice:
            self.choice = choice
            self._show_levels()
            self.update_crop()
            if self.image is not None:
                text = crops.levels_text(choice.levels)
                remember(self.image.key, levels=text, crop_size=self._side)

    def _show_levels(self) -> None:
        self.levels_edit.setText(crops.levels_text(self.choice.levels))
        if self.levels_slider.isSliderDown():
            return
        exponents = tuple(round(float(np.log2(level))) for level in self.choice.levels)
        self.levels_slider.blockSignals(True)
        self.levels_slider.setRange(0, max(LARGEST_EXPONENT, *exponents))
        self.levels_slider.setValue(exponents)
        self.levels_slider.blockSignals(False)

    # -- places --------------------------------------------------------------------------

    @notifies
    def _on_centre(self, checked: bool = False) -> None:
        if self.image is not None:
            self.move_to(self.image.transform.to_world(view_center(self.viewer)))

    def _on_move(self, viewer: Any, event: Any) -> None:
        if self.follow.isChecked() and self.image is not None:
            self.move_to(self.image.transform.to_world(event.position))

    def _on_drag(self, viewer: Any, event: Any) -> Iterator[None]:
        """Take hold of the crop or place it; panning stays what it is elsewhere."""
        is_meant = self.click.isChecked() and event.button == 1 and is_navigating(viewer)
        if self.image is None or not is_meant:
            return
        is_held = self._is_near(event.position)
        camera = self.viewer.scene.camera
        pan = camera.mouse_pan
        if is_held:
            camera.mouse_pan = False
        has_moved = False
        yield
        while event.type == "mouse_move":
            has_moved = True
            if is_held:
                self.move_to(self.image.transform.to_world(event.position))
            yield
        camera.mouse_pan = pan
        if not has_moved:
            self.move_to(self.image.transform.to_world(event.position))

    def _is_near(self, viewer_position: Any) -> bool:
        """Whether a press lies in the finest box, or near its centre on the screen."""
        if self.image is None or self._shapes is None:
            return False
        place = self.image.transform.to_world(viewer_position)
        reach = GRAB_PX / self.viewer.scene.camera.zoom / self.image.transform.viewer_per_px
        half = np.maximum(np.asarray(self.choice.boxes()[0, 1] - self.choice.center) / 2, reach)
        return bool(np.all(np.abs(place - np.asarray(self.choice.center)) <= half))

    def move_to(self, center: Any) -> None:
        """Show the nested crop whose finest box is centred at `center`, world px."""
        if self.image is None:
            return
        extent = np.asarray(self.image.pyramid.extent)
        self.choice = self.choice.moved(np.clip(center, extent[0], extent[1]))
        self.update_crop()

    # -- what is shown -------------------------------------------------------------------

    @notifies
    def update_crop(self, event: Any = None) -> None:
        """Draw the boxes now; read the crops, whose boxes lie on pixels, in the background."""
        if self.image is None or self._is_drawing:
            return
        boxes = self.choice.boxes()
        self._draw(boxes)
        self._describe(boxes)
        self._reader.request(self.image, self.choice)

    def _draw(self, boxes: Any) -> None:
        if self.image is None or self.viewer.dims.ndisplay > NUM_AXES:
            return
        self._is_drawing = True  # layers that come and go move the sliders for a moment
        try:
            self._shapes = draw_boxes(
                self.viewer, self.image.transform, self.choice.levels, boxes, self._shapes
            )
        finally:
            self._is_drawing = False

    def _on_zoom(self, event: Any = None) -> None:
        is_shown = self._shapes is not None and self._shapes in self.viewer.layers
        if is_shown and self.viewer.dims.ndisplay == NUM_AXES and self.image is not None:
            fit_to_zoom(self.viewer, self.image.transform, self._shapes)

    def _describe(self, boxes: Any) -> None:
        if self.image is None:
            return
        size = self.image.transform.pixel_size_um
        rows = crops.box_rows(self.choice.levels, boxes, size)
        self.table.show_rows(rows, boxes.shape[2])
        said = [crops.averaging_text(self.choice.levels, self._side, self._stored)]
        if self.viewer.dims.ndisplay > NUM_AXES:
            said.insert(0, "Boxes are drawn in the flat view.")
        outside = crops.outside_share(boxes, np.asarray(self.image.pyramid.extent))
        worst = int(np.argmax(outside))
        if outside[worst] > 0.5:
            said.append(
                f"{outside[worst]:.0%} of the crop at level {self.choice.levels[worst]:g} lies "
                "outside the image; it is filled and ignored."
            )
        self.note.setText(" ".join(text for text in said if text))

    @notifies
    def _on_crop(self, result: tuple[crops.CropChoice, FloatArray, list[Any]]) -> None:
        if self.image is None:  # it may have gone since
            return
        choice, boxes, pictures = result
        self.thumbnails.show_pictures(choice, pictures)
        if choice == self.choice:
            self._draw(boxes)
            self._describe(boxes)

    @notifies
    def _on_sample(self, checked: bool = False) -> None:
        if self.image is not None:
            self.note.setText("Drawing a training sample …")
            self._sampler.request(self.backend, self.image, self.choice, self._number)
            self._number += 1

    @notifies
    def _on_sampled(self, sample: ShownSample) -> None:
        self._draw(sample.boxes)
        self._describe(sample.boxes)
        self.thumbnails.show_pictures(sample.choice, sample.pictures)
        self.note.setText(
            f"Training sample {sample.number}: read inside the boxes, then augmented (turned, "
            "mirrored, brightened at random) and normalised; values 0 to 1 are shown."
        )

    def _on_sample_failed(self, error: BaseException) -> None:
        self.note.setText("")
        show_failure(error)

    def _on_copy(self, checked: bool = False) -> None:
        image, shown = self.image, self.picker.choice
        if image is not None and shown is not None:
            channels = shown_channels(shown, image)
            names = [layer.name for layer in shown.layers]
            QGuiApplication.clipboard().setText(
                self.choice.code(image.path, image.plane, channels, names))
            show_hint("The code for this crop is in the clipboard.")
