"""A line for a folder's path with a button that browses."""

from __future__ import annotations

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QFileDialog, QHBoxLayout, QLineEdit, QPushButton, QWidget


class FolderPicker(QWidget):  # type: ignore[misc]
    """A folder, typed, dropped or browsed for."""

    changed = Signal(str)

    def __init__(self, tooltip: str, placeholder: str = "") -> None:
        super().__init__()
        self.line = QLineEdit()
        self.line.setToolTip(tooltip)
        self.line.setPlaceholderText(placeholder)
        self.line.editingFinished.connect(self._on_edited)
        self.browse = QPushButton("Browse")
        self.browse.setToolTip(tooltip)
        self.browse.clicked.connect(self._on_browse)
        self._reported = ""
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.line, 1)
        layout.addWidget(self.browse)

    @property
    def path(self) -> str:
        return str(self.line.text()).strip()

    def set_path(self, path: str) -> None:
        """Show `path` and report it if it is new."""
        self.line.setText(path)
        self._on_edited()

    def show_path(self, path: str) -> None:
        """Show `path` without reporting it."""
        self.line.setText(path)
        self._reported = path

    def _on_edited(self) -> None:
        if self.path != self._reported:
            self._reported = self.path
            self.changed.emit(self.path)

    def _on_browse(self, checked: bool = False) -> None:
        chosen = QFileDialog.getExistingDirectory(self, "Choose a folder", self.path)
        if chosen:
            self.set_path(chosen)
