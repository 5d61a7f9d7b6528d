"""What a finished prediction tells: area of every class, and outlines for QuPath."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import (
    QAbstractItemView,
    QFileDialog,
    QHeaderView,
    QPushButton,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_muvit.api import image_stem
from napari_muvit.plugin.background import Job
from napari_muvit.plugin.label_layers import area_rows
from napari_muvit.plugin.notices import notifies, show_failure, show_hint

MOST_ROWS = 8


class ResultsView(QWidget):  # type: ignore[misc]
    """Areas of the classes of one prediction, and its export.

    Parameters
    ----------
    backend
        Gives the backend when it is needed.
    """

    exported = Signal(str)

    def __init__(self, backend: Any) -> None:
        super().__init__()
        self._backend = backend
        self.store: Path | None = None
        self.job: Job | None = None
        self.table = QTableWidget(0, 3)
        self.table.setHorizontalHeaderLabels(["Class", "Area (px)", "Area (µm²)"])
        self.table.setToolTip("Area of each class: full-resolution pixels, and micrometres.")
        self.table.verticalHeader().setVisible(False)
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
        self.export = QPushButton("Export outlines for QuPath …")
        self.export.setToolTip("Write the outlines of all classes as GeoJSON, which QuPath opens.")
        self.export.clicked.connect(self._on_export)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.table)
        layout.addWidget(self.export)
        self.hide()

    def show_results(self, store: Path, areas: Sequence[dict[str, Any]]) -> None:
        """Show the areas of the prediction in `store`."""
        self.store = store
        # Several images lie in a folder, and each has its own outlines.
        self.export.setVisible(store.suffix == ".zarr")
        rows = area_rows(areas)
        self.table.setRowCount(len(rows))
        for line, texts in enumerate(rows):
            for column, text in enumerate(texts):
                self.table.setItem(line, column, QTableWidgetItem(text))
        height = self.table.horizontalHeader().sizeHint().height() + 4
        self.table.setFixedHeight(height + 30 * min(max(1, len(rows)), MOST_ROWS))
        self.show()

    @notifies
    def _on_export(self, checked: bool = False) -> None:
        if self.store is None:
            return
        first = self.store.with_name(image_stem(self.store.name) + ".geojson")
        path, _ = QFileDialog.getSaveFileName(self, "Outlines", str(first), "GeoJSON (*.geojson)")
        if path:
            self.export_to(Path(path))

    def export_to(self, path: Path) -> None:
        """Write the outlines to `path`, in the background."""
        backend, store = self._backend(), self.store

        def generate() -> Iterator[list[Path]]:
            yield backend.export_outlines(store, path)

        self.export.setEnabled(False)
        self.job = Job(generate)
        self.job.reported.connect(self._on_written)
        self.job.ended.connect(self._on_ended)
        self.destroyed.connect(self.job.cancel)
        self.job.start()

    def _on_written(self, files: Sequence[Path]) -> None:
        # A volume gives one file for each plane.
        names = f"{files[0]}" if len(files) == 1 else f"{files[0]} to {files[-1].name}"
        show_hint(f"The outlines were written to {names}.")
        self.exported.emit(str(files[0]))

    def _on_ended(self, error: BaseException | None) -> None:
        self.job = None
        self.export.setEnabled(True)
        if error is not None:
            show_failure(error)
