"""A table of classes: colour, name, share; to edit and to choose from."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QColor, QPixmap
from qtpy.QtWidgets import (
    QAbstractItemView,
    QColorDialog,
    QHeaderView,
    QPushButton,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_muvit.plugin import annotate
from napari_muvit.plugin.crops_thumbnails import plain_icon
from napari_muvit.plugin.dock import row
from napari_muvit.plugin.notices import notifies

COLOR, NAME, SHARE = range(3)
ROWS_SHOWN = 5
SWATCH = 16


class ClassList(QWidget):  # type: ignore[misc]
    """Shows a class table and reports what the user changes.

    Signals
    -------
    edited
        The new class table.
    chosen
        Label value of the chosen class.
    """

    edited = Signal(object)
    chosen = Signal(int)

    def __init__(self) -> None:
        super().__init__()
        self.table: Any = None
        self._counts: dict[int, int] = {}
        self._removed: set[int] = set()
        self.rows = QTableWidget(0, 3)
        self.rows.setHorizontalHeaderLabels(["", "Class", "Share"])
        self.rows.setToolTip(
            "Click a class to paint it; double-click its name or colour to change it. The share "
            "is its part of all that is painted."
        )
        self.rows.verticalHeader().setVisible(False)
        self.rows.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.rows.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        header = self.rows.horizontalHeader()
        header.setSectionResizeMode(NAME, QHeaderView.ResizeMode.Stretch)
        header.setSectionResizeMode(SHARE, QHeaderView.ResizeMode.ResizeToContents)
        self.rows.setColumnWidth(COLOR, 28)
        self.rows.itemSelectionChanged.connect(self._on_selected)
        self.rows.itemChanged.connect(self._on_item)
        self.rows.cellDoubleClicked.connect(self._on_double_click)
        self.add = QPushButton("Add class")
        self.add.setToolTip("Add a class with the next free value.")
        self.add.clicked.connect(self._on_add)
        self.remove = QPushButton("Remove class")
        self.remove.setToolTip(
            "Take the chosen class off the table; what is painted of it is ignored, and no new "
            "class takes its value."
        )
        self.remove.clicked.connect(self._on_remove)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.rows)
        layout.addLayout(row(self.add, self.remove))

    @property
    def value(self) -> int:
        """Label value of the chosen class."""
        index = self.rows.currentRow()
        values = self.table.values
        return int(values[index] if 0 <= index < len(values) else values[0])

    def choose(self, value: int) -> None:
        """Choose the class with this label value."""
        self.rows.selectRow(self.table.values.index(value))

    def show_table(self, table: Any) -> None:
        """Show another class table; reports nothing."""
        before = self.value if self.table is not None else None
        self.table = table
        self._fill()
        values = table.values
        self.rows.blockSignals(True)
        wanted = values.index(before) if before in values else min(1, len(values) - 1)
        self.rows.selectRow(wanted)
        self.rows.blockSignals(False)

    def start_over(self) -> None:
        """Know nothing of what is painted: another image is annotated."""
        self._removed = set()
        self._counts = {}

    def show_counts(self, counts: dict[int, int]) -> None:
        """Show each class's share of the labelled pixels."""
        self._counts = counts
        self.rows.blockSignals(True)
        for index, (_, _, _, share) in enumerate(annotate.class_rows(self.table, counts)):
            self.rows.item(index, SHARE).setText(share)
        self.rows.blockSignals(False)

    def _fill(self) -> None:
        self.rows.blockSignals(True)
        lines = annotate.class_rows(self.table, self._counts)
        self.rows.setRowCount(len(lines))
        for index, (_, name, color, share) in enumerate(lines):
            patch = QTableWidgetItem()
            # An icon, because the colour of a chosen row would cover a background.
            swatch = QPixmap(SWATCH, SWATCH)
            swatch.fill(QColor(color))
            patch.setIcon(plain_icon(swatch))
            patch.setFlags(Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable)
            patch.setToolTip("Double-click for another colour.")
            self.rows.setItem(index, COLOR, patch)
            self.rows.setItem(index, NAME, QTableWidgetItem(name))
            part = QTableWidgetItem(share)
            part.setFlags(Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable)
            self.rows.setItem(index, SHARE, part)
        header = self.rows.horizontalHeader()
        # Before the table is shown, its header has not its later height yet.
        header.ensurePolished()
        height = max(header.height(), header.sizeHint().height()) + 12
        height += sum(self.rows.rowHeight(line) for line in range(min(len(lines), ROWS_SHOWN)))
        self.rows.setFixedHeight(height)
        self.rows.blockSignals(False)

    def _change(self, table: Any) -> None:
        self.show_table(table)
        self.edited.emit(table)

    def _on_selected(self) -> None:
        if self.rows.currentRow() >= 0:
            self.chosen.emit(self.value)

    @notifies
    def _on_item(self, item: Any) -> None:
        if item.column() != NAME:
            return
        value = self.table.values[item.row()]
        try:
            table = annotate.change_class(self.table, value, name=item.text())
        except ValueError:
            self._fill()
            raise
        self._change(table)

    @notifies
    def _on_double_click(self, index: int, column: int) -> None:
        if column != COLOR:
            return
        item = self.table.classes[index]
        color = QColorDialog.getColor(QColor(item.color), self, f"Colour of {item.name}")
        if color.isValid():
            self._change(annotate.change_class(self.table, item.value, color=color.name()))

    @notifies
    def _on_add(self, checked: bool = False) -> None:
        make_class = type(self.table.classes[0])
        table = annotate.add_class(self.table, make_class, self._removed | set(self._counts))
        self._change(table)
        self.choose(table.values[-1])

    @notifies
    def _on_remove(self, checked: bool = False) -> None:
        value = self.value
        self._change(annotate.remove_class(self.table, value))
        self._removed.add(value)
