"""The whole job as one story, by the buttons, in one viewer and then in another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_muvit import api
from napari_muvit.plugin import predict_widget, sample_data

WAIT_MS = 120_000
TINY = {
    "levels": (1, 4), "crop_size": (64,), "preset": "tiny", "steps": 20, "batch_size": 2,
    "tissue": "none", "threads": 1, "device": "cpu", "preview_every": 10, "checkpoint_every": 10,
}
NAME = "immunohistochemistry"
LIVE = f"{NAME}: live prediction"


def train(widget: Any, output: Path, qtbot: Any, **options: Any) -> None:
    """Press Start, and wait until the run is completed."""
    widget.form.set_values({**TINY, **options})
    widget.output.set_path(str(output))
    widget.detached.setChecked(False)
    widget.start.click()
    assert widget.control is not None, widget.note.text()
    qtbot.waitUntil(lambda: widget.control is None, timeout=WAIT_MS)
    assert api.RunFolder(output).status().state == "completed"


def paint(viewer: Any, open_widget: Any) -> None:
    """Two strokes: bright places are background, brown ones class 2."""
    widget = open_widget("MuViT: Annotate")
    widget.level.setCurrentText("level 1")
    widget.here.click()
    layer = viewer.layers.selection.active
    for value, rows in ((1, slice(100, 220)), (2, slice(260, 400))):
        layer.data_setitem(tuple(np.mgrid[rows, 100:380].reshape(2, -1)), value)


def find_store(folder: Path) -> Path:
    return next(folder.rglob("*_annotations.ome.zarr"))


def test_from_sample_to_atlas_and_back(
    make_viewer: Any, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    torch.set_num_threads(1)
    monkeypatch.setattr(sample_data, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(predict_widget, "cache_folder", lambda: tmp_path)
    viewer = make_viewer(show=True, strict_qt="raise")

    def open_widget(name: str) -> Any:
        return viewer.window.add_plugin_dock_widget("napari-muvit", name)[1]

    viewer.open_sample("napari-muvit", NAME)
    viewer.layers[0].name = NAME
    crops = open_widget("MuViT: Crops")
    crops.levels_edit.setText("1, 2")
    crops.levels_edit.editingFinished.emit()
    qtbot.waitUntil(lambda: crops.thumbnails.count() > 0, timeout=WAIT_MS)
    pretrain = open_widget("MuViT: Pretrain")
    pretrain.sources.add_layer.click()
    image = pretrain.sources.images()[0]
    train(pretrain, tmp_path / "runs" / "pretrain", qtbot)

    paint(viewer, open_widget)
    qtbot.waitUntil(lambda: any(tmp_path.rglob("*_annotations.ome.zarr")), timeout=WAIT_MS)
    store = find_store(tmp_path)
    counts = {1: 120 * 280, 2: 140 * 280}
    qtbot.waitUntil(lambda: saved_counts(store) == counts, timeout=WAIT_MS)

    finetune = open_widget("MuViT: Fine-tune")
    finetune.sources.add_layer.click()
    assert finetune.sources.images() == (image,)
    assert Path(finetune.sources.label_paths()[0]).samefile(store)
    train(finetune, tmp_path / "runs" / "finetune", qtbot,
          pretrained=str(tmp_path / "runs" / "pretrain"))

    predict = open_widget("MuViT: Predict")
    predict.picker.choose(NAME)
    predict.device.setCurrentText("cpu")
    predict.folder.set_path(str(tmp_path / "runs" / "finetune"))
    qtbot.waitUntil(lambda: predict.model is not None, timeout=WAIT_MS)
    predict.live.click()
    qtbot.waitUntil(lambda: LIVE in viewer.layers and bool(np.any(viewer.layers[LIVE].data)),
                    timeout=WAIT_MS)
    predict.live.click()
    predict.output.set_path(str(tmp_path / "atlas.ome.zarr"))
    predict.whole.click()
    qtbot.waitUntil(lambda: predict.job is None, timeout=WAIT_MS)
    before = written_at(tmp_path / "atlas.ome.zarr")
    viewer.close()

    # Another day: the image is opened, and everything is as it was.
    viewer = make_viewer(show=True, strict_qt="raise")
    viewer.open(image, plugin="napari-muvit")
    assert open_widget("MuViT: Crops").choice.levels == (1, 2)
    annotate = open_widget("MuViT: Annotate")
    assert annotate.list.count() == 1
    assert saved_counts(store) == counts
    annotate.list.setCurrentRow(0)
    annotate.jump.click()
    window = np.asarray(viewer.layers.selection.active.data)
    assert {value: int((window == value).sum()) for value in counts} == counts
    predict = open_widget("MuViT: Predict")
    assert predict.folder.path == str(tmp_path / "runs" / "finetune")
    assert predict.output.path == str(tmp_path / "atlas.ome.zarr")
    qtbot.waitUntil(lambda: predict.model is not None, timeout=WAIT_MS)
    predict.whole.click()
    qtbot.waitUntil(lambda: predict.job is None, timeout=WAIT_MS)
    assert written_at(tmp_path / "atlas.ome.zarr") == before
    name = predict.picker.choice.name
    atlas = viewer.layers[f"{name}: prediction"]
    first = atlas.data[0] if atlas.multiscale else atlas.data
    assert first.shape == (512, 512)
    assert set(np.unique(np.asarray(first))) <= {0, 1, 2}
    runs = open_widget("MuViT: Runs")
    runs.parent_folder.set_path(str(tmp_path / "runs"))
    qtbot.waitUntil(lambda: runs.list.count() == 2, timeout=WAIT_MS)
    qtbot.waitUntil(lambda: runs.use.isEnabled(), timeout=WAIT_MS)
    runs.use.click()
    widgets = viewer.window.dock_widgets
    again = next(widgets[name] for name in widgets if "Predict" in name)
    assert again.folder.path == str(tmp_path / "runs" / "finetune")


def written_at(store: Path) -> dict[str, int]:
    """When each chunk of the finest labels was written."""
    return {str(path): path.stat().st_mtime_ns for path in (store / "0" / "c").rglob("*")
            if path.is_file()}


def saved_counts(path: Path) -> dict[int, int]:
    """Painted pixels of each class on disk."""
    with api.AnnotationStore(path, writable=False) as store:
        found: dict[int, int] = store.class_counts()
    return found
