"""What every dock widget has: a scrolling body, weak ties to the viewer, one image picker."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from npe2 import PluginManager
from qtpy.compat import isalive
from qtpy.QtCore import QEvent, Qt, QTimer, Signal
from qtpy.QtWidgets import (
    QComboBox,
    QFrame,
    QHBoxLayout,
    QLabel,
    QLayout,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)

from napari_muvit.errors import InputError
from napari_muvit.geometry import FloatArray
from napari_muvit.plugin import engine
from napari_muvit.plugin.image_choices import NUM_AXES, RESULT_KEY, ImageChoice, image_choices
from napari_muvit.plugin.layers import ResolvedImage, ViewerTransform, resolve_image, viewer_place
from napari_muvit.plugin.notices import show_hint


def weak_slot(method: Callable[..., Any]) -> Callable[..., Any]:
    """A callable for napari's lists and events that does not keep `method`'s widget alive."""
    reference: weakref.WeakMethod[Any] = weakref.WeakMethod(method)

    def call(*arguments: Any) -> Any:
        target = reference()
        if target is None or not isalive(target.__self__):
            return None
        return target(*arguments)

    return call


class DockWidget(QWidget):  # type: ignore[misc]
    """A widget whose body scrolls, and which lets go of the viewer when it is destroyed.

    What is added to `footer` stays in sight below the body.

    Parameters
    ----------
    napari_viewer
        The viewer, as napari hands it to plugins.
    backend
        Has the verbs of ``napari_muvit.api``; tests pass their own.
    """

    def __init__(self, napari_viewer: Any, backend: Any = None) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self._backend = backend
        self._was_docked = False
        area = QScrollArea()
        area.setWidgetResizable(True)
        area.setFrameShape(QFrame.Shape.NoFrame)
        area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        content = QWidget()
        self.body = QVBoxLayout(content)
        self.body.setContentsMargins(6, 6, 6, 6)
        area.setWidget(content)
        self.footer = QVBoxLayout()
        self.footer.setContentsMargins(6, 0, 6, 6)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.addWidget(area)
        outer.addLayout(self.footer)
        self.setMinimumWidth(350)

    @property
    def backend(self) -> Any:
        if self._backend is None:
            self._backend = engine.default_backend()
        return self._backend

    def changeEvent(self, event: QEvent) -> None:
        """Go when the dock is closed: napari takes the widget out of it and leaves it behind."""
        super().changeEvent(event)
        if event.type() != QEvent.Type.ParentChange:
            return
        if self.parent() is not None:
            self._was_docked = True
        elif self._was_docked:
            QTimer.singleShot(0, self._end_if_alone)

    def _end_if_alone(self) -> None:
        if not isalive(self) or self.parent() is not None:
            return
        if getattr(self, "job", None) is not None:
            show_hint("What the closed widget was computing ends with it; what is on disk stays. "
                      "Open it and start again to go on.")
        self.deleteLater()

    def listen(self, emitter: Any, method: Callable[..., Any]) -> None:
        """Call `method` on every event of `emitter` until this widget is destroyed."""
        slot = weak_slot(method)
        emitter.connect(slot)
        self.destroyed.connect(lambda: emitter.disconnect(slot))

    def listen_to_names(self, known: set[Any], method: Callable[..., Any]) -> None:
        """Call `method` when a layer is renamed; those in `known`, to which all are added, are."""
        for layer in self.viewer.layers:
            if layer.unique_id not in known:
                known.add(layer.unique_id)
                self.listen(layer.events.name, method)

    def listen_mouse(self, callbacks: list[Any], method: Callable[..., Any]) -> None:
        """Put `method` into a list of mouse callbacks until this widget is destroyed."""
        slot = weak_slot(method)
        callbacks.append(slot)
        self.destroyed.connect(lambda: _remove(callbacks, slot))


def _remove(callbacks: list[Any], slot: Any) -> None:
    if slot in callbacks:
        callbacks.remove(slot)


def open_widget(viewer: Any, name: str) -> Any:
    """The widget of this plugin called `name`: the one that is open, else a new one.

    napari's function to add a plugin's widget gives it another title than the menu does, so that
    the menu would open a second one.
    """
    for title, widget in viewer.window.dock_widgets.items():
        if title.startswith(name):
            widget.parent().show()
            widget.parent().raise_()
            return widget
    manifest = PluginManager.instance().get_manifest("napari-muvit")
    contribution = next(w for w in manifest.contributions.widgets or () if w.display_name == name)
    opened = contribution.get_callable()(viewer)
    viewer.window.add_dock_widget(opened, name=f"{name} ({manifest.display_name})")
    return opened


class ImagePicker(QWidget):  # type: ignore[misc]
    """A list of the images in the viewer that follows the layers."""

    changed = Signal()

    def __init__(self, dock: DockWidget, tooltip: str) -> None:
        super().__init__()
        self._viewer, self._dock = dock.viewer, dock
        self._named: set[Any] = set()
        self._choices: list[ImageChoice] = []
        self._combo = QComboBox()
        self._combo.setToolTip(tooltip)
        policy = QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
        self._combo.setSizeAdjustPolicy(policy)
        self._combo.setMinimumContentsLength(12)
        self._combo.currentIndexChanged.connect(self._on_index)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._combo, 1)
        events = dock.viewer.layers.events
        for emitter in (events.inserted, events.removed, events.reordered):
            dock.listen(emitter, self.refresh)
        self.refresh()

    @property
    def choice(self) -> ImageChoice | None:
        index = self._combo.currentIndex()
        return self._choices[index] if 0 <= index < len(self._choices) else None

    def choose(self, name: str) -> None:
        """Choose the image called `name`."""
        self._combo.setCurrentText(name)

    def refresh(self, event: Any = None) -> None:
        """Read the viewer's layers again; the chosen image stays chosen while it exists."""
        self._dock.listen_to_names(self._named, self.refresh)
        before = self.choice
        self._choices = image_choices(self._viewer.layers)
        names = [choice.name for choice in self._choices]
        self._combo.blockSignals(True)
        self._combo.clear()
        self._combo.addItems(names)
        kept = None if before is None else _same(before, self._choices)
        self._combo.setCurrentIndex(kept if kept is not None else len(names) - 1)
        self._combo.blockSignals(False)
        self._combo.setEnabled(bool(names))
        if kept is None or before is None or ids_of(self._choices[kept]) != ids_of(before):
            self.changed.emit()

    def resolve(self, backend: Any, num_axes: int = NUM_AXES) -> ResolvedImage | None:
        """The chosen image's pyramid, None when there is none.

        Parameters
        ----------
        num_axes
            2 for the plane that is shown, 3 for the whole volume.
        """
        choice = self.choice
        if choice is None:
            return None
        return resolve_image(choice, backend, self._viewer.dims.point, num_axes)

    def _on_index(self, index: int) -> None:
        self.changed.emit()


