"""Ways into the annotation store and out of it: layers, GeoJSON, class tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QFileDialog, QHBoxLayout, QMenu, QPushButton, QWidget

from napari_muvit.errors import InputError
from napari_muvit.plugin.annotate_import import LayerImport
from napari_muvit.plugin.annotate_session import AnnotationDock
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
        self._done, self._found = "", None
        self._then: Callable[[Any], None] | None = None
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

        def paint(table: Any) -> None:
            self._dock.adopt_classes(table)
            self._start(importer.paint_labels, "The labels are painted.")

        self._start(importer.table_for_labels, then=paint)

    @notifies
    def import_objects(self, checked: bool = False) -> None:
        """Paint the objects of the chosen labels layer as the chosen class."""
        importer, value = self._layer_import(), self._dock.classes.value
        importer.check_labels()
        self._start(lambda: importer.paint_objects(value), "The objects are painted.")

    @notifies
    def import_shapes(self, checked: bool = False) -> None:
        """Paint the chosen shapes layer as the chosen class."""
        self._paint_polygons(self._layer_import().polygons(self._dock.classes.value))

    @notifies
    def import_geojson(self, checked: bool = False, path: str = "") -> None:
        """Paint the areas of a GeoJSON file; its new classes are added."""
        path = path or QFileDialog.getOpenFileName(self, "Import GeoJSON", "", GEOJSON)[0]
        if not path:
            return
        classes, backend = self._dock.require_session().store.classes, self._dock.backend

        def paint(found: Any) -> None:
            polygons, table = found
            if table != classes:
                self._dock.adopt_classes(table)
            self._paint_polygons(polygons)

        self._start(lambda: backend.read_geojson(path, classes), then=paint)

    @notifies
    def import_classes(self, checked: bool = False, path: str = "") -> None:
        """Take the class table of a file."""
        path = path or QFileDialog.getOpenFileName(self, "Import classes", "", CLASS_FILES)[0]
        if path:
            self._dock.adopt_classes(self._dock.backend.read_classes(path))

    @notifies
    def export_geojson(self, checked: bool = False, path: str = "") -> None:
        """Write all annotations for QuPath."""
        store, backend = self._dock.require_session().store, self._dock.backend
        path = path or QFileDialog.getSaveFileName(self, "Export GeoJSON", "", GEOJSON)[0]
        if path:
            self._start(lambda: backend.export_geojson(store, path), f"Written to {path}.")

    @notifies
    def export_classes(self, checked: bool = False, path: str = "") -> None:
        """Write the class table."""
        path = path or QFileDialog.getSaveFileName(self, "Export classes", "", CLASS_FILES)[0]
        if path:
            self._dock.backend.write_classes(path, self._dock.classes.table)

    def _paint_polygons(self, polygons: list[Any]) -> None:
        store, backend = self._dock.require_session().store, self._dock.backend
        self._start(lambda: backend.paint_polygons(store, polygons),
                    f"{len(polygons)} areas are painted.")

    def _start(
        self, work: Callable[[], Any], done: str = "", then: Callable[[Any], None] | None = None
    ) -> None:
        """Run `work` in a thread with the buttons locked, then say `done`.

        Parameters
        ----------
        then
            Called in the GUI thread with what `work` found, to go on from there.
        """
        def generate() -> Iterator[Any]:
            yield work()

        self._done, self._then, self._found = done, then, None
        self._store = self._dock.require_session().store
        self.job = Job(generate)
        self.job.reported.connect(self._on_found)
        self.job.ended.connect(self._on_ended)
        self.job.start()
        self.started.emit("Working …")

    def _on_found(self, found: Any) -> None:
        self._found = found

    @notifies
    def _on_ended(self, error: BaseException | None) -> None:
        self.job = None
        then, self._then = self._then, None
        if error is None and then is not None:
            error = self._go_on(then)
            if error is None:
                return
        session = self._dock.session
        if session is not None:
            session.refresh()
        self.ended.emit(self._done if error is None else "")
        if error is not None:
            show_failure(error)

    def _go_on(self, then: Callable[[Any], None]) -> Exception | None:
        """Go on with what was found; why that cannot be, if so."""
        try:
            if self._dock.require_session().store is not self._store:
                raise InputError("another image was chosen, so nothing is imported. Import again.")
            then(self._found)
        except Exception as error:  # noqa: BLE001 - whatever it is, the user is told
            return error
        return None


def _menu_button(text: str, tooltip: str) -> QPushButton:
    button = QPushButton(text)
    button.setToolTip(tooltip)
    button.setMenu(QMenu(button))
    return button
