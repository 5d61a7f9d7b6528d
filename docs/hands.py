"""A person's hands on napari: menus opened, buttons pressed, words typed, strokes painted.

What cannot be reached with the mouse (off, hidden, not in the menu) raises.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageColor
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import (
    QApplication,
    QComboBox,
    QLineEdit,
    QMainWindow,
    QMenu,
    QScrollArea,
    QSpinBox,
    QTableWidget,
    QWidget,
)

LEFT = Qt.MouseButton.LeftButton
CURVES = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#d55e00")
FLAT, MIXED = 64, 144
"""Colours of a picture: those of most pixels as they are, and some for all others."""


class Hands:
    """Drives one viewer, and takes pictures of it.

    Parameters
    ----------
    viewer
        A napari viewer that is shown.
    output
        Folder of the pictures.
    """

    def __init__(self, viewer: Any, output: Path) -> None:
        self.viewer, self.output = viewer, output
        self.pictures: list[str] = []
        self.window = next(w for w in QApplication.topLevelWidgets()
                           if isinstance(w, QMainWindow) and w.isVisible())

    def rest(self, seconds: float = 0.3) -> None:
        """Let napari work for a while."""
        self.wait(lambda: False, seconds, must=False)

    def wait(self, until: Callable[[], bool], seconds: float = 120, must: bool = True) -> float:
        """Let napari work until something is there; the seconds that took."""
        began = time.monotonic()
        while not until():
            if time.monotonic() - began > seconds:
                if must:
                    raise TimeoutError(f"not there after {seconds:g} s")
                break
            QApplication.processEvents()
            time.sleep(0.01)
        return time.monotonic() - began

    def menu(self, *titles: str) -> None:
        """Choose an entry of the menu bar."""
        actions = self.window.menuBar().actions()
        for title in titles:
            found = [a for a in actions if _is_called(a.text(), title)]
            if not found or not found[0].isEnabled():
                raise LookupError(f"no {title!r} in {[a.text() for a in actions]}")
            inner: QMenu | None = found[0].menu()
            if inner is None:
                found[0].trigger()
                self.rest(1)
                return
            inner.aboutToShow.emit()
            actions = inner.actions()
        raise LookupError(f"{titles} is a menu, not an entry")

    def open_widget(self, title: str) -> Any:
        """Close the MuViT widgets that are open, and open another from the menu."""
        before = self.viewer.window.dock_widgets
        for name in [name for name in before if name.startswith("MuViT")]:
            self.viewer.window.remove_dock_widget(before[name].parent())
        self.rest(0.5)
        self.menu("Plugins", "MuViT", title)
        now = self.viewer.window.dock_widgets
        return next(now[name] for name in now if name.startswith(title))

    def press(self, button: QWidget) -> None:
        """Press a button, or tick a box."""
        self._reach(button)
        QTest.mouseClick(button, LEFT, pos=QPoint(10, button.height() // 2))
        self.rest()

    def type(self, field: QWidget, text: str) -> None:
        """Replace what a field says, and press Enter."""
        self._reach(field)
        line = field if isinstance(field, QLineEdit) else field.findChild(QLineEdit)
        QTest.mouseClick(line, LEFT)
        line.selectAll()
        QTest.keyClicks(line, text)
        QTest.keyClick(line, Qt.Key.Key_Return)
        self.rest()
        if isinstance(field, QSpinBox) and field.value() != int(text):
            raise ValueError(f"{text} was typed, {field.value()} was taken")

    def choose(self, combo: QComboBox, text: str) -> None:
        """Choose from a list that unfolds."""
        self._reach(combo)
        if combo.findText(text) < 0:
            raise LookupError(f"no {text!r} in {[combo.itemText(i) for i in range(combo.count())]}")
        combo.setCurrentText(text)
        self.rest()

    def click_cell(self, table: QTableWidget, line: int, column: int) -> None:
        """Choose a row of a table by a click on one of its cells."""
        self._reach(table)
        place = table.visualItemRect(table.item(line, column)).center()
        QTest.mouseClick(table.viewport(), LEFT, pos=place)
        self.rest()

    def rename_cell(self, table: QTableWidget, line: int, column: int, text: str) -> None:
        """Double-click a cell, type, and press Enter."""
        self.click_cell(table, line, column)
        place = table.visualItemRect(table.item(line, column)).center()
        QTest.mouseDClick(table.viewport(), LEFT, pos=place)
        editor = table.viewport().findChild(QLineEdit)
        editor.selectAll()
        QTest.keyClicks(editor, text)
        QTest.keyClick(editor, Qt.Key.Key_Return)
        self.rest()

    def click_image(self, y: float, x: float) -> None:
        """Click at a place of the image (viewer coordinates)."""
        canvas, place = self._on_canvas(y, x)
        QTest.mouseMove(canvas, place)
        self.rest(0.1)
        QTest.mouseClick(canvas, LEFT, pos=place)
        self.rest(0.5)

    def stroke(self, *places: Sequence[float]) -> None:
        """Paint along places of the image with the button held down."""
        canvas, first = self._on_canvas(*places[0])
        QTest.mouseMove(canvas, first)
        self.rest(0.1)
        QTest.mousePress(canvas, LEFT, pos=first)
        for place in places[1:]:
            QTest.mouseMove(canvas, self._on_canvas(*place)[1])
            self.rest(0.1)
        QTest.mouseRelease(canvas, LEFT, pos=self._on_canvas(*places[-1])[1])
        self.rest(0.5)

    @property
    def _canvas(self) -> QWidget:
        return next(w for w in self.window.findChildren(QWidget)
                    if type(w).__name__ == "CanvasBackendDesktop")

    def _on_canvas(self, y: float, x: float) -> tuple[QWidget, QPoint]:
        canvas = self._canvas
        camera = self.viewer.scene.camera
        row = (y - camera.center[-2]) * camera.zoom + canvas.height() / 2
        column = (x - camera.center[-1]) * camera.zoom + canvas.width() / 2
        if not (0 <= row < canvas.height() and 0 <= column < canvas.width()):
            raise LookupError(f"{y}, {x} is out of view")
        return canvas, QPoint(round(column), round(row))

    def _reach(self, widget: QWidget) -> None:
        """Scroll to a widget; what is off or hidden cannot be used."""
        parent = widget.parent()
        while parent is not None and not isinstance(parent, QScrollArea):
            parent = parent.parent()
        if parent is not None:
            parent.ensureWidgetVisible(widget)
        QApplication.processEvents()
        if not widget.isEnabled() or not widget.isVisible():
            raise LookupError(f"{widget} is off or hidden")

    def scroll_to(self, widget: QWidget) -> None:
        """Bring a part of a widget into sight, for a picture."""
        self._reach(widget)
        self.rest()

    def shoot(self, name: str, themes: Sequence[str] = ("dark",)) -> None:
        """Take a picture of the whole window; with several themes one in each.

        Before, the mouse leaves the canvas, where napari draws the brush; the square behind the
        brush goes when the theme changes.
        """
        QTest.mouseMove(self._canvas, QPoint(-99, -99))
        self.rest(0.1)
        self.viewer.theme = "dark" if themes[0] == "light" else "light"
        for theme in themes:
            self.viewer.theme = theme
            self.rest(1)
            shot = Image.fromarray(self.viewer.screenshot(canvas_only=False)[..., :3])
            file = f"{name}_{theme}.png" if len(themes) > 1 else f"{name}.png"
            few_colours(shot).save(self.output / file, optimize=True)
            self.pictures.append(file)
        self.viewer.theme = "dark"


def _is_called(text: str, title: str) -> bool:
    """Whether an entry has this title; napari puts the plugin's name behind it."""
    plain = text.replace("&", "")
    return plain == title or plain.startswith(f"{title} (")


def few_colours(shot: Image.Image) -> Image.Image:
    """The picture in a palette, so that its file is small; widgets and curves keep theirs."""
    counted = sorted(shot.getcolors(shot.width * shot.height) or [], reverse=True)
    palette = [ImageColor.getrgb(name) for name in CURVES] + [rgb for _, rgb in counted[:FLAT]]
    mixed = shot.quantize(MIXED).getpalette() or []
    values = [value for rgb in palette for value in rgb] + mixed[: 3 * MIXED]
    holder = Image.new("P", (1, 1))
    holder.putpalette(values)
    return shot.quantize(palette=holder, dither=Image.Dither.NONE)
