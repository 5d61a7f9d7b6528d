"""Pictures of nested crops, one for each level, in the colours of their boxes."""

from __future__ import annotations

from typing import Any

import numpy as np
from qtpy.QtCore import Qt
from qtpy.QtGui import QIcon, QImage, QPixmap
from qtpy.QtWidgets import QGridLayout, QLabel

from napari_muvit.geometry import FloatArray
from napari_muvit.plugin import crops
from napari_muvit.plugin.layers import ResolvedImage

SIDE = 132
PER_ROW = 2


class Thumbnails(QGridLayout):  # type: ignore[misc]
    """A grid of captions and pictures."""

    def show_pictures(self, choice: crops.CropChoice, pictures: list[Any]) -> None:
        """Show one (H, W, 3) uint8 picture for each level of `choice`."""
        self.clear()
        for index, (level, picture) in enumerate(zip(choice.levels, pictures, strict=True)):
            label = QLabel()
            label.setPixmap(pixmap(picture, SIDE - 4))
            label.setAlignment(Qt.AlignmentFlag.AlignCenter)
            label.setToolTip(f"What the model sees at level {level:g}.")
            color = crops.LEVEL_COLORS[index % len(crops.LEVEL_COLORS)]
            label.setStyleSheet(f"border: 2px solid {color};")
            label.setFixedSize(SIDE, SIDE)
            line, column = divmod(index, PER_ROW)
            self.addWidget(QLabel(f"level {level:g}"), 2 * line, column)
            self.addWidget(label, 2 * line + 1, column)

    def clear(self) -> None:
        """Show nothing."""
        while (item := self.takeAt(0)) is not None:
            item.widget().deleteLater()


def read_pictures(
    image: ResolvedImage, choice: crops.CropChoice
) -> tuple[crops.CropChoice, FloatArray, list[Any]]:
    """The crop, its true boxes, and (H, W, 3) uint8 pictures of all levels (runs in a thread)."""
    crop = image.pyramid.crop(center=choice.center, levels=choice.levels, size=choice.size)
    pictures = [
        crops.render_crop(pixels, valid, image.display)
        for pixels, valid in zip(crop.image, crop.valid, strict=True)
    ]
    return choice, crop.bbox, pictures


def pixmap(picture: Any, side: int) -> QPixmap:
    """A (H, W, 3) uint8 picture that fits into a square of `side` screen pixels."""
    height, width = picture.shape[:2]
    data = np.ascontiguousarray(picture)
    image = QImage(data.data, width, height, 3 * width, QImage.Format.Format_RGB888)
    return QPixmap.fromImage(image.copy()).scaled(
        side, side, Qt.AspectRatioMode.KeepAspectRatio,
        Qt.TransformationMode.SmoothTransformation,
    )


def plain_icon(picture: QPixmap) -> QIcon:
    """An icon whose colours stay as they are where its row is chosen."""
    icon = QIcon(picture)
    for state in (QIcon.Mode.Selected, QIcon.Mode.Active):
        icon.addPixmap(picture, state)
    return icon
