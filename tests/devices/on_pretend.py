"""Everything that computes, on a device that is not the CPU; run by `test_pretend_device`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pretend
import pytest
import tifffile
import torch

pretend.install(has_float64=os.environ.get("PRETEND_FLOAT64") == "1")

from napari_muvit import api  # noqa: E402, after the device is known
from napari_muvit.data.annotations import open_annotations  # noqa: E402
from napari_muvit.inference.attention_view import attention_view  # noqa: E402
from napari_muvit.inference.context import ContextPredictor  # noqa: E402
from napari_muvit.inference.instant import InstantPrediction  # noqa: E402
from napari_muvit.inference.model_source import parse_model  # noqa: E402
from napari_muvit.models import devices  # noqa: E402

SIDE = 96
SIZES: dict[str, Any] = {
    "levels": (1, 4), "crop_size": 16, "patch_size": 4, "preset": "tiny", "dim": 48,
    "num_layers": 2, "heads": 2, "steps": 3, "batch_size": 2, "validate_every": 2,
    "preview_every": 2, "checkpoint_every": 2, "val_samples": 4,
    "tissue": "none", "kernels": "torch", "threads": 1,
}


@pytest.fixture(autouse=True)
def _the_device_is_there(monkeypatch):
    monkeypatch.setattr(devices, "_usable_names", lambda: [pretend.DEVICE, "cpu"])
    if os.environ.get("PRETEND_FLOAT64") != "1":
        monkeypatch.setattr(devices, "WITHOUT_FLOAT64", {pretend.NAME})
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str, str]:
    """An image, and labels of two classes that do not cover it."""
    folder = tmp_path_factory.mktemp("images")
    image = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE), dtype=np.uint8)
    labels = np.ones((SIDE, SIDE), np.uint8)
    labels[:, SIDE // 2:], labels[::8] = 2, 0
    found = {}
    for name, array in (("image", image), ("labels", labels)):
        found[name] = str(folder / f"{name}.tif")
        tifffile.imwrite(found[name], array)
    return found


def train(start: Any, folder: Path, options: dict[str, Any]) -> dict[str, np.ndarray]:
    """Metrics by name of a run on the pretended device, those of the CPU being the same."""
    scores = {}
    for device in ("auto", "cpu"):
        run = start({**SIZES, **options, "device": device, "output": str(folder / device)})
        run.wait()
        table = np.genfromtxt(
            folder / device / "metrics.csv", delimiter=",", names=True, dtype=None,
            encoding="utf-8")
        scores[device] = {
            name: table[name].astype(float) for name in table.dtype.names
            if name.startswith(("loss", "dice", "mdsc", "temperature"))}
    assert scores["auto"]
    for name, values in scores["auto"].items():
        np.testing.assert_allclose(values, scores["cpu"][name], rtol=1e-3, err_msg=name)
    return scores["auto"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where runs are kept for the tests after."""
    return tmp_path_factory.mktemp("runs")


def test_two_devices_do_not_mix():
    with pytest.raises(RuntimeError, match="of the CPU in one operation"):
        torch.ones(2, device=pretend.DEVICE) + torch.ones(2)
    with pytest.raises(TypeError, match="numpy"):
        torch.ones(2, device=pretend.DEVICE).numpy()


@pytest.mark.skipif(os.environ.get("PRETEND_FLOAT64") == "1", reason="it has them")
def test_float64_is_refused():
    with pytest.raises(TypeError, match="float64"):
        torch.ones(2, device=pretend.DEVICE).double()


@pytest.mark.parametrize("more", [{}, {"decoder_context": "all", "loss": "norm_mse"}])
def test_an_autoencoder_trains(paths, folder, more):
    kind = "full" if more else "visible"
    train(api.pretrain, folder / kind, {
        "images": [paths["image"]], "val": [paths["image"]], **more})


def test_a_run_goes_on(paths, folder, tmp_path):
    run = api.resume(str(folder / "visible" / "auto"), steps=5)
    run.wait()
    steps = np.genfromtxt(run.folder / "metrics.csv", delimiter=",", names=True, dtype=None,
                          encoding="utf-8")["step"]
    assert steps.max() == 5


@pytest.mark.parametrize("more", [
    {"decoder": "unetr"}, {"decoder": "mask2former"},
    {"decoder": "unetr", "attention_mode": "all", "token_coordinates": "span", "ema": 0.9,
     "class_weights": (1.0, 2.0, 3.0), "activation_checkpointing": True, "accumulate": 2},
])
def test_a_segmenter_trains(paths, folder, more):
    kind = "_".join(map(str, more.values()))
    scores = train(api.finetune, folder / kind, {
        "images": [paths["image"]], "labels": [paths["labels"]],
        "val": [paths["image"]], "val_labels": [paths["labels"]], "level_supervision": 0.3,
        "pretrained": None if len(more) > 1 else str(folder / "visible" / "auto"), **more})
    assert np.isfinite(scores["temperature"]).any()


