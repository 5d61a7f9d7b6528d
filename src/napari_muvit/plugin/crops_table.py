"""The table of nested boxes under the thumbnails of "MuViT: Crops"."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QAbstractItemView, QHeaderView, QTableWidget, QTableWidgetItem

HEADER = ("Level", "From y, x", "Side (px)", "Side (µm)")


class BoxTable(QTableWidget):  # type: ignore[misc]
    """One row for each level, as high as its rows."""

    def __init__(self) -> None:
        super().__init__(0, len(HEADER))
        self.setHorizontalHeaderLabels(list(HEADER))
        self.setToolTip("Where each crop lies: full-resolution pixels, and micrometres.")
        self.verticalHeader().setVisible(False)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setSelectionMode(QAbstractItemView.SelectionMode.NoSelection)
        header = self.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setStretchLastSection(True)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)

    def show_rows(self, rows: Sequence[Sequence[str]], num_axes: int) -> None:
        """Show the texts of all boxes, which have `num_axes` axes."""
        self.horizontalHeaderItem(1).setText(f"From {', '.join('zyx'[-num_axes:])}")
        self.setRowCount(len(rows))
        for index, texts in enumerate(rows):
            for column, text in enumerate(texts):
                self.setItem(index, column, QTableWidgetItem(text))
        height = self.horizontalHeader().height() + 2
        self.setFixedHeight(height + sum(self.rowHeight(i) for i in range(len(rows))))
