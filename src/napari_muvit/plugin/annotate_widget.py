"""MuViT: Annotate. Paint anywhere on the image; everything is saved as it is painted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtCore import QSize, Qt, QTimer
from qtpy.QtGui import QIcon, QImage, QPixmap
from qtpy.QtWidgets import (
    QComboBox,
    QFileDialog,
    QFormLayout,
    QListWidget,
    QListWidgetItem,
    QMenu,
    QPushButton,
    QToolButton,
)

from napari_muvit.errors import InputError, MuvitError
from napari_muvit.plugin import annotate
from napari_muvit.plugin.annotate_import import LayerImport
from napari_muvit.plugin.annotate_session import AnnotationSession, OpenWindow, find_session
from napari_muvit.plugin.background import Job, LatestTask
from napari_muvit.plugin.class_list import ClassList
from napari_muvit.plugin.crops import render_crop
from napari_muvit.plugin.dock import DockWidget, ImagePicker, row, wrapped_label
from napari_muvit.plugin.folder_picker import FolderPicker
from napari_muvit.plugin.layers import ResolvedImage
from napari_muvit.plugin.notices import notifies, sentence, show_failure, show_hint

SAVE_MS = 500
THUMBNAIL_SIDE = 72
LEVELS = (1, 2, 4, 8, 16, 32, 64)
GEOJSON = "GeoJSON (*.geojson *.json *.geojson.gz)"
CLASS_FILES = "Classes (*.csv *.yaml *.yml)"


class AnnotateWidget(DockWidget):
    """Classes, windows to paint in, and ways in and out of the annotation store."""

    def __init__(self, napari_viewer: Any, backend: Any = None) -> None:
        super().__init__(napari_viewer, backend)
        self.image: ResolvedImage | None = None
        self.session: AnnotationSession | None = None
        self.job: Job | None = None
        self._seen = -1
        self._counter = LatestTask(_count)
        self._painter = LatestTask(_draw_thumbnails)
        self._build()
        self._counter.finished.connect(self._on_counted)
        self._painter.finished.connect(self._on_thumbnails)
        for task in (self._counter, self._painter):
            task.failed.connect(show_failure)
            self.destroyed.connect(task.stop)
        self._timer = QTimer(self)
        self._timer.timeout.connect(self._on_timer)
        self._timer.start(SAVE_MS)
        self.listen(self.viewer.layers.events.removed, self._on_removed)
        self._on_image()

    def _build(self) -> None:
        self.picker = ImagePicker(self, "Image to annotate.")
        self.picker.changed.connect(self._on_image)
        self.folder = FolderPicker(
            "Folder for the annotations of this image. Choose one for images in memory, on the "
            "web or on a read-only disk.", "beside the image",
        )
        self.folder.changed.connect(self._on_image)
        form = QFormLayout()
        form.addRow("Image", self.picker)
        form.addRow("Saved in", self.folder)
        self.body.addLayout(form)
        self.classes = ClassList()
        self.classes.edited.connect(self._on_classes_edited)
        self.classes.chosen.connect(self._on_class_chosen)
        self.body.addWidget(self.classes)
        self.balance = wrapped_label()
        self.body.addWidget(self.balance)
        self._build_windows()
        self._build_menus()
        self.note = wrapped_label()
        self.body.addWidget(self.note)
        self.body.addStretch(1)

    def _build_windows(self) -> None:
        self.here = QPushButton("Annotate here")
        self.here.setToolTip("Open a window to paint in over what the canvas shows.")
        self.here.clicked.connect(self._on_here)
        self.level = QComboBox()
        self.level.addItem("fitting level")
        self.level.addItems([f"level {level}" for level in LEVELS])
        self.level.setToolTip(
            "Size of a painted pixel: 1 is full resolution, 8 paints blocks of 8 x 8 pixels. The "
            "fitting level is as fine as the canvas shows."
        )
        self.undo = QPushButton("Undo")
        self.undo.setToolTip("Take the last stroke of the window back (Ctrl+Z in the layer).")
        self.undo.clicked.connect(self._on_undo)
        self.redo = QPushButton("Redo")
        self.redo.setToolTip("Bring an undone stroke back (Ctrl+Shift+Z in the layer).")
        self.redo.clicked.connect(self._on_redo)
        self.body.addLayout(row(self.here, self.level))
        self.body.addLayout(row(self.undo, self.redo))
        self.list = QListWidget()
        self.list.setIconSize(QSize(THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        self.list.setMinimumHeight(2 * THUMBNAIL_SIDE + 20)
        self.list.setToolTip("Windows on this image; double-click to go there.")
        self.list.itemDoubleClicked.connect(self._on_jump)
        self.body.addWidget(self.list)
        self.jump = QPushButton("Go there")
        self.jump.setToolTip("Open the chosen window and move the view to it.")
        self.jump.clicked.connect(self._on_jump)
        self.forget = QPushButton("Close window")
        self.forget.setToolTip("Take the chosen window off the list; what is painted stays.")
        self.forget.clicked.connect(self._on_forget)
        self.body.addLayout(row(self.jump, self.forget))

    def _build_menus(self) -> None:
        self.imports = _menu_button("Import", "Paint labels, shapes or a file into the store.")
        self.exports = _menu_button("Export", "Write annotations or classes to a file.")
        add = self.imports.menu().addAction
        add("Chosen labels layer, values as classes", self.import_labels)
        add("Chosen labels layer, objects as the chosen class", self.import_objects)
        add("Chosen shapes layer, as the chosen class", self.import_shapes)
        add("GeoJSON file (QuPath) …", self.import_geojson)
        add("Class table (CSV, YAML) …", self.import_classes)
        self.exports.menu().addAction("GeoJSON for QuPath …", self.export_geojson)
        self.exports.menu().addAction("Class table (CSV, YAML) …", self.export_classes)
        self.body.addLayout(row(self.imports, self.exports))

    # -- image and store -----------------------------------------------------------------

    @notifies
    def _on_image(self, text: str = "") -> None:
        self._leave()
        self.image = self.picker.resolve(self.backend)
        if self.image is not None and (self.image.path or self.folder.path):
            path = annotate.store_path(self.backend, self.image, self.folder.path)
            self.session = find_session(self.viewer.layers, path)
            if self.session is None and path.exists():
                self._open(self.image, path)
        self._show_session()

    def _open(self, image: ResolvedImage, path: Path) -> None:
        try:
            store = self.backend.open_annotations(
                image.pyramid, path=path, classes=self.classes.table
            )
        except MuvitError as error:
            self.note.setText(sentence(error))
            raise
        self.session = AnnotationSession(store, image)

    def _require_session(self) -> AnnotationSession:
        """The session of the chosen image; begins its store if there is none."""
        if self.session is None:
            if self.image is None:
                raise InputError("no image is chosen. Open an image and choose it above.")
            path = annotate.store_path(self.backend, self.image, self.folder.path)
            self._open(self.image, path)
            self._show_session()
        session = self.session
        if session is None:
            raise InputError("the annotations could not be opened. Choose another folder.")
        return session

    def _leave(self) -> None:
        session, self.session = self.session, None
        if session is not None:
            session.save()
            session.close()

    def _show_session(self) -> None:
        session = self.session
        table = self.backend.default_class_table() if session is None else session.store.classes
        if session is not None or self.classes.table is None:
            self.classes.show_table(table)
        self._seen = -1
        self.balance.setText("")
        self.note.setText("" if session is None else f"Saved in {session.store.path}.")
        self._show_windows()
        self._show_state()

    def _show_state(self) -> None:
        is_free = self.job is None and self.image is not None
        has_session = self.session is not None
        for widget in (self.here, self.imports):
            widget.setEnabled(is_free)
        for widget in (self.exports, self.list, self.jump, self.forget, self.undo, self.redo):
            widget.setEnabled(is_free and has_session)

    # -- saving --------------------------------------------------------------------------

    def _on_timer(self) -> None:
        session = self.session
        if session is None:
            return
        session.save()
        error = session.store.error
        if error is not None:
            self.note.setText(
                f"Not saved yet: {sentence(error)} What you paint is kept and tried again."
            )
        elif self.note.text().startswith("Not saved"):
            self.note.setText("Saved.")
        if session.num_changed != self._seen and session.store.is_saved:
            self._seen = session.num_changed
            self._counter.request(session.store)
            self._request_thumbnails()

    def _on_removed(self, event: Any = None) -> None:
        if self.session is not None:
            self.session.drop_removed(self.viewer.layers)

    # -- classes -------------------------------------------------------------------------

    @notifies
    def _on_classes_edited(self, table: Any) -> None:
        if self.session is not None:
            self.session.set_classes(table)
            self._seen = -1

    def _on_class_chosen(self, value: int) -> None:
        opened = None if self.session is None else self.session.active(self.viewer)
        if opened is not None:
            opened.layer.selected_label = value

    @notifies
    def _on_counted(self, result: tuple[Any, dict[int, int]]) -> None:
        store, counts = result
        if self.session is not None and self.session.store is store:
            self.classes.show_counts(counts)
            self.balance.setText(annotate.balance_text(self.classes.table, counts))

    # -- windows -------------------------------------------------------------------------

    @notifies
    def _on_here(self, checked: bool = False) -> None:
        choice = self.picker.choice
        session = self._require_session()
        index = self.level.currentIndex()
        layer = None if choice is None else choice.layers[0]
        opened = session.open_at_view(self.viewer, layer, LEVELS[index - 1] if index else None)
        if opened is None:
            raise InputError("the view shows no part of the image. Move the image into the view.")
        self._enter(opened)
        self._show_windows()

    def _enter(self, opened: OpenWindow) -> None:
        """Choose the window's layer, ready to paint the chosen class."""
        self.viewer.layers.selection.active = opened.layer
        opened.layer.selected_label = self.classes.value
        opened.layer.mode = "paint"

    @notifies
    def _on_jump(self, item: Any = None) -> None:
        session, place = self._require_session(), self._place()
        opened = session.reopen(self.viewer, place)
        session.jump(self.viewer, place, tuple(self.viewer.canvas.size))
        self._enter(opened)

    @notifies
    def _on_forget(self, checked: bool = False) -> None:
        self._require_session().forget(self.viewer, self._place())
        self._show_windows()

    @notifies
    def _on_undo(self, checked: bool = False) -> None:
        self._step(OpenWindow.undo, "There is nothing to undo in this window.")

    @notifies
    def _on_redo(self, checked: bool = False) -> None:
        self._step(OpenWindow.redo, "There is nothing to redo in this window.")

    def _step(self, step: Callable[[OpenWindow], bool], otherwise: str) -> None:
        opened = self._require_session().active(self.viewer)
        if opened is None or not step(opened):
            show_hint(otherwise)

    def _place(self) -> Any:
        index = self.list.currentRow()
        places = self._require_session().store.window_places
        if not 0 <= index < len(places):
            raise InputError("no window is chosen. Choose one in the list.")
        return places[index]

    def _show_windows(self) -> None:
        places = () if self.session is None else self.session.store.window_places
        self.list.clear()
        for place in places:
            self.list.addItem(QListWidgetItem(annotate.window_text(place)))
        self.list.setCurrentRow(len(places) - 1)
        self._request_thumbnails()

    def _request_thumbnails(self) -> None:
        if self.session is not None:
            store = self.session.store
            self._painter.request(self.session.image, store, store.window_places)

    @notifies
    def _on_thumbnails(self, result: tuple[Any, list[Any]]) -> None:
        store, pictures = result
        if self.session is None or self.session.store is not store:
            return
        for index, picture in enumerate(pictures[: self.list.count()]):
            self.list.item(index).setIcon(QIcon(_pixmap(picture)))

    # -- in and out ----------------------------------------------------------------------

    def _layer_import(self) -> LayerImport:
        session = self._require_session()
        layer = self.viewer.layers.selection.active
        return LayerImport(self.backend, session, layer, self.viewer.dims.point)

    @notifies
    def import_labels(self) -> None:
        """Paint the values of the chosen labels layer."""
        importer = self._layer_import()
        table = importer.table_for_labels()
        self._import_with(table, importer.paint_labels)

    @notifies
    def import_objects(self) -> None:
        """Paint the objects of the chosen labels layer as the chosen class."""
        importer, value = self._layer_import(), self.classes.value
        importer.check_labels()
        self._import_with(None, lambda: importer.paint_objects(value))

    @notifies
    def import_shapes(self) -> None:
        """Paint the chosen shapes layer as the chosen class."""
        polygons = self._layer_import().polygons(self.classes.value)
        self._paint_polygons(polygons)

    @notifies
    def import_geojson(self, path: str = "") -> None:
        """Paint the areas of a GeoJSON file; its new classes are added."""
        session = self._require_session()
        path = path or QFileDialog.getOpenFileName(self, "Import GeoJSON", "", GEOJSON)[0]
        if path:
            polygons, table = self.backend.read_geojson(path, session.store.classes)
            if table != session.store.classes:
                self._adopt(table)
            self._paint_polygons(polygons)

    @notifies
    def import_classes(self, path: str = "") -> None:
        """Take the class table of a file."""
        path = path or QFileDialog.getOpenFileName(self, "Import classes", "", CLASS_FILES)[0]
        if path:
            self._adopt(self.backend.read_classes(path))

    @notifies
    def export_geojson(self, path: str = "") -> None:
        """Write all annotations for QuPath."""
        store, backend = self._require_session().store, self.backend
        path = path or QFileDialog.getSaveFileName(self, "Export GeoJSON", "", GEOJSON)[0]
        if path:
            self._start(lambda: backend.export_geojson(store, path), f"Written to {path}.")

    @notifies
    def export_classes(self, path: str = "") -> None:
        """Write the class table."""
        path = path or QFileDialog.getSaveFileName(self, "Export classes", "", CLASS_FILES)[0]
        if path:
            self.backend.write_classes(path, self.classes.table)

    def _adopt(self, table: Any) -> None:
        if self.session is not None:
            self.session.set_classes(table)
            table = self.session.store.classes
        self.classes.show_table(table)
        self._seen = -1

    def _paint_polygons(self, polygons: list[Any]) -> None:
        store, backend = self._require_session().store, self.backend
        self._start(lambda: backend.paint_polygons(store, polygons),
                    f"{len(polygons)} areas are painted.")

    def _import_with(self, table: Any, work: Callable[[], Any]) -> None:
        if table is not None:
            self._adopt(table)
        self._start(work, "The labels are painted.")

    def _start(self, work: Callable[[], Any], done: str) -> None:
        """Run `work` in a thread with the buttons locked, then say `done`."""
        def generate() -> Iterator[Any]:
            yield work()

        self.job = Job(generate)
        self.job.ended.connect(lambda error: self._on_ended(error, done))
        self.note.setText("Working …")
        self._show_state()
        self.job.start()

    @notifies
    def _on_ended(self, error: BaseException | None, done: str) -> None:
        self.job = None
        self._show_state()
        self.note.setText(done if error is None else "")
        if self.session is not None:
            self.session.refresh()
        if error is not None:
            show_failure(error)


