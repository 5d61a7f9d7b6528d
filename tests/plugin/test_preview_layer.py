"""Previews as layers, in a viewer without a window."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from napari_muvit.plugin.image_choices import image_choices
from napari_muvit.plugin.preview_layer import show_preview

napari = pytest.importorskip("napari.components")


def picture(path: Path, value: int) -> Path:
    Image.fromarray(np.full((40, 120, 3), value, np.uint8)).save(path)
    return path


def test_preview_lies_beside_the_images_and_changes_in_place(tmp_path: Path) -> None:
    viewer = napari.ViewerModel()
    viewer.add_image(np.zeros((100, 200)), scale=(0.5, 0.5), translate=(10, 20),
                     units=("um", "um"), name="board")
    layer = show_preview(viewer, "pretrain-1", picture(tmp_path / "1.png", 7))
    assert layer.name == "preview of pretrain-1"
    board = viewer.layers["board"].extent.world
    heights = [np.ptp(box[:, 0]) for box in (layer.extent.world, board)]
    assert heights[0] == pytest.approx(heights[1], rel=0.05)
    assert layer.extent.world[0, 0] == pytest.approx(board[0, 0], abs=1)
    assert layer.extent.world[0, 1] > board[1, 1]
    assert viewer.layers.selection.active is viewer.layers["board"]
    again = show_preview(viewer, "pretrain-1", picture(tmp_path / "2.png", 9))
    assert again is layer
    assert (layer.data == (9, 9, 9, 255)).all()
    assert [choice.name for choice in image_choices(viewer.layers)] == ["board"]


def test_preview_without_images(tmp_path: Path) -> None:
    viewer = napari.ViewerModel()
    layer = show_preview(viewer, "run", picture(tmp_path / "1.png", 7))
    assert layer.rgb
    assert len(viewer.layers) == 1
