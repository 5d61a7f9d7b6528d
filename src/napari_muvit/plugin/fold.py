"""A part of a widget that folds away."""

from __future__ import annotations

from qtpy.QtCore import Qt
from qtpy.QtGui import QIcon, QPixmap
from superqt import QCollapsible

OPEN, CLOSED = "\u25be", "\u25b8"


class Fold(QCollapsible):  # type: ignore[misc]
    """A titled part, folded at first, whose arrow has the colour of text in every theme.

    The pictures that superqt draws as arrows keep the colour of the moment they are made in.
    """

    def __init__(self, title: str) -> None:
        nothing = QPixmap(1, 1)  # PySide takes a null icon for none
        nothing.fill(Qt.GlobalColor.transparent)
        icon = QIcon(nothing)
        super().__init__(f"{CLOSED}  {title}", expandedIcon=icon, collapsedIcon=icon)
        self.title = title
        self.toggled.connect(self._on_toggled)

    def _on_toggled(self, is_open: bool) -> None:
        self.setText(f"{OPEN if is_open else CLOSED}  {self.title}")
