"""A tiny image with labels, as OME-Zarr, and configs that train on it in seconds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from napari_muvit.data.labels import ClassTable, LabelClass
from napari_muvit.data.omezarr import create_pyramid

sys.path.insert(0, str(Path(__file__).parent))  # for training_stub, whatever the import mode


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny products are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SIDE = 96
LEVELS = (1, 2)


def draw_image(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """An image (SIDE, SIDE) of bright discs, and labels: 1 outside, 2 inside, 0 not judged."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    labels = np.ones((SIDE, SIDE), np.uint8)
    for y, x in rng.uniform(8, SIDE - 8, (14, 2)):
        labels[(rows - y) ** 2 + (columns - x) ** 2 < 49] = 2
    image = 60 + 100 * (labels == 2) + rng.normal(0, 12, labels.shape)
    labels[:, : SIDE // 8] = 0
    return image.clip(0, 255).astype(np.uint8), labels


def write_pyramid(path: Path, image: np.ndarray, **options: Any) -> None:
    """Write a 2D array at levels 1 and 2."""
    arrays = create_pyramid(
        path, shape=image.shape, axes="yx", levels=LEVELS, dtype=image.dtype, chunk=32, **options)
    for array, level in zip(arrays, LEVELS, strict=True):
        array[:] = image[::level, ::level]


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> dict[str, str]:
    """Paths of two images and their labels."""
    folder = tmp_path_factory.mktemp("images")
    table = ClassTable(
        (LabelClass(1, "rest", "#377eb8"), LabelClass(2, "disc", "#e41a1c")), unlabelled=0,
        background=1)
    paths = {}
    for name, seed in (("a", 0), ("b", 1)):
        image, labels = draw_image(seed)
        write_pyramid(folder / f"{name}.ome.zarr", image)
        write_pyramid(folder / f"{name}_labels.ome.zarr", labels, classes=table)
        paths[name] = str(folder / f"{name}.ome.zarr")
        paths[f"{name}_labels"] = str(folder / f"{name}_labels.ome.zarr")
    return paths


TINY: dict[str, Any] = {
    "levels": (1, 2), "crop_size": 16, "preset": "tiny", "dim": 48, "num_layers": 2, "heads": 2,
    "patch_size": 4, "steps": 6, "batch_size": 2, "checkpoint_every": 2, "validate_every": 3,
    "preview_every": 3, "val_samples": 4, "device": "cpu", "tissue": "none", "threads": 1,
}


@pytest.fixture
def pretrain_options(images, tmp_path) -> dict[str, Any]:
    """Options of a tiny pretraining run."""
    return {**TINY, "images": [images["a"]], "val": [images["b"]],
            "output": str(tmp_path / "pre"), "dim_decoder": 48}


@pytest.fixture
def finetune_options(images, tmp_path) -> dict[str, Any]:
    """Options of a tiny fine-tuning run."""
    return {**TINY, "images": [images["a"]], "labels": [images["a_labels"]],
            "val": [images["b"]], "val_labels": [images["b_labels"]],
            "output": str(tmp_path / "fine")}