def test_volumes(folder, tmp_path):
    paths = [str(tmp_path / f"{name}.npy") for name in ("image", "labels")]
    volume = np.random.default_rng(1).integers(0, 255, (16, 48, 48), dtype=np.uint8)
    np.save(paths[0], volume)
    np.save(paths[1], np.where(np.arange(48) < 24, 1, 2).astype(np.uint8) + 0 * volume)
    sizes = {"crop_size": (8, 16, 16), "dim": 64, "levels": (1, 2), "images": paths[:1],
             "val": paths[:1]}
    train(api.pretrain, folder / "volume", sizes)
    run = folder / "volume_labels"
    train(api.finetune, run, {**sizes, "labels": paths[1:], "val_labels": paths[1:]})
    assert np.asarray(api.predict(paths[0], str(run / "auto"))).shape == volume.shape


@pytest.mark.parametrize("kind", ["unetr", "mask2former"])
def test_prediction_is_that_of_the_cpu(paths, folder, kind):
    run = str(folder / kind / "auto")
    model = api.load_model(run, device=pretend.DEVICE)
    assert {p.device.type for p in model.parameters()} == {pretend.NAME}
    found = np.asarray(api.predict(paths["image"], run))
    np.testing.assert_array_equal(found, np.asarray(api.predict(paths["image"], model)))
    wanted = np.asarray(api.predict(paths["image"], run, device="cpu"))
    assert (found == wanted).mean() > 0.999


def test_shared_contexts_are_those_of_the_cpu(paths, folder, monkeypatch):
    monkeypatch.setattr("napari_muvit.inference.spec.is_small", lambda *_: False)
    model = api.load_model(str(folder / "unetr" / "auto"))
    found = []
    for device, size in ((pretend.DEVICE, 8), ("cpu", 1)):
        predictor = parse_model(model, device=device, kernels="torch")
        assert type(predictor) is ContextPredictor
        found.append(np.asarray(api.predict(
            paths["image"], predictor, probabilities=True, batch_size=size)))
    np.testing.assert_allclose(*found, atol=1e-4)


@pytest.mark.parametrize("level", [1, 4])
def test_features_are_those_of_the_cpu(paths, folder, level):
    run = str(folder / "visible" / "auto")
    found, wanted = (
        np.asarray(api.features(paths["image"], run, level=level, device=device, kernels="torch"))
        for device in ("auto", "cpu"))
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_features_are_probed(paths, folder):
    report = api.probe(paths["image"], paths["labels"], str(folder / "visible" / "auto"))
    assert "ROC-AUC" in str(report)


def test_an_object_is_probed_where_it_does_not_lie(paths, folder):
    model = api.load_model(str(folder / "visible" / "auto"), device="cpu")
    found, wanted = (
        api.probe(paths["image"], paths["labels"], model, device=device, kernels="torch")
        for device in ("auto", "cpu"))
    assert found.auc == pytest.approx(wanted.auc, abs=1e-2)
    assert {p.device.type for p in model.parameters()} == {"cpu"}


@pytest.mark.parametrize("lies_on", [pretend.DEVICE, "cpu"])
def test_an_object_predicts_on_two_devices_at_a_time(paths, folder, lies_on):
    model = api.load_model(str(folder / "unetr" / "auto"), device=lies_on)
    found = [
        api.predict(paths["image"], model, device=device, kernels="torch", roi=[[0, 0], [9, 9]])
        for device in (pretend.DEVICE, "cpu")]
    assert (np.asarray(found[0]) == np.asarray(found[1])).mean() > 0.999
    assert {p.device.type for p in model.parameters()} == {torch.device(lies_on).type}


def test_attention_is_that_of_the_cpu(paths, folder):
    found, wanted = (
        attention_view(paths["image"], str(folder / "unetr" / "auto"), (40, 40), device=device)
        for device in ("auto", "cpu"))
    np.testing.assert_allclose(found.weights, wanted.weights, atol=1e-5)


def test_instant_prediction(paths, folder, tmp_path):
    pyramid = api.open_pyramid(paths["image"])
    model = api.load_model(str(folder / "unetr" / "auto"), device=pretend.DEVICE)
    with open_annotations(pyramid, folder=tmp_path) as store:
        for value, place in ((1, (4, 4)), (2, (60, 60))):
            store.write(1, place, np.ones((12, 12), bool), value)
        store.flush()
        found = InstantPrediction(pyramid, store, model).predict(1, (0, 0), (SIDE, SIDE))
    assert found.labels.shape == (SIDE, SIDE)
    assert np.isfinite(found.confidence).all()