def _menu_button(text: str, tooltip: str) -> QToolButton:
    button = QToolButton()
    button.setText(text)
    button.setToolTip(tooltip)
    button.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
    button.setMenu(QMenu(button))
    return button


def _count(store: Any) -> tuple[Any, dict[int, int]]:
    """The store and its labelled pixels by class (runs in a thread)."""
    return store, store.class_counts()


def _draw_thumbnails(
    image: ResolvedImage, store: Any, places: tuple[Any, ...]
) -> tuple[Any, list[Any]]:
    """A picture with labels of each window (runs in a thread)."""
    return store, [_draw_thumbnail(image, store, place) for place in places]


def _draw_thumbnail(image: ResolvedImage, store: Any, place: Any) -> Any:
    sides = np.asarray(place.size[-2:])
    ratio = max(1, int(np.ceil(sides.max() / THUMBNAIL_SIDE)))
    level = place.level * ratio
    start = [n // ratio for n in place.start[-2:]]
    size = [max(1, n // ratio) for n in sides.tolist()]
    corner = np.asarray(start) * level - 0.5
    crop = image.pyramid.crop(corner=corner, levels=(level,), size=size)
    picture = render_crop(crop.image[0], crop.valid[0], image.display)
    return annotate.overlay(picture, store.read(level, start, size), store.classes)


def _pixmap(picture: Any) -> QPixmap:
    """A (H, W, 3) uint8 picture as an icon."""
    height, width = picture.shape[:2]
    data = np.ascontiguousarray(picture)
    image = QImage(data.data, width, height, 3 * width, QImage.Format.Format_RGB888)
    return QPixmap.fromImage(image.copy()).scaled(
        THUMBNAIL_SIDE, THUMBNAIL_SIDE, Qt.AspectRatioMode.KeepAspectRatio,
        Qt.TransformationMode.SmoothTransformation,
    )
