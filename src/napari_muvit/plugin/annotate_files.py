"""Ways into the annotation store and out of it: layers, GeoJSON, class tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QFileDialog, QHBoxLayout, QMenu, QPushButton, QWidget

from napari_muvit.errors import MuvitError
from napari_muvit.plugin.annotate_import import LayerImport
from napari_muvit.plugin.annotate_session import AnnotationDock, AnnotationSession
from napari_muvit.plugin.background import Job
from napari_muvit.plugin.notices import notifies, show_failure

GEOJSON = "GeoJSON (*.geojson *.json *.geojson.gz)"
CLASS_FILES = "Classes (*.csv *.yaml *.yml)"


class AnnotationFiles(QWidget):  # type: ignore[misc]
    """Menus to import and export; long ones run in a thread.

    Signals
    -------
    started, ended
        What to tell the user meanwhile and afterwards.
    """

    started = Signal(str)
    ended = Signal(str)

    def __init__(self, dock: AnnotationDock) -> None:
        super().__init__()
        self._dock = dock
        self.job: Job | None = None
        self._done = ""
        self._session: AnnotationSession | None = None
        self.imports = _menu_button("Import", "Paint labels, shapes or a file into the store.")
        self.exports = _menu_button("Export", "Write annotations or classes to a file.")
        add = self.imports.menu().addAction
        add("Chosen labels layer, values as classes", self.import_labels)
        add("Chosen labels layer, objects as the chosen class", self.import_objects)
        add("Chosen shapes layer, as the chosen class", self.import_shapes)
        add("GeoJSON file (QuPath) …", self.import_geojson)
        add("Class table (CSV, YAML) …", self.import_classes)
        add = self.exports.menu().addAction
        add("GeoJSON for QuPath …", self.export_geojson)
        add("Class table (CSV, YAML) …", self.export_classes)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.imports)
        layout.addWidget(self.exports)

    @property
    def is_working(self) -> bool:
        return self.job is not None

    def _layer_import(self) -> LayerImport:
        dock = self._dock
        session = dock.require_session()
        layer = dock.viewer.layers.selection.active
        return LayerImport(dock.backend, session, layer, dock.viewer.dims.point)

    @notifies
    def import_labels(self, checked: bool = False) -> None:
        """Paint the values of the chosen labels layer."""
        importer = self._layer_import()
        importer.check_labels()
        self._start(lambda store: importer.steps_for_labels())

    @notifies
    def import_objects(self, checked: bool = False) -> None:
        """Paint the objects of the chosen labels layer as the chosen class."""
        importer, value = self._layer_import(), self._dock.classes.value
        importer.check_labels()

        def paint(store: Any) -> Iterator[Any]:
            yield importer.paint_objects(value)
            yield "The objects are painted."

        self._start(paint)

    @notifies
    def import_shapes(self, checked: bool = False) -> None:
        """Paint the chosen shapes layer as the chosen class."""
        backend = self._dock.backend
        polygons = self._layer_import().polygons(self._dock.classes.value)
        self._start(lambda store: paint_areas(backend, store, polygons))

    @notifies
    def import_geojson(self, checked: bool = False, path: str = "") -> None:
        """Paint the areas of a GeoJSON file; its new classes are added."""
        path = path or QFileDialog.getOpenFileName(self, "Import GeoJSON", "", GEOJSON)[0]
        if not path:
            return
        backend = self._dock.backend

        def paint(store: Any) -> Iterator[Any]:
            polygons, table = backend.read_geojson(path, store.classes)
            if table != store.classes:
                store.set_classes(table)
                yield table
            yield from paint_areas(backend, store, polygons)

        self._start(paint)

    @notifies
    def import_classes(self, checked: bool = False, path: str = "") -> None:
        """Take the class table of a file."""
        path = path or QFileDialog.getOpenFileName(self, "Import classes", "", CLASS_FILES)[0]
        if path:
            self._dock.adopt_classes(self._dock.backend.read_classes(path))

    @notifies
    def export_geojson(self, checked: bool = False, path: str = "") -> None:
        """Write all annotations for QuPath."""
        self._dock.require_session()
        backend = self._dock.backend
        path = path or QFileDialog.getSaveFileName(self, "Export GeoJSON", "", GEOJSON)[0]
        if not path:
            return

        def write(store: Any) -> Iterator[Any]:
            backend.export_geojson(store, path)
            yield f"Written to {path}."

        self._start(write)

    @notifies
    def export_classes(self, checked: bool = False, path: str = "") -> None:
        """Write the class table."""
        path = path or QFileDialog.getSaveFileName(self, "Export classes", "", CLASS_FILES)[0]
        if path:
            self._dock.backend.write_classes(path, self._dock.classes.table)

    def _start(self, work: Callable[[Any], Iterator[Any]]) -> None:
        """Run `work` on the store in a thread, with the buttons locked.

        It goes on to its end, and the store stays open for it, if another image is chosen or the
        viewer is closed meanwhile.

        Parameters
        ----------
        work
            Yields class tables that it gave the store, numbers of edits, and what to say at the
            end.
        """
        session = self._dock.require_session()
        session.hold()

        def generate() -> Iterator[Any]:
            try:
                yield from work(session.store)
            finally:
                session.release()

        self._done, self._session = "", session
        self.job = Job(generate)
        self.job.reported.connect(self._on_found)
        self.job.ended.connect(self._on_ended)
        self.job.start()
        self.started.emit("Working …")

    @notifies
    def _on_found(self, found: Any) -> None:
        if isinstance(found, str):
            self._done = found
        elif isinstance(found, int):
            if self._session is not None:
                self._session.imports.add(found)
        elif self._dock.session is self._session:
            self._dock.adopt_classes(found)

    @notifies
    def _on_ended(self, error: BaseException | None) -> None:
        self.job = None
        session, self._session = self._session, None
        self.ended.emit(self._done if error is None else "")
        try:
            if session is not None:
                session.refresh()
        except MuvitError as gone:  # the store was deleted meanwhile, which is the reason of all
            error = error or gone
        if error is not None:
            show_failure(error)


def paint_areas(backend: Any, store: Any, polygons: list[Any]) -> Iterator[Any]:
    """Paint polygons, then say how many; yields the edit's number, and that."""
    yield backend.paint_polygons(store, polygons)
    yield f"{sum(area.lies_on(store.shape) for area in polygons)} areas are painted."


def _menu_button(text: str, tooltip: str) -> QPushButton:
    button = QPushButton(text)
    button.setToolTip(tooltip)
    button.setMenu(QMenu(button))
    return button
