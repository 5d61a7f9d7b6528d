"""Every widget opens, and lets go of the viewer again, with the Qt binding that is asked for.

``make pyside`` runs this with PySide6; without ``QT_API`` it runs with the one that is there.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
from qtpy import API_NAME
from qtpy.QtWidgets import QPushButton

NAMES = ("Crops", "Pretrain", "Annotate", "Fine-tune", "Predict", "Features", "Runs")
API_NAMES = {"pyqt6": "PyQt6", "pyside6": "PySide6"}


def test_binding_is_the_one_asked_for() -> None:
    asked = os.environ.get("QT_API", API_NAME).lower()
    assert API_NAMES[asked] == API_NAME


@pytest.mark.parametrize("name", NAMES)
def test_widget_opens(
    name: str, viewer: Any, open_widget: Any, trained: SimpleNamespace, qtbot: Any,
    notices: list[str],
) -> None:
    viewer.open(str(trained.image), plugin="napari-muvit")
    widget = open_widget(f"MuViT: {name}")
    qtbot.wait(500)
    assert widget.isVisible()
    assert widget.findChildren(QPushButton)
    assert notices == []
