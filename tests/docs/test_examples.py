"""The examples run as they are, on images small enough for a test."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from napari_muvit import api

FOLDER = Path(__file__).resolve().parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_custom_dataset_trains_and_gives_features(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load("custom_dataset").main(str(tmp_path / "model"), epochs=1)
    assert "features of one sample: (" in capsys.readouterr().out
    load("official_features").main(str(tmp_path / "model"), str(image(tmp_path)), "32")
    assert "levels (1, 4)" in capsys.readouterr().out


def image(folder: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (128, 128), np.uint8)
    list(api.convert(pixels, folder / "image.ome.zarr", levels=(1, 4), chunk=64))
    return folder / "image.ome.zarr"


def test_ones_own_image_becomes_a_prediction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = np.random.default_rng(0).integers(1, 3, (128, 128), np.uint8)
    list(api.convert(labels, tmp_path / "labels.ome.zarr", levels=(1,), chunk=64, as_labels=True))
    load("own_image").main(
        str(image(tmp_path)), str(tmp_path / "labels.ome.zarr"), str(tmp_path / "out"),
        steps=1, crop_size=32,
    )
    assert api.open_pyramid(tmp_path / "out" / "prediction.ome.zarr").spatial_shape == (128, 128)
    assert "mDSC" in capsys.readouterr().out
