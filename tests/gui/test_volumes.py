"""Stacks of planes: models of planes predict every one, models of volumes the whole."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile

from napari_muvit import api
from napari_muvit.plugin import predict_widget

WAIT_MS = 60_000
LIVE = "stack: live prediction"


@pytest.fixture
def stack(trained: SimpleNamespace) -> np.ndarray:
    """Planes (3, 96, 128): the board that the model knows, moved along x."""
    board = api.open_pyramid(str(trained.image)).level_image(1)[0]
    return np.stack([np.roll(board, 16 * z, axis=1)[:96, :128] for z in range(3)])


@pytest.fixture
def widget(
    viewer: Any, open_widget: Any, stack: np.ndarray, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    monkeypatch.setattr(predict_widget, "cache_folder", lambda: tmp_path / "cache")
    viewer.add_image(stack, name="stack", scale=(2, 0.5, 0.5), translate=(10, 0, 0),
                     units=("um",) * 3)
    viewer.dims.set_point(0, 12)
    viewer.reset_view()
    widget = open_widget("MuViT: Predict")
    widget.device.setCurrentText("cpu")
    return widget


@pytest.fixture
def of_planes(widget: Any, trained: SimpleNamespace, qtbot: Any) -> Any:
    widget.folder.set_path(str(trained.run))
    qtbot.waitUntil(lambda: widget.model is not None, timeout=WAIT_MS)
    return widget


def plane_of(layer: Any, z: int) -> np.ndarray:
    return np.asarray(layer.data[0] if layer.multiscale else layer.data)[z]


def test_live_follows_the_slider(of_planes: Any, viewer: Any, qtbot: Any) -> None:
    of_planes.live.click()

    def is_there(z: int) -> Any:
        return lambda: LIVE in viewer.layers and (plane_of(viewer.layers[LIVE], z) > 0).mean() > 0.5

    qtbot.waitUntil(is_there(1), timeout=WAIT_MS)
    layer = viewer.layers[LIVE]
    assert layer.ndim == 3
    assert np.allclose(layer.data_to_world((1, 0, 0)), (12, 0, 0))
    assert not plane_of(layer, 2).any()
    viewer.dims.set_point(0, 14)
    qtbot.waitUntil(is_there(2), timeout=WAIT_MS)
    assert not plane_of(layer, 0).any()
    of_planes.live.click()


def test_view_is_one_plane_and_whole_is_all(
    of_planes: Any, viewer: Any, qtbot: Any, stack: np.ndarray, tmp_path: Path,
    trained: SimpleNamespace,
) -> None:
    of_planes.view.click()
    qtbot.waitUntil(lambda: of_planes.job is None, timeout=WAIT_MS)
    layer = viewer.layers["stack: prediction in view"]
    assert layer.data.shape[0] == 1
    assert layer.data_to_world((0, 0, 0))[0] == pytest.approx(12)
    of_planes.output.set_path(str(tmp_path / "out.ome.zarr"))
    of_planes.whole.click()
    qtbot.waitUntil(lambda: of_planes.job is None, timeout=WAIT_MS)
    whole = viewer.layers["stack: prediction"]
    assert np.allclose(whole.data_to_world((2, 0, 0)), (14, 0, 0))
    pyramid = api.pyramid_from_arrays([stack[2]], axes="yx", pixel_size=(0.5, 0.5))
    expected = np.asarray(api.predict(pyramid, str(trained.run)))
    assert np.array_equal(plane_of(whole, 2), expected)
    shown = layer.data[0]
    top, left = np.round(2 * np.asarray(layer.data_to_world((0, 0, 0))[1:])).astype(int)
    height, width = shown.shape
    # Places whose tissue lies outside the view are left out of it.
    known = shown > 0
    assert known.mean() > 0.5
    there = plane_of(whole, 1)[top : top + height, left : left + width]
    assert np.array_equal(shown[known], there[known])


def test_live_goes_to_the_time_point_that_is_shown(
    of_planes: Any, viewer: Any, qtbot: Any, stack: np.ndarray
) -> None:
    viewer.layers.clear()
    viewer.add_image(stack, name="series", scale=(1, 0.5, 0.5), units=("um",) * 3,
                     axis_labels=("t", "y", "x"))
    viewer.dims.set_point(0, 0)
    name, seen = "series: live prediction", []
    of_planes.live.click()
    for t in (0, 2):
        viewer.dims.set_point(0, t)
        qtbot.waitUntil(
            lambda t=t: of_planes.session is not None and of_planes.session.image.plane == {"t": t}
            and of_planes.session.is_running and bool(np.any(viewer.layers[name].data)),
            timeout=WAIT_MS)
        qtbot.waitUntil(lambda: of_planes.session._engine.wait(0), timeout=WAIT_MS)
        seen.append(np.array(viewer.layers[name].data))
    assert of_planes.live.isChecked()
    assert not np.array_equal(*seen)
    of_planes.live.click()


@pytest.fixture
def volume_model(tmp_path: Path) -> Path:
    import torch

    from napari_muvit.data.labels import ClassTable, make_classes
    from napari_muvit.models.checkpoint import ModelMeta, save_model
    from napari_muvit.models.encoder import Encoder
    from napari_muvit.models.segmenter import Segmenter

    torch.manual_seed(0)
    encoder = Encoder(1, (1, 2), (2, 8, 8), num_layers=1, dim=64, heads=1, ndim=3,
                      token_coordinates="centre", rope_frequencies="scales", crop_size=(4, 32, 32))
    model = Segmenter(encoder, 2, decoder="unetr", norm="group", head_dim=16).eval()
    table = ClassTable(make_classes((1, 2)))
    model.meta = ModelMeta(
        "segmenter", crop_size=(4, 32, 32), scaled_axes=("y", "x"),
        normalization={"kind": "percentile"}, classes=table.to_dict(), pixel_size=(2, 0.5, 0.5),
    )
    save_model(tmp_path / "volume", model, model.meta)
    return tmp_path / "volume"


def test_model_of_volumes(
    widget: Any, viewer: Any, qtbot: Any, volume_model: Path, notices: list[str], tmp_path: Path,
) -> None:
    widget.folder.set_path(str(volume_model))
    qtbot.waitUntil(lambda: widget.model is not None, timeout=WAIT_MS)
    widget.live.click()
    qtbot.waitUntil(
        lambda: LIVE in viewer.layers and (plane_of(viewer.layers[LIVE], 1) > 0).mean() > 0.5,
        timeout=WAIT_MS)
    assert viewer.layers[LIVE].ndim == 3
    widget.live.click()
    widget.output.set_path(str(tmp_path / "out.ome.zarr"))
    widget.whole.click()
    qtbot.waitUntil(lambda: widget.job is None, timeout=WAIT_MS)
    assert (plane_of(viewer.layers["stack: prediction"], 0) > 0).all()
    viewer.add_image(np.zeros((64, 64), np.uint8), name="plane")
    widget.picker.choose("plane")
    widget.view.click()
    assert "trained on volumes" in notices[-1]
    assert widget.view.isEnabled()


def test_strokes_on_several_planes_teach_a_model_of_planes(
    viewer: Any, open_widget: Any, qtbot: Any, tmp_path: Path, stack: np.ndarray
) -> None:
    viewer.add_image(stack, name="stack")
    annotate = open_widget("MuViT: Annotate")
    annotate.folder.set_path(str(tmp_path))
    annotate.level.setCurrentText("level 1")
    for z, value in ((0, 1), (2, 2)):
        viewer.dims.set_point(0, z)
        annotate.here.click()
        window = viewer.layers.selection.active
        window.data_setitem(tuple(np.mgrid[0:1, 10:60, 10:90].reshape(3, -1)), value)
    finetune = open_widget("MuViT: Fine-tune")
    finetune.sources.add_layer.click()
    qtbot.waitUntil(lambda: bool(finetune.sources.images()), timeout=WAIT_MS)
    finetune.form.set_values({
        "levels": (1, 2), "crop_size": (32,), "preset": "tiny", "steps": 2, "batch_size": 2,
        "tissue": "none", "threads": 1, "device": "cpu", "z": "all"})
    finetune.output.set_path(str(tmp_path / "run"))
    qtbot.waitUntil(
        lambda: "Those of the 3 planes of" in finetune.advice.text(), timeout=WAIT_MS)
    finetune.detached.setChecked(False)
    finetune.start.click()
    qtbot.waitUntil(
        lambda: finetune.view.headline.text().startswith("Completed"), timeout=WAIT_MS)
    model = api.load_model(str(tmp_path / "run"))
    assert model.encoder.ndim == 2
    assert model.num_classes == 2


def test_every_time_point_is_annotated_on_its_own(
    viewer: Any, tmp_path: Path, open_widget: Any, notices: list[str]
) -> None:
    path = tmp_path / "series.ome.tif"
    tifffile.imwrite(path, np.zeros((4, 64, 80), np.uint8), metadata={"axes": "TYX"})
    viewer.open(str(path), plugin="napari-muvit")
    viewer.dims.set_point(0, 2)
    widget = open_widget("MuViT: Annotate")
    widget.here.click()
    early = viewer.layers[-1]
    viewer.dims.set_point(0, 3)
    assert not early.visible
    assert widget.session is None
    widget.here.click()
    late = viewer.layers[-1]
    late.data_setitem((np.array([4]), np.array([5])), 1)
    assert widget.session.store.path.name == "series_t3_annotations.ome.zarr"
    assert api.open_annotations(api.open_pyramid(str(path), t=2), path=tmp_path / (
        "series_t2_annotations.ome.zarr"), writable=False).class_counts() == {}
    viewer.dims.set_point(0, 2)
    assert early.visible
    assert not late.visible
    assert widget.session.store.path.name == "series_t2_annotations.ome.zarr"
    tuned = open_widget("MuViT: Fine-tune")
    tuned.sources.labels.prefer(lambda layer: layer.name == late.name)
    tuned.sources.add_layer.click()
    assert "of another time point" in notices[-1]
    viewer.dims.set_point(0, 3)
    tuned.sources.add_layer.click()
    assert tuned.values()["t"] == 3
    assert tuned.sources.label_paths()[0].endswith("series_t3_annotations.ome.zarr")


def test_labels_of_another_image_are_refused_and_its_own_preferred(
    viewer: Any, tmp_path: Path, open_widget: Any, notices: list[str]
) -> None:
    for name in "ab":
        tifffile.imwrite(tmp_path / f"{name}.tif", np.zeros((64, 80), np.uint8))
        viewer.open(str(tmp_path / f"{name}.tif"), plugin="napari-muvit")
    names = [layer.name for layer in viewer.layers]
    annotate = open_widget("MuViT: Annotate")
    for name in names:
        annotate.picker.choose(name)
        annotate.here.click()
    sources = open_widget("MuViT: Fine-tune").sources
    sources.image.choose(names[0])
    sources.add_layer.click()
    assert [Path(path).name[0] for path in (*sources.images(), *sources.label_paths())] == ["a"] * 2
    sources.labels._combo.setCurrentText(f"{names[1]}: window 1")
    sources.add_layer.click()
    assert f"annotations of another image than {names[0]!r}" in notices[-1]
    assert len(sources.images()) == 1
