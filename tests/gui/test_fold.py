"""Parts of widgets that fold away."""

from __future__ import annotations

from typing import Any

from qtpy.QtWidgets import QLabel

from napari_muvit.plugin.fold import Fold


def test_the_arrow_is_text_and_tells_the_state(qtbot: Any) -> None:
    fold = Fold("Advanced options")
    qtbot.addWidget(fold)
    fold.addWidget(QLabel("inside"))
    assert fold.text() == "\u25b8  Advanced options"
    assert [size.width() for size in fold.toggleButton().icon().availableSizes()] == [1]
    fold.toggleButton().click()
    assert fold.text() == "\u25be  Advanced options"
    fold.expand(animate=False)
    fold.collapse(animate=False)
    assert fold.text() == "\u25b8  Advanced options"
