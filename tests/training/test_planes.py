"""Planes of a volume as the images of a 2D model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, draw_image

from napari_muvit.config import FinetuneConfig, PretrainConfig, parse_config
from napari_muvit.data.labels import ClassTable, LabelClass
from napari_muvit.data.omezarr import create_pyramid
from napari_muvit.errors import ConfigError
from napari_muvit.models.checkpoint import load_model
from napari_muvit.training import find_model, start_finetune
from napari_muvit.training.images import open_images

DEPTH = 5
PAINTED = (1, 3)
TABLE = ClassTable(
    (LabelClass(1, "rest", "#377eb8"), LabelClass(2, "disc", "#e41a1c")), unlabelled=0)


def write(path: Path, planes: np.ndarray, **options: Any) -> str:
    [array] = create_pyramid(
        path, shape=planes.shape, axes="zyx", levels=(1,), dtype=np.uint8, chunk=32, **options)
    array[:] = planes
    return str(path)


@pytest.fixture
def volume(tmp_path: Path) -> dict[str, Any]:
    """A volume whose planes 1 and 3 are painted, as options of a run."""
    drawn = [draw_image(seed) for seed in range(DEPTH)]
    labels = np.stack([labels if z in PAINTED else 0 * labels
                       for z, (_, labels) in enumerate(drawn)])
    return {
        "images": write(tmp_path / "volume.ome.zarr", np.stack([image for image, _ in drawn])),
        "labels": write(tmp_path / "labels.ome.zarr", labels, classes=TABLE),
        "output": str(tmp_path / "run"),
    }


def opened(kind: Any, options: dict[str, Any], **changed: Any) -> Any:
    return open_images(parse_config(kind, {**TINY, **options, **changed}))


def drawn_from(images: Any) -> set[int]:
    return {images.training[index]["image_index"] for index in range(40)}


def test_all_planes_with_labels_are_learnt_from(volume):
    images = opened(FinetuneConfig, volume, z="all")
    assert images.training.ndim == 2
    assert drawn_from(images) == set(PAINTED)
    sample = images.training[0]
    assert (sample["target"] >= 0).any()


def test_pretraining_takes_every_plane(volume):
    del volume["labels"]
    assert drawn_from(opened(PretrainConfig, volume, z="all")) == set(range(DEPTH))
    assert opened(PretrainConfig, volume, z=(4, 2)).pyramids[1].shape == (1, 96, 96)
    assert drawn_from(opened(PretrainConfig, volume, z=(4, 2))) == {0, 1}


@pytest.mark.parametrize("z", [3, "3", [3], ["3"]])
def test_one_plane_is_one_image(volume, z):
    images = opened(FinetuneConfig, volume, z=z)
    [plane] = images.pyramids
    assert np.array_equal(plane.level_image(1)[0], draw_image(3)[0])
    assert (images.training[0]["target"] >= 0).any()


def test_labels_of_one_plane_do_not_stand_for_others(volume, tmp_path):
    labels = tmp_path / "plane.ome.zarr"
    [array] = create_pyramid(labels, shape=(96, 96), axes="yx", levels=(1,), dtype=np.uint8,
                             chunk=32, classes=TABLE)
    array[:] = draw_image(3)[1]
    volume["labels"] = str(labels)
    assert len(opened(FinetuneConfig, volume, z=3).pyramids) == 1
    with pytest.raises(ConfigError, match="Choose the labelled plane with z"):
        opened(FinetuneConfig, volume, z="all")


@pytest.mark.parametrize("z", [-1, "some", ()])
def test_what_names_no_plane_is_refused(volume, z):
    with pytest.raises(ConfigError, match=r"^z is "):
        opened(FinetuneConfig, volume, z=z)


def test_a_run_on_painted_planes_ends_with_a_model_of_planes(volume):
    run = start_finetune({**TINY, **volume, "z": "all", "steps": 2})
    assert list(run)
    assert load_model(find_model(run.folder)).encoder.ndim == 2
