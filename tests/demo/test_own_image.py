"""The demo on a user's own image: with labels, without, and too small to validate on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from napari_muvit import api
from napari_muvit.__main__ import main


@pytest.fixture
def image(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (3, 200, 200), np.uint8)
    list(api.convert(pixels, tmp_path / "image.ome.zarr", levels=(1, 4), chunk=64))
    return tmp_path / "image.ome.zarr"


def run_demo(folder: Path, *args: str) -> int:
    return main(["demo", "--output", str(folder), "--steps", "1", "1", "--no-view", *args])


def test_without_labels_it_pretrains_and_shows_features(image: Path, tmp_path: Path) -> None:
    assert run_demo(tmp_path / "demo", "--image", str(image)) == 0
    assert (tmp_path / "demo" / "report.png").exists()
    assert (tmp_path / "demo" / "pretrain" / "config.yaml").exists()
    assert not (tmp_path / "demo" / "finetune").exists()


def test_a_small_image_with_labels_is_predicted_without_validation(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = np.random.default_rng(0).integers(1, 3, (200, 200), np.uint8)
    list(api.convert(labels, tmp_path / "labels.ome.zarr", levels=(1,), chunk=64, as_labels=True))
    assert run_demo(tmp_path / "demo", "--image", str(image), "--labels",
                    str(tmp_path / "labels.ome.zarr")) == 0
    assert "training on everything instead" in capsys.readouterr().err
    prediction = api.open_pyramid(tmp_path / "demo" / "prediction.ome.zarr")
    assert prediction.spatial_shape == (200, 200)
    assert (tmp_path / "demo" / "report.png").exists()
