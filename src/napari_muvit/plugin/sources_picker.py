"""The images of a run, and for fine-tuning their labels: from layers, or from files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qtpy.compat import isalive
from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QAbstractItemView,
    QFileDialog,
    QFormLayout,
    QHeaderView,
    QPushButton,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_muvit.errors import InputError
from napari_muvit.plugin.background import Job
from napari_muvit.plugin.dock import DockWidget, ImagePicker, LabelsPicker, row, wrapped_label
from napari_muvit.plugin.layer_copies import (
    LayerSource,
    belongs,
    image_source,
    labels_source,
    store_all,
)
from napari_muvit.plugin.notices import notifies, show_failure

MAX_ROWS_SHOWN = 4


class SourcesPicker(QWidget):  # type: ignore[misc]
    """Rows of image paths, with label paths beside them where labels are wanted.

    Parameters
    ----------
    dock
        The widget that this one is part of.
    with_labels
        Whether every image needs labels.
    title
        What stands above the images.

    Signals
    -------
    changed
        Other images than before are listed.

    Attributes
    ----------
    accept
        Told what is about to be added, of whose file the layer may show a part; may refuse it.
    """

    changed = Signal()

    def __init__(
        self, dock: DockWidget, with_labels: bool, title: str = "Images of the run"
    ) -> None:
        super().__init__()
        self._dock, self._title = dock, title
        self.job: Job | None = None
        self._saving: list[LayerSource] = []
        self.with_labels = with_labels
        self.accept: Callable[[LayerSource], None] = lambda source: None
        self.image = ImagePicker(dock, "An image in the viewer to add.")
        self.labels: LabelsPicker | None = None
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        form = QFormLayout()
        form.addRow("Image", self.image)
        if with_labels:
            self.labels = LabelsPicker(dock, "The labels layer that belongs to the image.")
            form.addRow("Labels", self.labels)
            self.image.changed.connect(self._match_labels)
        layout.addLayout(form)
        self.add_layer = QPushButton("Add layer")
        self.add_layer.setToolTip(
            "Add the layers chosen above to the list. Of layers that are only in memory a copy "
            "is saved first, since a run is repeated from files."
        )
        self.add_layer.clicked.connect(self._on_add_layer)
        self.add_files = QPushButton("Add files …")
        self.add_files.setToolTip(
            "Add image files: OME-Zarr folders are dropped or typed; TIFF, slides, pictures."
        )
        self.add_files.clicked.connect(self._on_add_files)
        self.remove = QPushButton("Remove")
        self.remove.setToolTip("Take the marked rows out of the list.")
        self.remove.clicked.connect(self._on_remove)
        layout.addLayout(row(self.add_layer, self.add_files, self.remove))
        self.note = wrapped_label()
        self.note.hide()
        layout.addWidget(self.note)
        self.table = self._table()
        layout.addWidget(self.table)
        self._fit()

    def _table(self) -> QTableWidget:
        headers = [self._title, "Labels"] if self.with_labels else [self._title]
        table = QTableWidget(0, len(headers))
        table.setHorizontalHeaderLabels(headers)
        table.setToolTip("Paths of the images; they can be edited.")
        table.verticalHeader().setVisible(False)
        # The name of a file is at the end of its path.
        table.setWordWrap(False)
        table.setTextElideMode(Qt.TextElideMode.ElideLeft)
        table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        table.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
        table.itemChanged.connect(self._on_edited)
        return table

    def images(self) -> tuple[str, ...]:
        """Paths of the images, in order."""
        return self._column(0)

    def label_paths(self) -> tuple[str, ...]:
        """Paths of the labels, in the order of the images."""
        return self._column(1) if self.with_labels else ()

    def _column(self, column: int) -> tuple[str, ...]:
        cells = (self.table.item(line, column) for line in range(self.table.rowCount()))
        texts = ("" if cell is None else cell.text().strip() for cell in cells)
        return tuple(text for text in texts if text)

    def add(self, image: str, labels: str = "") -> None:
        """Add one image, and its labels."""
        line = self.table.rowCount()
        self.table.insertRow(line)
        for column, text in enumerate((image, labels)[: self.table.columnCount()]):
            item = QTableWidgetItem(text)
            item.setToolTip(text)
            self.table.setItem(line, column, item)
        self._fit()
        self.changed.emit()

    def clear(self) -> None:
        self.table.setRowCount(0)
        self._fit()

    @notifies
    def _match_labels(self) -> None:
        """Choose labels that belong to the image, if those chosen are another image's."""
        choice = self.image.choice
        if choice is not None and self.labels is not None:
            point = self._dock.viewer.dims.point
            self.labels.prefer(lambda layer: belongs(layer, choice, point))

    @notifies
    def _on_add_layer(self, checked: bool = False) -> None:
        choice, dock = self.image.choice, self._dock
        if choice is None:
            raise InputError("no image is open. Open one, or add files.")
        labels = None if self.labels is None else self.labels.layer
        if self.with_labels and labels is None:
            raise InputError("no labels layer is open. Open or paint labels, or add files.")
        point = dock.viewer.dims.point
        sources = [image_source(choice, dock.backend, point)]
        if labels is not None:
            sources.append(labels_source(labels, choice, dock.backend, point))
        self.accept(sources[0])
        if any(source.store is not None for source in sources):
            self._save_copies(sources)
        else:
            self.add(*(source.path for source in sources))

    def _save_copies(self, sources: list[LayerSource]) -> None:
        """Write what is only in memory to files, then add those."""
        self._saving = sources
        self.job = Job(lambda: store_all(sources))
        self.job.reported.connect(self._on_saving)
        self.job.ended.connect(self._on_saved)
        self.destroyed.connect(self.job.cancel)
        self.add_layer.setEnabled(False)
        self.note.show()
        self.job.start()

    def _on_saving(self, text: str) -> None:
        if isalive(self.note):  # the viewer may have been closed since
            self.note.setText(text)

    @notifies
    def _on_saved(self, error: BaseException | None) -> None:
        self.job = None
        self.add_layer.setEnabled(True)
        self.note.setText("" if error is not None else (
            "Layers that are only in memory are read from a copy as they are now; add a layer "
            "again after changing it."
        ))
        self.note.setVisible(error is None)
        if error is not None:
            show_failure(error)
        else:
            self.add(*(source.path for source in self._saving))

    @notifies
    def _on_add_files(self, checked: bool = False) -> None:
        paths, _ = QFileDialog.getOpenFileNames(self, "Images to learn from")
        for path in paths:
            self.add(path)

    def _on_remove(self, checked: bool = False) -> None:
        lines = {index.row() for index in self.table.selectedIndexes()}
        for line in sorted(lines, reverse=True):
            self.table.removeRow(line)
        self._fit()
        self.changed.emit()

    def _on_edited(self, item: Any) -> None:
        self.changed.emit()

    def _fit(self) -> None:
        """As tall as its rows, up to a few."""
        lines = max(1, min(self.table.rowCount(), MAX_ROWS_SHOWN))
        height = self.table.horizontalHeader().sizeHint().height()
        self.table.setFixedHeight(height + lines * 30 + 4)
