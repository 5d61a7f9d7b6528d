"""What was made from images is not offered as an image, or as labels, to learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from napari_muvit.plugin import features, features_layers, predict
from napari_muvit.plugin.image_choices import ImageChoice
from napari_muvit.plugin.layers import resolve_image
from napari_muvit.plugin.predict_layers import add_prediction
from napari_muvit.plugin.preview_layer import show_preview


def items(picker: Any) -> list[str]:
    return [picker._combo.itemText(index) for index in range(picker._combo.count())]


def test_results_are_not_offered(
    viewer: Any, open_widget: Any, backend: Any, tmp_path: Path
) -> None:
    layer = viewer.add_image(np.zeros((64, 80), np.uint8), name="tissue")
    viewer.add_labels(np.zeros((64, 80), np.uint8), name="painted")
    image = resolve_image(ImageChoice("tissue", (layer,)), backend, (0, 0))
    region = predict.plan_region(np.array([[-0.5, -0.5], [63.5, 79.5]]), (8, 10), 8.0)
    found = features.FeatureMap(1, np.random.default_rng(0).normal(0, 1, (6, 8, 10)), region)
    for mode in features.MODES:
        painting = features.Painter().paint([found], mode, 2)[0]
        features_layers.show_painting(viewer, image, painting).name = mode
    features_layers.show_alike(viewer, image, found, np.ones(6))
    part = features.AttendedLevel(
        1, 1.0, np.ones((8, 10), np.float32), np.full(2, 8.0), np.full(2, 3.5))
    features_layers.show_attended(viewer, image, part)
    Image.fromarray(np.zeros((4, 8, 3), np.uint8)).save(tmp_path / "1.png")
    show_preview(viewer, "run", tmp_path / "1.png")
    add_prediction(viewer, np.zeros((64, 80), np.uint8), "predicted", image, 1.0, 0.0, None)
    assert len(viewer.layers) == 8
    tuning = open_widget("MuViT: Fine-tune")
    assert items(tuning.sources.image) == ["tissue"]
    assert items(tuning.sources.labels) == ["painted"]
    for name in ("Crops", "Predict", "Features", "Annotate"):
        assert items(open_widget(f"MuViT: {name}").picker) == ["tissue"]
