"""Instant mode: after each stroke the view is predicted again, before any training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QCheckBox, QPushButton, QVBoxLayout, QWidget

from napari_muvit.errors import InputError
from napari_muvit.geometry import aligned_offset
from napari_muvit.plugin.annotate import fitting_level, shown_box
from napari_muvit.plugin.annotate_session import AnnotationDock, AnnotationSession
from napari_muvit.plugin.background import LatestTask
from napari_muvit.plugin.devices import DESK, DeviceDesk
from napari_muvit.plugin.dock import row, wrapped_label
from napari_muvit.plugin.folder_picker import FolderPicker
from napari_muvit.plugin.image_choices import RESULT_KEY
from napari_muvit.plugin.instant_engine import InstantAnswer, InstantEngine, InstantRequest
from napari_muvit.plugin.label_layers import class_kwargs
from napari_muvit.plugin.live_layers import find_live
from napari_muvit.plugin.notices import notifies, sentence, show_failure
from napari_muvit.plugin.preferences import preference
from napari_muvit.plugin.remembered import recall_own, remember

LOOK_MS = 200
LARGEST_VIEW = 1600
"""Longest side of an instant prediction, pixels of its level."""


class InstantPanel(QWidget):  # type: ignore[misc]
    """Switches instant mode and shows its layer.

    Parameters
    ----------
    dock
        The widget that this one is part of.
    desk
        Who else computes where; training has the first right to a graphics card.
    """

    def __init__(self, dock: AnnotationDock, desk: DeviceDesk = DESK) -> None:
        super().__init__()
        self._dock, self._desk = dock, desk
        self._device = "auto"
        self._leave: Callable[[], None] | None = None
        self._asked: InstantRequest | None = None
        self._result: Any = None
        self._layer: Any = None
        self._task: LatestTask | None = None
        self.switch = QCheckBox("Instant prediction")
        self.switch.setToolTip(
            "After each stroke, predict what the canvas shows from all strokes so far. Needs no "
            "training; paint at least two classes."
        )
        self.switch.toggled.connect(self._on_switched)
        self.next = QPushButton("Next uncertain place")
        self.next.setToolTip(
            "Move to where the prediction is least certain: of all that live prediction has "
            "seen, or of the view in instant prediction."
        )
        self.next.clicked.connect(self._on_next)
        self.folder = FolderPicker(
            "Run or model folder whose features instant prediction uses too, for example of a "
            "pretraining run. Without one, simple image filters are used.", "image filters",
        )
        self.folder.changed.connect(self._on_folder)
        self.note = wrapped_label()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(row(self.switch, self.next))
        layout.addLayout(row("Features", self.folder))
        layout.addWidget(self.note)
        self._timer = QTimer(self)
        self._timer.setInterval(LOOK_MS)
        self._timer.timeout.connect(self._on_look)

    def stop(self) -> None:
        """Leave instant mode and take its layer away."""
        self.switch.setChecked(False)

    @notifies
    def _on_switched(self, is_on: bool) -> None:
        self._asked = self._result = None
        self.note.setText("")
        if is_on:
            self._device = str(preference("device", "auto"))
            engine = InstantEngine(self._dock.backend, self._desk, self._device)
            self._task = LatestTask(engine.predict)
            self._task.finished.connect(self._on_result)
            self._task.failed.connect(self._on_failed)
            self.destroyed.connect(self._task.stop)
            self._desk.changed.connect(self._on_desk)
            self._timer.start()
            return
        self._desk.changed.disconnect(self._on_desk)
        self._claim("")
        self._timer.stop()
        if self._task is not None:
            self._task.stop()
            self._task = None
        self._remove_layer()

    def _claim(self, name: str) -> None:
        """Tell the desk that a model computes features of the image `name`; "" is of none."""
        if name and self._leave is None:
            self._leave = self._desk.claim("live", f"Instant prediction of {name}", self._device)
            self.destroyed.connect(self._leave)
        elif not name and self._leave is not None:
            leave, self._leave = self._leave, None
            leave()

    def _on_desk(self) -> None:
        """Somebody began or ended to compute: the next look moves the model where it is due."""
        self._asked = None

    def _on_folder(self, path: str = "") -> None:
        self._asked = None
        if self._dock.session is not None:
            remember(self._dock.session.image.key, features=self.folder.path)

    def show_image(self, key: str | None) -> None:
        """The features that were last used on an image."""
        known = recall_own(key, "features") if key else ""
        self.folder.show_path(str(known or ""))

    @notifies
    def _on_look(self) -> None:
        session = self._dock.session
        if session is None or self._task is None or session.is_painting:
            return
        request = self._request(session)
        if request is not None and request != self._asked:
            self._claim(session.image.name if self.folder.path else "")
            self._asked = request
            self._task.request(session, self.folder.path, request)

    def _request(self, session: AnnotationSession) -> InstantRequest | None:
        choice, viewer = self._dock.picker.choice, self._dock.viewer
        transform, point = session.image.transform, viewer.dims.point
        box = None if choice is None else shown_box(choice.layers[0], transform, point)
        if box is None:
            return None
        lead = tuple(np.round(box[:, :-2].mean(axis=0)).astype(int).tolist())
        box = box[:, -2:]
        longest = float((box[1] - box[0]).max())
        per_px = float(transform.viewer_per_px[-2:].mean())
        level = fitting_level(1 / float(viewer.scene.camera.zoom), per_px, longest)
        while longest / level > LARGEST_VIEW:
            level *= 2
        shape = np.asarray(session.store.arrays.level_shape(level))[-2:]
        low = np.clip(np.floor((box[0] + 0.5) / level), 0, shape - 1).astype(int)
        high = np.clip(np.ceil((box[1] + 0.5) / level), low + 1, shape).astype(int)
        size = (high - low).tolist()
        return InstantRequest(
            session.num_changed, level, (*lead, *low.tolist()), (*[1] * len(lead), *size)
        )

    @notifies
    def _on_result(self, found: InstantAnswer) -> None:
        session, result = found.session, found.result
        if session is not self._dock.session or not self.switch.isChecked():
            return
        self._result = result
        certain = float(result.confidence.mean())
        self.note.setText(f"Mean certainty of the view: {certain:.0%}. {found.text}".strip())
        self._show(session, result)

    def _show(self, session: AnnotationSession, result: Any) -> None:
        lead = len(result.plane)
        offset = np.asarray(result.start) * result.level + aligned_offset(result.level)
        labels = result.labels.reshape(*[1] * lead, *result.labels.shape)
        colors = class_kwargs(session.store.classes)
        layer, viewer = self._layer, self._dock.viewer
        if layer is None or layer not in viewer.layers:
            layer = self._layer = self._add_layer(session, labels, colors)
        else:
            layer.data = labels
            layer.colormap, layer.features = colors["colormap"], colors["features"]
        layer.scale = [*[1] * lead, result.level, result.level]
        layer.translate = [*result.plane, *offset]
        layer.editable = False

    def _add_layer(self, session: AnnotationSession, labels: Any, colors: dict[str, Any]) -> Any:
        viewer = self._dock.viewer
        active = viewer.layers.selection.active
        layer = viewer.add_labels(
            labels, name=f"{session.image.name}: instant prediction", opacity=0.35,
            multiscale=False, metadata={RESULT_KEY: True},
            **session.image.transform.layer_kwargs(), **colors,
        )
        # Below the windows, so that what is painted stays visible.
        first = min((viewer.layers.index(w.layer) for w in session.windows.values()
                     if w.layer in viewer.layers), default=None)
        if first is not None:
            viewer.layers.move(len(viewer.layers) - 1, first)
        if active is not None:
            viewer.layers.selection.active = active
        return layer

    def _remove_layer(self) -> None:
        layer, self._layer = self._layer, None
        if layer is not None and layer in self._dock.viewer.layers:
            self._dock.viewer.layers.remove(layer)

    def _on_failed(self, error: BaseException) -> None:
        if isinstance(error, InputError):
            self.note.setText(sentence(error))  # too few classes: that is how every store begins
            return
        self.stop()
        show_failure(error)

    @notifies
    def _on_next(self, checked: bool = False) -> None:
        session = self._dock.session
        if session is None:
            return
        viewer = self._dock.viewer
        live = find_live(viewer.layers, session.image.key)
        if live is not None:
            place = live.next_uncertain()
        elif self._result is not None:
            place = self._result.most_uncertain()
        else:
            raise InputError(
                "nothing is predicted yet. Paint two classes with instant prediction switched on, "
                "or start live prediction in MuViT: Predict."
            )
        session.center_on(viewer, place)
