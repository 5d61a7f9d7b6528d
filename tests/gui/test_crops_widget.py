"""The Crops widget in a real viewer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from napari_muvit.plugin.crops_layer import LAYER_NAME


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (600, 800), dtype=np.uint8)


def has_thumbnails(widget: Any, count: int) -> Any:
    def check() -> None:
        assert widget.thumbnails.count() == 2 * count

    return check


def test_no_image_no_buttons(viewer: Any, open_widget: Any, backend: Any) -> None:
    widget = open_widget("MuViT: Crops")
    assert not widget.copy.isEnabled()
    assert "Open an image" in widget.note.text()


def test_shows_boxes_thumbnails_and_table(
    viewer: Any, open_widget: Any, backend: Any, image: np.ndarray, qtbot: Any
) -> None:
    viewer.add_image(image, name="tissue", scale=(0.5, 0.5), units=("um", "um"))
    widget = open_widget("MuViT: Crops")
    widget.levels_edit.setText("1, 2, 4")
    widget.levels_edit.editingFinished.emit()
    qtbot.waitUntil(has_thumbnails(widget, 3))
    layer = viewer.layers[LAYER_NAME]
    assert len(layer.data) == 3
    assert list(layer.features["level"]) == ["level 1", "level 2", "level 4"]
    assert widget.table.item(2, 2).text() == "1024"
    assert widget.table.item(2, 3).text() == "512"
    widget.centre.click()
    assert np.allclose(widget.choice.center, (299.5, 399.5), atol=1)
