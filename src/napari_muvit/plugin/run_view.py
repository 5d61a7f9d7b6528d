"""What a run folder shows: curves, state, newest preview, refreshed while the run goes on."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import pyqtgraph as pg
from napari.utils.theme import get_theme
from qtpy.QtCore import Qt, QTimer, Signal
from qtpy.QtGui import QPixmap
from qtpy.QtWidgets import QCheckBox, QLabel, QMenu, QProgressBar, QVBoxLayout, QWidget

from napari_muvit.plugin.background import LatestTask
from napari_muvit.plugin.dock import DockWidget, wrapped_label
from napari_muvit.plugin.notices import notifies
from napari_muvit.plugin.preview_layer import show_preview
from napari_muvit.plugin.runs import Comparison, Curve, RunPicture, compare, smooth

REFRESH_MS = 1000
READ_SHARE = 20
"""One part in so many of the time is spent on reading."""
CURVE_COLORS = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#d55e00", "#f0e442")
CURVE_HEIGHT = 150
RATE_HEIGHT = 100
FEW_POINTS = 30
AXIS_WIDTH = 50
FAINT = 90
"""Opacity of the points that a smooth line goes through, of 255."""
STARTING, PAUSED = "Starting", "Paused"


class Curves(QWidget):  # type: ignore[misc]
    """Curves in one pair of axes, with their names in their colours above."""

    def __init__(
        self, title: str, height: int, tooltip: str, is_smoothed: bool = False
    ) -> None:
        super().__init__()
        self._title, self._is_smoothed, self._has_smooth = title, is_smoothed, False
        self.setToolTip(tooltip)
        self.caption = wrapped_label(title)
        self.plot = pg.PlotWidget(background=None)
        self.plot.setFixedHeight(height)
        self.plot.setMouseEnabled(x=False, y=False)
        self.plot.setMenuEnabled(False)
        self.plot.hideButtons()
        axis = self.plot.getAxis("left")
        axis.enableAutoSIPrefix(False)
        axis.setWidth(AXIS_WIDTH)
        # Room above, so that the last number of the axis is whole.
        self.plot.getPlotItem().setContentsMargins(0, 8, 0, 0)
        _own_menus(self.plot)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(self.caption)
        layout.addWidget(self.plot)

    def draw(self, curves: dict[str, Curve], others: dict[str, Curve] | None = None) -> None:
        """Replace what is shown; curves of few points get dots, long ones a smooth line.

        Parameters
        ----------
        others
            Curves of another run by the same names, drawn with dashes.
        """
        self.plot.clear()
        others = others or {}
        names, self._has_smooth = [], False
        for index, name in enumerate({**curves, **others}):
            color = CURVE_COLORS[index % len(CURVE_COLORS)]
            self._line(curves.get(name, ()), color)
            self._line(others.get(name, ()), color, is_dashed=True)
            if name and (curves.get(name) or others.get(name)):
                names.append(f'<span style="color:{color}">\u25cf</span>&nbsp;{html.escape(name)}')
        if self._has_smooth:
            names.append("(faint: every step)")
        self.caption.setText(f"<b>{self._title}</b> &nbsp; " + " &nbsp; ".join(names))

    def paint_theme(self, background: Any, text: Any) -> None:
        """Take the colours of a theme, RGB each, whatever was drawn before."""
        self.plot.setBackground(background)
        for side in ("left", "bottom"):
            axis = self.plot.getAxis(side)
            axis.setPen(text)
            axis.setTextPen(text)

    def _line(self, pairs: Curve, color: str, is_dashed: bool = False) -> None:
        if not pairs:
            return
        is_long = len(pairs) > FEW_POINTS
        if self._is_smoothed and is_long:
            self._has_smooth = True
            self._plot(pairs, color, is_dashed, FAINT, is_long)
            pairs = smooth(pairs)
        self._plot(pairs, color, is_dashed, 255, is_long)

    def _plot(
        self, pairs: Curve, color: str, is_dashed: bool, opacity: int, is_long: bool
    ) -> None:
        steps, values = zip(*pairs, strict=True)
        symbol = None if is_long or is_dashed else "o"
        style = Qt.PenStyle.DashLine if is_dashed else Qt.PenStyle.SolidLine
        shade = pg.mkColor(color)
        shade.setAlpha(opacity)
        # Lines wider than a pixel take pyqtgraph many times longer where there are many points.
        pen = pg.mkPen(shade, width=1 if is_long else 2, style=style)
        self.plot.plot(list(steps), list(values), symbol=symbol, symbolSize=5, pen=pen,
                       symbolBrush=color, symbolPen=None)


class RunView(QWidget):  # type: ignore[misc]
    """Watches one run folder, whoever writes it.

    Parameters
    ----------
    dock
        The widget that this one is part of; its viewer shows previews as layers.
    """

    refreshed = Signal(object)

    def __init__(self, dock: DockWidget) -> None:
        super().__init__()
        self._dock, self._viewer = dock, dock.viewer
        self._layered: Path | None = None
        self.folder: Path | None = None
        self.picture: RunPicture | None = None
        self.other: Path | None = None
        self._beside: RunPicture | None = None
        self._doing = ""
        self._drawn: tuple[RunPicture, RunPicture | None] | None = None
        self._build()
        self._reader = LatestTask(compare)
        self._reader.finished.connect(self._on_read)
        self._reader.failed.connect(self._on_failed)
        self.destroyed.connect(self._reader.stop)
        self._timer = QTimer(self)
        self._timer.setInterval(REFRESH_MS)
        self._timer.timeout.connect(self.refresh)
        dock.listen(self._viewer.events.theme, self._on_theme)
        self._on_theme()

    def _on_theme(self, event: Any = None) -> None:
        """Draw on the background of napari's theme; style sheets do not reach into plots."""
        theme = get_theme(self._viewer.theme)
        background, text = theme.background.as_rgb_tuple(), theme.text.as_rgb_tuple()
        for curves in (self.losses, self.scores, self.rates):
            curves.paint_theme(background, text)

    def _build(self) -> None:
        self.headline, self.beside = wrapped_label(), wrapped_label()
        self.beside.setToolTip("The run that is compared with, and the options that differ.")
        self.progress = QProgressBar()
        self.losses = Curves(
            "Loss", CURVE_HEIGHT, "Error of each step, and on validation crops. The smooth line is "
            "the mean of the steps around.", is_smoothed=True)
        self.scores = Curves(
            "Score", CURVE_HEIGHT,
            "On validation crops. Dice: overlap of prediction and labels for each class, from 0 "
            "to 1; mDSC: its mean over the classes that are not background.",
        )
        self.scores.plot.setLimits(yMin=-0.02, yMax=1.02)
        self.rates = Curves("Learning rate", RATE_HEIGHT, "Size of the optimizer's steps.")
        self.preview = QLabel()
        self.preview.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.preview.setToolTip(
            "The newest preview. Pretraining: what the model saw and what it reconstructed, for "
            "each level. Fine-tuning: image, labels and prediction."
        )
        self.as_layer = QCheckBox("Preview as a layer")
        self.as_layer.setToolTip("Show the newest preview beside the images, as it comes.")
        self.as_layer.toggled.connect(self._show_layer)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        for widget in (self.headline, self.beside, self.progress, self.losses, self.scores,
                       self.rates, self.preview, self.as_layer):
            layout.addWidget(widget)
        self._show(None)

    def watch(self, folder: Path | None) -> None:
        """Show `folder` from now on; None shows nothing."""
        self.folder, self._drawn, self._beside = folder, None, None
        self._show(None)
        if folder is None:
            self._timer.stop()
        else:
            self._timer.start()
            self.refresh()

    def compare_with(self, other: Path | None) -> None:
        """Show another run beside this one; None shows one run alone."""
        self.other = other
        self.refresh()

    def tell(self, doing: str) -> None:
        """Say of the run what its folder cannot know: `STARTING`, `PAUSED` or nothing."""
        if doing != self._doing:
            self._doing = doing
            if doing or (self.picture is not None and self.picture.is_running):
                self._say()  # else what was read last may be older than the run's end

    def _say(self) -> None:
        picture = self.picture
        if picture is None:
            self.headline.setText("" if self.folder is None else "Starting …")
        elif self._doing == STARTING and not picture.is_running:
            self.headline.setText(f"{STARTING} …")
        elif self._doing == PAUSED and picture.is_running:
            self.headline.setText(f"{PAUSED}, step {picture.step} of {picture.steps}.")
        else:
            self.headline.setText(picture.headline)

    def watch_no_more(self) -> None:
        """Keep what is shown; the run has ended."""
        self._timer.stop()

    def refresh(self) -> None:
        """Read the folder again, in the background."""
        if self.folder is not None:
            self._reader.request(self._dock.backend, self.folder, self.other)

    def _on_read(self, found: Comparison) -> None:
        picture = found.picture
        # A long record takes long to read: then it is read less often.
        self._timer.setInterval(max(REFRESH_MS, int(READ_SHARE * 1000 * found.seconds)))
        if picture is None or picture.folder != self.folder:
            return
        self._beside = found.other
        self.beside.setText(found.text)
        self.beside.setVisible(bool(found.text))
        if (picture, found.other) != self._drawn:
            self._drawn = picture, found.other
            self._show(picture)
        self._say()
        self.refreshed.emit(picture)

    def _on_failed(self, error: BaseException) -> None:
        # A folder on a shared disk may be gone for a moment; the next look may succeed.
        self.headline.setText(str(error))

    def _show(self, picture: RunPicture | None) -> None:
        self.picture = picture
        self._say()
        for widget in (self.losses, self.rates, self.preview, self.progress, self.as_layer):
            widget.setVisible(picture is not None)
        self.scores.setVisible(picture is not None and bool(picture.scores))
        if picture is None:
            self.beside.hide()
            return
        self.progress.setRange(0, max(1, picture.steps))
        self.progress.setValue(picture.step)
        self._draw(picture)
        self._show_preview(picture.preview)

    def _draw(self, picture: RunPicture) -> None:
        beside = self._beside
        mine, theirs = ({} if run is None else {"training": run.train, **run.losses}
                        for run in (picture, beside))
        self.losses.draw(mine, theirs)
        self.scores.draw(picture.scores, None if beside is None else beside.scores)
        self.rates.draw({"": picture.rate}, None if beside is None else {"": beside.rate})

    def _show_preview(self, path: Path | None) -> None:
        pixmap = QPixmap() if path is None else QPixmap(str(path))
        self.preview.setVisible(not pixmap.isNull())
        self.as_layer.setVisible(not pixmap.isNull())
        self._show_layer()
        if not pixmap.isNull():
            width = max(120, self.width() - 12)
            self.preview.setPixmap(pixmap.scaledToWidth(
                min(width, pixmap.width() * 4), Qt.TransformationMode.SmoothTransformation
            ))

    @notifies
    def _show_layer(self, checked: bool = False) -> None:
        """Show the newest preview as a layer, where that is wanted; each picture once."""
        picture = self.picture
        path = None if picture is None or not self.as_layer.isChecked() else picture.preview
        if path != self._layered:
            self._layered = path
            if path is not None and self.folder is not None:
                show_preview(self._viewer, self.folder.name, path)


def _own_menus(plot: Any) -> None:
    """Make the plot the owner of its context menu and controls, which are not shown here.

    pyqtgraph makes them as windows without a parent, which would outlive the viewer.
    """
    item = plot.getPlotItem()
    menu = item.ctrlMenu
    controls = item.ctrl.alphaGroup.window()
    for part in menu.findChildren(QMenu):
        part.setParent(menu)
        part.hide()
    for part in (menu, controls):
        part.setParent(plot)
        part.hide()
