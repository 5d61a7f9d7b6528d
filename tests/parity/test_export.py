"""What `export` writes from a run of ours, the official package reads as the same model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from napari_muvit import api
from napari_muvit.config import FinetuneConfig, PretrainConfig
from napari_muvit.models.checkpoint import ModelMeta, save_model
from napari_muvit.models.factory import build_mae, build_segmenter

pytestmark = pytest.mark.parity
OPTIONS: dict[str, Any] = {
    "images": ("a",), "levels": (1, 4), "crop_size": 32, "preset": "tiny", "num_layers": 2,
    "token_coordinates": "span", "attention_mode": "all",
}


@pytest.mark.parametrize("kind", ["mae", "segmenter"])
def test_an_exported_run_is_the_same_model_there(
    official: SimpleNamespace, tmp_path: Path, kind: str
) -> None:
    torch.manual_seed(0)
    if kind == "mae":
        config = PretrainConfig(output="o", decoder_context="all", **OPTIONS)
        model = build_mae(config, in_channels=2, ndim=2)
        reader = official.MuViTMAE2d
    else:
        tuned = FinetuneConfig(output="o", labels=("b",), **OPTIONS)
        model = build_segmenter(tuned, in_channels=2, ndim=2, num_classes=3)
        reader = official.MuViTEncoder2d
    save_model(tmp_path / "model", model, ModelMeta(kind))
    api.export(tmp_path / "model", tmp_path / "folder", format="official")
    theirs = reader.from_folder(tmp_path / "folder")
    encoder = theirs.encoder if kind == "mae" else theirs
    image = torch.randn(1, 2, 2, 32, 32)
    boxes = torch.tensor([[[[84.0, 84.0], [116.0, 116.0]], [[36.0, 36.0], [164.0, 164.0]]]])
    with torch.no_grad():
        found = encoder.eval()(image, boxes)[0]
        expected = model.encoder.eval()(image, boxes)[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)
