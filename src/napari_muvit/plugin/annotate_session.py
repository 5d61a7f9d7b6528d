"""Open annotation windows of one image: layers painted in, and the store they are saved to.

A session lives as long as one of its layers is in the viewer, whatever happens to the dock
widget: every stroke is written when the mouse is released. The store gives its lock back with
the last window, or when the last one that holds it (the widget, an import) lets go.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np

from napari_muvit.plugin.annotate import (
    ImportHistory,
    centre_of,
    fitting_level,
    label_colors,
    shown_box,
    window_size,
)
from napari_muvit.plugin.annotate_times import TimeWindows
from napari_muvit.plugin.camera import center_view
from napari_muvit.plugin.image_choices import IMAGE_KEY, SOURCE_KEY
from napari_muvit.plugin.label_layers import class_features
from napari_muvit.plugin.layers import ResolvedImage
from napari_muvit.plugin.notices import notifies

METADATA_KEY = "muvit_annotations"


class OpenWindow:
    """One annotation window and the layer that shows it."""

    def __init__(self, session: AnnotationSession, window: Any, layer: Any) -> None:
        self.session, self.window, self.layer = session, window, layer
        self.is_painting = False
        # In a tuple, or else napari would hand it back behind its proxy for plugins.
        layer.metadata = {**layer.metadata, METADATA_KEY: (self,)}
        # napari leaves out pixels that show the label already, but below them may be others.
        self._set_items = layer.data_setitem
        layer.data_setitem = self._on_set
        # The paint event comes before the pixels change; this one after.
        layer.events.labels_update.connect(self._on_update)
        layer.mouse_drag_callbacks.append(self._on_drag)
        # napari's own undo restores what this window saw; ours also what lay below it.
        layer.bind_key("Control-Z", self._on_undo_key, overwrite=True)
        layer.bind_key("Control-Shift-Z", self._on_redo_key, overwrite=True)

    @property
    def place(self) -> Any:
        return self.window.place

    def _on_set(self, indices: Any, value: Any, refresh: bool = True) -> None:
        self.window.touch(indices)
        self._set_items(indices, value, refresh)

    @notifies
    def _on_update(self, event: Any = None) -> None:
        if not self.is_painting:
            self.save()

    def _on_drag(self, layer: Any, event: Any) -> Iterator[None]:
        self.is_painting = True
        yield
        while event.type == "mouse_move":
            yield
        self.is_painting = False
        self._on_update()

    def _on_undo_key(self, layer: Any) -> None:
        self.undo()

    def _on_redo_key(self, layer: Any) -> None:
        self.redo()

    def save(self) -> int:
        """Hand what was painted to the store; returns how many pixels."""
        count: int = self.window.commit(is_stroke_done=not self.is_painting)
        self.session.num_changed += count
        if count:
            self.session.imports.forget()
        return count

    @notifies
    def undo(self) -> bool:
        """Take the last stroke of this window back, or the import that came after it."""
        self.save()
        return self.session.step_import(True) or self._step(self.window.undo)

    @notifies
    def redo(self) -> bool:
        """Bring the last undone stroke or import back."""
        return self.session.step_import(False) or self._step(self.window.redo)

    def _step(self, step: Any) -> bool:
        has_changed: bool = step()
        if has_changed:
            self.layer.refresh()
            self.session.num_changed += 1
        return has_changed

    def refresh(self) -> None:
        """Show what the store holds."""
        self.window.refresh()
        self.layer.refresh()


class AnnotationSession:
    """The annotation store of one image and its open windows.

    Parameters
    ----------
    layer
        A layer of the image, which tells the time point that the sliders stand at.

    Attributes
    ----------
    num_changed
        Grows with every change, so that displays know when to look again.
    """

    def __init__(self, store: Any, image: ResolvedImage, layer: Any) -> None:
        self.store, self.image = store, image
        self._times = TimeWindows(layer, image.plane.get("t"))
        self.windows: dict[str, OpenWindow] = {}
        self.num_changed = 0
        self.overview: Any = None
        self.imports = ImportHistory(store)
        self._holders = 0
        self._counting = threading.Lock()

    def open_at_view(self, viewer: Any, layer: Any, level: int | None = None) -> OpenWindow | None:
        """A window over what the canvas shows of the image `layer`; None if it shows nothing."""
        box = shown_box(layer, self.image.transform, viewer.dims.point)
        if box is None:
            return None
        if level is None:
            level = fitting_level(
                1 / float(viewer.scene.camera.zoom),
                float(self.image.transform.viewer_per_px[-2:].mean()),
                float((box[1] - box[0])[-2:].max()),
            )
        window = self.store.window(corner=box[0], level=level, size=window_size(box, level))
        return self.show(viewer, window)

    def reopen(self, viewer: Any, place: Any) -> OpenWindow:
        """The open window at a remembered place, opened if it is not."""
        known = self.windows.get(place.name)
        if known is not None and known.layer in viewer.layers:
            return known
        return self.show(viewer, self.store.reopen(place))

    def show(self, viewer: Any, window: Any) -> OpenWindow:
        """Add the layer of a window."""
        place = self.image.transform.layer_kwargs()
        layer = viewer.add_labels(
            window.labels, name=f"{self.image.name}: {window.place.name}", multiscale=False,
            opacity=0.6, **{**place, "scale": window.factor, "translate": window.offset},
            metadata=self._origin(), **self._look(),
        )
        if layer.data is not window.labels:
            window.labels = layer.data
        opened = OpenWindow(self, window, layer)
        self.windows[window.place.name] = opened
        # napari keeps no more than a weak tie to this method; twice is once.
        viewer.layers.events.removed.connect(self._on_removed)
        viewer.dims.events.point.connect(self._on_time)
        return opened

    @notifies
    def _on_time(self, event: Any) -> None:
        """Another plane or time point may be shown."""
        self._times.follow(event.source, [opened.layer for opened in self.windows.values()])

    @notifies
    def _on_removed(self, event: Any) -> None:
        """A layer is gone; with the last window also the store, if nobody else needs it."""
        self.drop_removed(event.source)
        self.close()

    def save(self) -> None:
        """Hand what was painted in any window to the store."""
        for opened in self.windows.values():
            opened.save()

    def drop_removed(self, layers: Iterable[Any]) -> None:
        """Save and forget the windows whose layers are no longer among `layers`."""
        present = {layer.unique_id for layer in layers}
        for name, opened in list(self.windows.items()):
            if opened.layer.unique_id not in present:
                opened.is_painting = False
                opened.save()
                del self.windows[name]
        if self.overview is not None and self.overview.unique_id not in present:
            self.overview = None

    def forget(self, viewer: Any, place: Any) -> None:
        """Close a window and take it off the list; what was painted stays."""
        opened = self.windows.pop(place.name, None)
        if opened is not None:
            opened.save()
            if opened.layer in viewer.layers:
                viewer.layers.remove(opened.layer)
        kept = [other for other in self.store.window_places if other.name != place.name]
        self.store.set_window_places(kept)

    def set_classes(self, table: Any) -> None:
        """Store another class table and show it in all windows."""
        self.store.set_classes(table)
        look = self._look()
        layers = [opened.layer for opened in self.windows.values()]
        for layer in [*layers, *([] if self.overview is None else [self.overview])]:
            layer.colormap, layer.features = look["colormap"], look["features"]

    def show_overview(self, viewer: Any) -> Any:
        """A layer of all annotations of the image, not to be painted in."""
        arrays = list(self.store.arrays.arrays)
        # napari keeps the coarsest array of a pyramid; a plain one can be filled again in place.
        arrays[-1] = np.asarray(arrays[-1][...])
        several = len(arrays) > 1
        active = viewer.layers.selection.active
        layer = viewer.add_labels(
            arrays if several else arrays[0], name=f"{self.image.name}: all annotations",
            multiscale=several, opacity=0.4, **self.image.transform.layer_kwargs(),
            metadata=self._origin(), **self._look(),
        )
        layer.editable = False
        if active is not None:
            viewer.layers.selection.active = active
        self.overview = layer
        return layer

    def refresh_overview(self) -> None:
        """Show what the store holds now in the layer of all annotations."""
        if self.overview is not None:
            data = self.overview.data
            coarsest = data[-1] if self.overview.multiscale else data
            coarsest[...] = self.store.arrays.arrays[-1][...]
            self.overview.refresh()

    def _origin(self) -> dict[str, Any]:
        """Where what a layer shows lies, and which image it belongs to."""
        whose = (self.image.key, self.image.plane.get("t"))
        return {SOURCE_KEY: str(self.store.path), IMAGE_KEY: whose}

    def _look(self) -> dict[str, Any]:
        """Colours and names of the classes, as labels layers take them."""
        from napari.utils import DirectLabelColormap

        table = self.store.classes
        return {
            "colormap": DirectLabelColormap(color_dict=label_colors(table)),
            "features": class_features(table),
        }

    def refresh(self) -> None:
        """Show what the store holds in all windows, as after an import."""
        for opened in self.windows.values():
            opened.refresh()
        self.num_changed += 1

    def step_import(self, is_back: bool) -> bool:
        """Take the last import back or bring it again, if no stroke came since; whether so."""
        has_changed = self.imports.undo() if is_back else self.imports.redo()
        if has_changed:
            self.refresh()
        return has_changed

    def active(self, viewer: Any) -> OpenWindow | None:
        """The window whose layer is chosen in the viewer, else the newest."""
        chosen = viewer.layers.selection.active
        for opened in self.windows.values():
            if chosen is not None and opened.layer.unique_id == chosen.unique_id:
                return opened
        return next(reversed(list(self.windows.values())), None)

    @property
    def is_painting(self) -> bool:
        """Whether the mouse is down in one of the windows."""
        return any(opened.is_painting for opened in self.windows.values())

    def center_on(self, viewer: Any, place: Any) -> None:
        """Move the middle of the view, and the sliders, to the world position `place` (A,)."""
        center_view(viewer, self.image.transform, place)

    def jump(self, viewer: Any, place: Any, canvas_size: tuple[int, int]) -> None:
        """Move the camera so that a window fills the canvas of `canvas_size` (h, w) px."""
        self.center_on(viewer, centre_of(place))
        per_px = self.image.transform.viewer_per_px[-2:]
        sides = np.asarray(place.size[-2:]) * place.level * per_px
        viewer.scene.camera.zoom = float(np.min(np.asarray(canvas_size) / sides))

    def hold(self) -> None:
        """Keep the store open also while no window is, until `release`."""
        with self._counting:
            self._holders += 1

    def release(self) -> None:
        """Need the store no longer (in any thread)."""
        with self._counting:
            self._holders -= 1
        self.close()

    def close(self) -> None:
        """Write everything and give the store's lock back, unless somebody needs it."""
        if not self.windows and not self._holders:
            self.store.close()


class HeldSession:
    """The session that a widget holds; it survives the widget, to let go of it then."""

    def __init__(self) -> None:
        self.session: AnnotationSession | None = None

    def take(self, session: AnnotationSession) -> None:
        """Hold `session` from now on."""
        session.hold()
        self.session = session

    @notifies
    def let_go(self, widget: Any = None) -> None:
        """Hold nothing any more."""
        session, self.session = self.session, None
        if session is not None:
            session.release()


class AnnotationDock(Protocol):
    """What the parts of the Annotate widget need of the whole."""

    viewer: Any
    classes: Any
    picker: Any
    session: AnnotationSession | None

    @property
    def backend(self) -> Any: ...

    def require_session(self) -> AnnotationSession: ...

    def adopt_classes(self, table: Any) -> None: ...


def find_session(layers: Iterable[Any], path: Any) -> AnnotationSession | None:
    """The session of the store at `path` that has a window among `layers`."""
    for layer in layers:
        for opened in layer.metadata.get(METADATA_KEY, ()):
            session: AnnotationSession = opened.session
            # A duplicated layer carries the metadata along but is no window.
            is_window = opened.layer.unique_id == layer.unique_id
            if is_window and session.store.path == path:
                return session
    return None
