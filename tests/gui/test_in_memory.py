"""Images that are only in memory: cropped, annotated, trained on and predicted, never saved."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask.array as da
import numpy as np
import pytest

from napari_muvit import api
from napari_muvit.plugin import predict_widget

WAIT_MS = 60_000


@pytest.fixture
def board(trained: SimpleNamespace) -> np.ndarray:
    image: np.ndarray = api.open_pyramid(str(trained.image)).level_image(1)[0]
    return image


def rotated(degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    matrix = np.eye(3)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return matrix


def test_turned_image_is_predicted_live_from_its_array(
    viewer: Any, open_widget: Any, trained: SimpleNamespace, board: np.ndarray, qtbot: Any,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(predict_widget, "cache_folder", lambda: tmp_path / "cache")
    place = {"scale": (0.5, 0.5), "translate": (7, 9), "affine": rotated(20), "units": ("um",) * 2}
    image = viewer.add_image(board, name="in memory", **place)
    viewer.reset_view()
    widget = open_widget("MuViT: Predict")
    widget.device.setCurrentText("cpu")
    widget.folder.set_path(str(trained.run))
    qtbot.waitUntil(lambda: widget.model is not None, timeout=WAIT_MS)
    widget.live.click()
    name = "in memory: live prediction"
    qtbot.waitUntil(
        lambda: name in viewer.layers and (np.asarray(viewer.layers[name].data) > 0).mean() > 0.5,
        timeout=WAIT_MS)
    layer = viewer.layers[name]
    for corner in ((0, 0), (100, 200)):
        assert np.allclose(layer.data_to_world(corner), image.data_to_world(corner))
    widget.live.click()


def test_channels_and_drawn_labels_are_added_to_a_run(
    viewer: Any, open_widget: Any, board: np.ndarray, qtbot: Any, tmp_path: Path,
    notices: list[str],
) -> None:
    place = {"scale": (0.5, 0.5), "units": ("um",) * 2}
    viewer.add_image(board, name="a", **place)
    viewer.add_image(255 - board, name="b", **place)
    viewer.add_labels((1 + (board > 100)).astype(np.uint8), name="drawn", **place)
    widget = open_widget("MuViT: Fine-tune")
    widget.sources.image.choose("2 layers as channels")
    widget.sources.add_layer.click()
    assert not widget.sources.add_layer.isEnabled()
    qtbot.waitUntil(lambda: bool(widget.sources.images()), timeout=WAIT_MS)
    assert widget.sources.add_layer.isEnabled()
    assert "copy" in widget.sources.note.text()
    (image,), (labels,) = widget.sources.images(), widget.sources.label_paths()
    assert api.open_pyramid(image).shape == (2, 192, 256)
    assert api.open_pyramid(image).channel_names == ("a", "b")
    assert api.open_pyramid(labels).is_labels
    widget.form.set_values({
        "levels": (1, 4), "crop_size": (32,), "preset": "tiny", "steps": 2, "batch_size": 2,
        "tissue": "none", "threads": 1, "device": "cpu",
    })
    widget.output.set_path(str(tmp_path / "run"))
    widget.detached.setChecked(False)
    widget.start.click()
    qtbot.waitUntil(lambda: widget.control is None, timeout=WAIT_MS)
    assert api.RunFolder(tmp_path / "run").status().state == "completed"
    # The second time the copy is there already.
    widget.sources.clear()
    widget.sources.add_layer.click()
    assert widget.sources.images() == (image,)
    assert notices == []


def test_full_disk_is_told_and_the_copy_goes_on_later(
    viewer: Any, open_widget: Any, board: np.ndarray, qtbot: Any, notices: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    convert = api.convert

    def fail(*arguments: Any, **options: Any) -> Any:
        yield SimpleNamespace(done=0, total=4)
        raise OSError(28, "No space left on device", "copy.ome.zarr")

    viewer.add_image(board, name="a")
    widget = open_widget("MuViT: Pretrain")
    monkeypatch.setattr(api, "convert", fail)
    widget.sources.add_layer.click()
    qtbot.waitUntil(lambda: bool(notices), timeout=WAIT_MS)
    assert notices == ["No space left on device: copy.ome.zarr."]
    assert widget.sources.images() == ()
    assert widget.sources.add_layer.isEnabled()
    assert not widget.sources.note.isVisible()
    monkeypatch.setattr(api, "convert", convert)
    widget.sources.add_layer.click()
    qtbot.waitUntil(lambda: bool(widget.sources.images()), timeout=WAIT_MS)


def test_large_lazy_image_is_read_only_where_it_is_shown(
    viewer: Any, open_widget: Any, qtbot: Any
) -> None:
    read: list[tuple[int, int]] = []

    def make(block_info: Any = None) -> np.ndarray:
        place = block_info[None]["chunk-location"]
        read.append(place)
        return np.full((2048, 2048), sum(place), np.uint8)

    lazy = da.map_blocks(make, chunks=((2048,) * 40, (2048,) * 40), dtype=np.uint8)
    viewer.add_image(lazy[:, :], name="lazy", contrast_limits=(0, 80), visible=False)
    widget = open_widget("MuViT: Crops")
    qtbot.waitUntil(lambda: widget.thumbnails.count() > 0, timeout=WAIT_MS)
    assert len(set(read)) <= 9
    assert widget.note.text() == ""
    widget.levels_edit.setText("1, 32")
    widget.levels_edit.editingFinished.emit()
    assert "no smaller copies" in widget.note.text()