class LayerPicker(QWidget):  # type: ignore[misc]
    """A list of the layers of one kind in the viewer, without results, that follows them."""

    changed = Signal()
    kind = "Labels"
    nothing: str | None = None
    """What stands first in the list for no layer; None where one must be chosen."""

    def __init__(self, dock: DockWidget, tooltip: str) -> None:
        super().__init__()
        self._viewer, self._dock = dock.viewer, dock
        self._named: set[Any] = set()
        self._layers: list[Any] = []
        self._combo = QComboBox()
        self._combo.setToolTip(tooltip)
        self._combo.setMinimumContentsLength(12)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._combo, 1)
        self._combo.currentIndexChanged.connect(self._on_index)
        events = dock.viewer.layers.events
        for emitter in (events.inserted, events.removed, events.reordered):
            dock.listen(emitter, self.refresh)
        self.refresh()

    @property
    def layer(self) -> Any:
        """The chosen layer, None when there is none."""
        index = self._combo.currentIndex()
        return self._layers[index] if 0 <= index < len(self._layers) else None

    def refresh(self, event: Any = None) -> None:
        """Read the viewer's layers again; the chosen one stays chosen while it exists."""
        import napari.layers

        self._dock.listen_to_names(self._named, self.refresh)
        kind = getattr(napari.layers, self.kind)
        before = None if self.layer is None else self.layer.unique_id
        found = [layer for layer in self._viewer.layers
                 if isinstance(layer, kind) and RESULT_KEY not in layer.metadata]
        self._layers = found if self.nothing is None else [None, *found]
        ids = [None if layer is None else layer.unique_id for layer in self._layers]
        self._combo.blockSignals(True)
        self._combo.clear()
        self._combo.addItems(
            [self.nothing if layer is None else layer.name for layer in self._layers]
        )
        last = len(ids) - 1 if self.nothing is None else 0
        self._combo.setCurrentIndex(ids.index(before) if before in ids else last)
        self._combo.blockSignals(False)
        self._combo.setEnabled(bool(ids))
        self.changed.emit()

    def _on_index(self, index: int) -> None:
        self.changed.emit()


class LabelsPicker(LayerPicker):
    """A list of the labels layers."""

    def prefer(self, is_wanted: Callable[[Any], bool]) -> None:
        """Choose the newest layer that is wanted, unless the chosen one is."""
        wanted = [index for index, layer in enumerate(self._layers) if is_wanted(layer)]
        if wanted and self._combo.currentIndex() not in wanted:
            self._combo.setCurrentIndex(wanted[-1])


class RegionPicker(LayerPicker):
    """A list of the Shapes layers, of which a rectangle limits what is done."""

    kind = "Shapes"
    nothing = "whole image"

    def box(
        self, transform: ViewerTransform, viewer_point: Sequence[float] = ()
    ) -> FloatArray | None:
        """World px box (2, A) around the chosen layer's shapes: the selected, else all.

        Parameters
        ----------
        viewer_point
            Where the sliders stand: the plane of shapes that have none of their own.

        Raises
        ------
        InputError
            If the layer has no shapes.
        """
        layer = self.layer
        if layer is None:
            return None
        chosen = sorted(layer.selected_data) or range(len(layer.data))
        points = [transform.to_world(viewer_place(layer, corner, viewer_point))
                  for index in chosen for corner in layer.data[index]]
        if not points:
            raise InputError(
                f"layer {layer.name!r} has no shapes. Draw a rectangle, or choose 'whole image'."
            )
        return np.stack([np.min(points, axis=0), np.max(points, axis=0)])


def _same(choice: ImageChoice, among: list[ImageChoice]) -> int | None:
    """Where the choice of the same layers is, in whatever order they are now."""
    wanted = sorted(ids_of(choice))
    for index, other in enumerate(among):
        if sorted(ids_of(other)) == wanted:
            return index
    return None


def ids_of(choice: ImageChoice) -> list[Any]:
    """What tells the layers of a choice, in their order, from others."""
    return [layer.unique_id for layer in choice.layers]


def row(*parts: QWidget | QLayout | str) -> QHBoxLayout:
    """Widgets beside each other; text becomes a label."""
    layout = QHBoxLayout()
    layout.setContentsMargins(0, 0, 0, 0)
    for part in parts:
        if isinstance(part, QLayout):
            layout.addLayout(part)
        else:
            layout.addWidget(QLabel(part) if isinstance(part, str) else part)
    return layout


def wrapped_label(text: str = "") -> QLabel:
    """A label that breaks its lines instead of widening the dock."""
    label = QLabel(text)
    label.setWordWrap(True)
    label.setMinimumWidth(0)
    return label
