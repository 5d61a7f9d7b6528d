"""MuViT: Annotate. Paint anywhere on the image; everything is saved as it is painted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtpy.QtCore import QSize, QTimer
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFormLayout,
    QListWidget,
    QListWidgetItem,
    QPushButton,
)

from napari_muvit.errors import InputError, MuvitError
from napari_muvit.plugin import annotate
from napari_muvit.plugin.annotate_files import AnnotationFiles
from napari_muvit.plugin.annotate_session import (
    AnnotationSession,
    HeldSession,
    OpenWindow,
    find_session,
)
from napari_muvit.plugin.annotate_thumbnails import THUMBNAIL_SIDE, Thumbnails, count_labels
from napari_muvit.plugin.annotate_times import time_shown
from napari_muvit.plugin.background import LatestTask
from napari_muvit.plugin.class_list import ClassList
from napari_muvit.plugin.crops_thumbnails import pixmap, plain_icon
from napari_muvit.plugin.dock import DockWidget, ImagePicker, row, wrapped_label
from napari_muvit.plugin.folder_picker import FolderPicker
from napari_muvit.plugin.image_choices import NUM_AXES
from napari_muvit.plugin.instant_panel import InstantPanel
from napari_muvit.plugin.layers import ResolvedImage
from napari_muvit.plugin.notices import log_surprise, notifies, sentence, show_hint
from napari_muvit.plugin.remembered import recall_own, remember

SAVE_MS = 500
LEVELS = (1, 2, 4, 8, 16, 32, 64)
OUTDATED = "Counts and pictures are not up to date"


class AnnotateWidget(DockWidget):
    """Classes, windows to paint in, and ways in and out of the annotation store."""

    def __init__(self, napari_viewer: Any, backend: Any = None) -> None:
        super().__init__(napari_viewer, backend)
        self.image: ResolvedImage | None = None
        self._held = HeldSession()
        self.destroyed.connect(self._held.let_go)
        self._seen = -1
        self._counter = LatestTask(count_labels)
        self._painter = LatestTask(Thumbnails().draw)
        self._build()
        self._counter.finished.connect(self._on_counted)
        self._painter.finished.connect(self._on_thumbnails)
        for task in (self._counter, self._painter):
            task.failed.connect(self._on_display_failed)
            self.destroyed.connect(task.stop)
        self._timer = QTimer(self)
        self._timer.timeout.connect(self._on_timer)
        self._timer.start(SAVE_MS)
        self.listen(self.viewer.layers.events.removed, self._on_removed)
        self.listen(self.viewer.dims.events.point, self._on_time)
        self._on_image()

    @property
    def session(self) -> AnnotationSession | None:
        """The annotations of the chosen image, None while there are none."""
        return self._held.session

    def _build(self) -> None:
        self.picker = ImagePicker(self, "Image to annotate.")
        self.picker.changed.connect(self._on_image)
        self.folder = FolderPicker(
            "Folder for the annotations of this image, remembered for it. Choose one for images "
            "on a read-only disk; those of images in memory or on the web lie in the cache folder "
            "of this plugin otherwise.", "beside the image",
        )
        self.folder.changed.connect(self._on_folder)
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
        self.overview = QCheckBox("Show all annotations")
        self.overview.setToolTip("A layer of all that is painted on the image, to look at.")
        self.overview.toggled.connect(self._on_overview)
        self.body.addWidget(self.overview)
        self.files = AnnotationFiles(self)
        self.files.started.connect(self._on_work)
        self.files.ended.connect(self._on_work)
        self.body.addWidget(self.files)
        self.instant = InstantPanel(self)
        self.body.addWidget(self.instant)
        self.note = wrapped_label()
        self.footer.addWidget(self.note)
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
            "fitting level is as fine as the canvas shows.")
        self.undo = QPushButton("Undo")
        self.undo.setToolTip(
            "Take the last stroke of the window back, or what was imported after it (Ctrl+Z).")
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

    # -- image and store -----------------------------------------------------------------

    @notifies
    def _on_image(self) -> None:
        """Another image is chosen: its own folder of annotations comes back."""
        self._leave()
        self.image = None
        choice = self.picker.choice
        try:
            depth = choice is not None and choice.has_depth
            self.image = self.picker.resolve(self.backend, NUM_AXES + depth)
        finally:
            key = None if self.image is None else self.image.key
            self.folder.show_path(str(recall_own(key, "annotations") or "") if key else "")
            self.instant.show_image(key)
            self._open_known()

    @notifies
    def _on_folder(self, text: str = "") -> None:
        self._leave()
        if self.image is not None:
            remember(self.image.key, annotations=self.folder.path)
        self._open_known()

    def _on_time(self, event: Any = None) -> None:
        """Another time point of a series is shown: it has annotations of its own."""
        choice = self.picker.choice
        if self.image is None or choice is None or "t" not in self.image.plane:
            return
        shown = time_shown(choice.layers[0], self.viewer.dims)
        if shown is not None and shown != self.image.plane["t"]:
            self._on_image()

    def _open_known(self) -> None:
        """The annotations that the image already has."""
        self._show_session()
        if self.image is not None:
            path = annotate.store_path(self.backend, self.image, self.folder.path)
            known = find_session(self.viewer.layers, path)
            if known is not None:
                self._held.take(known)
            elif path.exists():
                self._open(self.image, path)
        self._show_session()

    def _open(self, image: ResolvedImage, path: Path) -> None:
        choice = self.picker.choice
        if choice is None:
            return
        try:
            store = self.backend.open_annotations(
                image.pyramid, path=path, classes=self.classes.table
            )
        except MuvitError as error:
            self.note.setText(sentence(error))
            raise
        self._held.take(AnnotationSession(store, image, choice.layers[0]))

    def require_session(self) -> AnnotationSession:
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
        self.instant.stop()
        self.overview.setChecked(False)
        if self.session is not None:
            self.session.save()
        self._held.let_go()

    def _show_session(self) -> None:
        session = self.session
        table = self.backend.default_class_table() if session is None else session.store.classes
        self.classes.start_over()
        if session is not None or self.classes.table is None:
            self.classes.show_table(table)
        self._seen = -1
        self.balance.setText("")
        self.note.setText("" if session is None else f"Saved in {session.store.path}.")
        self._show_windows()
        self._show_state()

    def _show_state(self) -> None:
        is_free = not self.files.is_working and self.image is not None
        has_session = self.session is not None
        for widget in (self.here, self.files):
            widget.setEnabled(is_free)
        for widget in (self.list, self.jump, self.forget, self.undo, self.redo, self.instant,
                       self.overview):
            widget.setEnabled(is_free and has_session)

    def _on_work(self, text: str) -> None:
        """An import or export has begun or ended."""
        self.note.setText(text)
        self._show_state()

    def adopt_classes(self, table: Any) -> None:
        """Take another class table, from a file for example."""
        if self.session is not None:
            self.session.set_classes(table)
            table = self.session.store.classes
        self.classes.show_table(table)
        self._seen = -1

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
            if self.note.text().startswith(OUTDATED):
                self.note.setText("")
            session.refresh_overview()
            self._counter.request(session.store)
            self._request_thumbnails()

    def _on_display_failed(self, error: BaseException) -> None:
        """Counts or thumbnails fail: said below only, as they are made anew at every stroke."""
        log_surprise(error)
        self.note.setText(f"{OUTDATED}: {sentence(error)}")

    def _on_removed(self, event: Any = None) -> None:
        if self.session is not None:
            self.session.drop_removed(self.viewer.layers)
            if self.session.overview is None and self.overview.isChecked():
                self.overview.setChecked(False)

    @notifies
    def _on_overview(self, is_on: bool) -> None:
        session = self.session
        if session is None:
            return
        if is_on and session.overview is None:
            session.show_overview(self.viewer)
        elif not is_on and session.overview is not None:
            self.viewer.layers.remove(session.overview)

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
        session = self.require_session()
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
        session, place = self.require_session(), self._place()
        opened = session.reopen(self.viewer, place)
        session.jump(self.viewer, place, tuple(self.viewer.canvas.size))
        self._enter(opened)

    @notifies
    def _on_forget(self, checked: bool = False) -> None:
        self.require_session().forget(self.viewer, self._place())
        self._show_windows()

    @notifies
    def _on_undo(self, checked: bool = False) -> None:
        session = self.require_session()
        opened = session.active(self.viewer)
        if not (session.step_import(True) if opened is None else opened.undo()):
            show_hint("There is nothing to undo in this window.")

    @notifies
    def _on_redo(self, checked: bool = False) -> None:
        session = self.require_session()
        opened = session.active(self.viewer)
        if not (session.step_import(False) if opened is None else opened.redo()):
            show_hint("There is nothing to redo in this window.")

    def _place(self) -> Any:
        index = self.list.currentRow()
        places = self.require_session().store.window_places
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
            self.list.item(index).setIcon(plain_icon(pixmap(picture, THUMBNAIL_SIDE)))
