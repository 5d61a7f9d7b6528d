"""What a run folder shows: curves, state, newest preview, refreshed while the run goes on."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import pyqtgraph as pg
from qtpy.QtCore import Qt, QTimer, Signal
from qtpy.QtGui import QPixmap
from qtpy.QtWidgets import QLabel, QMenu, QProgressBar, QVBoxLayout, QWidget

from napari_muvit.plugin.background import LatestTask
from napari_muvit.plugin.dock import wrapped_label
from napari_muvit.plugin.runs import Curve, RunPicture, read_run

REFRESH_MS = 1000
CURVE_COLORS = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#d55e00", "#f0e442")
CURVE_HEIGHT = 150
RATE_HEIGHT = 100
FEW_POINTS = 30
AXIS_WIDTH = 50


class Curves(QWidget):  # type: ignore[misc]
    """Curves in one pair of axes, with their names in their colours above."""

    def __init__(self, title: str, height: int, tooltip: str) -> None:
        super().__init__()
        self._title = title
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

    def draw(self, curves: dict[str, Curve]) -> None:
        """Replace what is shown; curves of few points get dots."""
        self.plot.clear()
        names = []
        for index, (name, pairs) in enumerate(curves.items()):
            if not pairs:
                continue
            steps, values = zip(*pairs, strict=True)
            color = CURVE_COLORS[index % len(CURVE_COLORS)]
            symbol = "o" if len(steps) <= FEW_POINTS else None
            self.plot.plot(list(steps), list(values), symbol=symbol, symbolSize=5,
                           pen=pg.mkPen(color, width=2), symbolBrush=color, symbolPen=None)
            if name:
                names.append(f'<span style="color:{color}">\u25cf</span>&nbsp;{html.escape(name)}')
        self.caption.setText(f"<b>{self._title}</b> &nbsp; " + " &nbsp; ".join(names))


class RunView(QWidget):  # type: ignore[misc]
    """Watches one run folder, whoever writes it.

    Parameters
    ----------
    backend
        Gives the backend when it is needed.
    """

    refreshed = Signal(object)

    def __init__(self, backend: Any) -> None:
        super().__init__()
        self._backend = backend
        self.folder: Path | None = None
        self.picture: RunPicture | None = None
        self._other: RunPicture | None = None
        self._build()
        self._reader = LatestTask(read_run)
        self._reader.finished.connect(self._on_read)
        self._reader.failed.connect(self._on_failed)
        self.destroyed.connect(self._reader.stop)
        self._timer = QTimer(self)
        self._timer.setInterval(REFRESH_MS)
        self._timer.timeout.connect(self.refresh)

    def _build(self) -> None:
        self.headline = wrapped_label()
        self.progress = QProgressBar()
        self.losses = Curves("Loss", CURVE_HEIGHT, "Error of each step, and on validation crops.")
        self.scores = Curves(
            "Score", CURVE_HEIGHT,
            "On validation crops. Dice: overlap of prediction and labels for each class, from 0 "
            "to 1; mDSC: its mean over the classes that are not background.",
        )
        self.rates = Curves("Learning rate", RATE_HEIGHT, "Size of the optimizer's steps.")
        self.preview = QLabel()
        self.preview.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.preview.setToolTip(
            "The newest preview. Pretraining: what the model saw and what it reconstructed, for "
            "each level. Fine-tuning: image, labels and prediction."
        )
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        for widget in (self.headline, self.progress, self.losses, self.scores, self.rates,
                       self.preview):
            layout.addWidget(widget)
        self._show(None)

    def watch(self, folder: Path | None) -> None:
        """Show `folder` from now on; None shows nothing."""
        self.folder = folder
        self._show(None)
        if folder is None:
            self._timer.stop()
        else:
            self._timer.start()
            self.refresh()

    def compare_with(self, other: RunPicture | None) -> None:
        """Draw the losses of `other` too; None draws one run alone."""
        self._other = other
        if self.picture is not None:
            self._draw(self.picture)

    def watch_no_more(self) -> None:
        """Keep what is shown; the run has ended."""
        self._timer.stop()

    def refresh(self) -> None:
        """Read the folder again, in the background."""
        if self.folder is not None:
            self._reader.request(self._backend(), self.folder)

    def _on_read(self, picture: RunPicture | None) -> None:
        if picture is not None and picture.folder == self.folder:
            self._show(picture)
            self.refreshed.emit(picture)

    def _on_failed(self, error: BaseException) -> None:
        # A folder on a shared disk may be gone for a moment; the next look may succeed.
        self.headline.setText(str(error))

    def _show(self, picture: RunPicture | None) -> None:
        self.picture = picture
        for widget in (self.losses, self.rates, self.preview, self.progress):
            widget.setVisible(picture is not None)
        self.scores.setVisible(picture is not None and bool(picture.scores))
        if picture is None:
            self.headline.setText("" if self.folder is None else "Starting …")
            return
        self.headline.setText(picture.headline)
        self.progress.setRange(0, max(1, picture.steps))
        self.progress.setValue(picture.step)
        self._draw(picture)
        self._show_preview(picture.preview)

    def _draw(self, picture: RunPicture) -> None:
        losses = {"training": picture.train, **picture.losses}
        if self._other is not None:
            losses[f"training, {self._other.folder.name}"] = self._other.train
        self.losses.draw(losses)
        self.scores.draw(picture.scores)
        self.rates.draw({"": picture.rate})

    def _show_preview(self, path: Path | None) -> None:
        pixmap = QPixmap() if path is None else QPixmap(str(path))
        self.preview.setVisible(not pixmap.isNull())
        if not pixmap.isNull():
            width = max(120, self.width() - 12)
            self.preview.setPixmap(pixmap.scaledToWidth(
                min(width, pixmap.width() * 4), Qt.TransformationMode.SmoothTransformation
            ))


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
