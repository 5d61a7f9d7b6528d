"""A line for a folder's path with a button that browses."""

from __future__ import annotations

from pathlib import Path

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
        """Whole path of the folder, or its address on the web; empty where none is named.

        Napari may be started anywhere, so that a relative path is one from where it was started
        this time.
        """
        text = str(self.line.text()).strip()
        if not text or "://" in text:
            return text
        try:
            return str(Path(text).expanduser().absolute())
        except RuntimeError:  # the home of somebody who is not known here
            return str(Path(text).absolute())

    def set_path(self, path: str) -> None:
        """Show `path` and report it if it is new."""
        self.line.setText(path)
        self._on_edited()

    def show_path(self, path: str) -> None:
        """Show `path` without reporting it."""
        self.line.setText(path)
        self._reported = self.path

    def _on_edited(self) -> None:
        if self.path != self._reported:
            self._reported = self.path
            self.changed.emit(self.path)

    def _on_browse(self, checked: bool = False) -> None:
        chosen = QFileDialog.getExistingDirectory(self, "Choose a folder", self.path)
        if chosen:
            self.set_path(chosen)
