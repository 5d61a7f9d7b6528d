"""The public contract: names, arguments and shapes that others rely on."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest

import napari_muvit as muvit

NAMES = (
    "open_pyramid", "pretrain", "finetune", "resume", "predict", "predict_to_zarr", "features",
    "evaluate", "convert", "load_model", "MuViTDataset",
    "MuViTEncoder2d", "MuViTEncoder3d", "MuViTEncoder4d",
    "MuViTDecoder2d", "MuViTDecoder3d", "MuViTDecoder4d",
    "MuViTMAE2d", "MuViTMAE3d", "MuViTMAE4d", "MuViTSegmenter2d", "MuViTSegmenter3d",
)


@pytest.mark.parametrize("name", NAMES)
def test_public_names_resolve(name: str) -> None:
    assert name in dir(muvit)
    assert callable(getattr(muvit, name))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = muvit.nothing_here


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("open_pyramid", ["source", "channels", "t", "z", "image"]),
        ("pretrain", ["config"]),
        ("finetune", ["config"]),
        ("predict", ["source", "model"]),
        ("predict_to_zarr", ["source", "model", "output"]),
        ("features", ["source", "model", "level"]),
        ("evaluate", ["prediction", "truth"]),
        ("load_model", ["folder"]),
    ],
)
def test_arguments_have_their_names_and_order(function: str, arguments: list[str]) -> None:
    given = list(inspect.signature(getattr(muvit, function)).parameters)
    assert given[: len(arguments)] == arguments


def test_a_pyramid_and_its_crop_have_the_promised_shapes() -> None:
    pyramid = muvit.open_pyramid(np.arange(3 * 90 * 120, dtype=np.uint16).reshape(3, 90, 120))
    assert pyramid.shape == (3, 90, 120)
    assert pyramid.axes == "cyx"
    assert pyramid.dtype == np.uint16
    assert pyramid.factors == ((1.0, 1.0),)
    crop = pyramid.crop(center=(45, 60), levels=(1, 4), size=16)
    assert crop.image.shape == (2, 3, 16, 16)
    assert crop.image.dtype == np.uint16
    assert crop.bbox.shape == (2, 2, 2)
    assert crop.bbox.dtype == np.float64
    assert crop.valid.shape == (2, 16, 16)
    assert crop.valid.dtype == bool
    again = pyramid.crop(corner=crop.bbox[:, 0], levels=(1, 4), size=16)
    np.testing.assert_array_equal(again.bbox, crop.bbox)
    np.testing.assert_array_equal(again.image, crop.image)


def test_a_segmenter_gives_logits_at_the_finest_level() -> None:
    import torch

    encoder = muvit.MuViTEncoder2d(
        in_channels=1, levels=(1, 4), patch_size=8, num_layers=2, dim=64, heads=2
    )
    x = torch.rand(1, 2, 1, 32, 32)
    boxes = torch.tensor([[[[0.0, 0.0], [32.0, 32.0]], [[-48.0, -48.0], [80.0, 80.0]]]])
    for decoder in ("unetr", "mask2former"):
        model = muvit.MuViTSegmenter2d(encoder, 3, decoder=decoder).eval()
        with torch.inference_mode():
            assert model(x, boxes).shape == (1, 3, 32, 32)


def test_predictions_of_arrays_are_lazy_and_on_the_image(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (80, 100), np.uint8)
    labels = (image > 127).astype(np.uint8)
    list(muvit.convert(image, tmp_path / "image.ome.zarr", levels=(1,), chunk=64))
    list(muvit.convert(labels, tmp_path / "labels.ome.zarr", levels=(1,), chunk=64,
                       as_labels=True))
    run = muvit.finetune({
        "images": str(tmp_path / "image.ome.zarr"), "labels": str(tmp_path / "labels.ome.zarr"),
        "levels": [1, 4], "crop_size": 32, "preset": "tiny", "num_layers": 1, "dim": 32,
        "heads": 1, "steps": 1, "batch_size": 1, "output": str(tmp_path / "run"),
    })
    assert run.folder == tmp_path / "run"
    assert run.wait().reason == "completed"
    lazy = muvit.predict(image, run.folder)
    assert lazy.shape == (80, 100)
    assert set(np.unique(lazy.compute(scheduler="sync"))) <= {0, 1}
    probabilities = muvit.predict(image, muvit.load_model(run.folder), probabilities=True)
    values = probabilities.compute(scheduler="sync")
    assert values.shape == (2, 80, 100)
    np.testing.assert_allclose(values.sum(0), 1, atol=1e-3)
    maps = muvit.features(image, run.folder, level=4)
    assert maps.shape == (32, 3, 4)
