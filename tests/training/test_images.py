"""Images of a run that differ in pixel size."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import TINY

from napari_muvit.config import PretrainConfig, parse_config
from napari_muvit.data.omezarr import create_pyramid
from napari_muvit.models.checkpoint import load_model
from napari_muvit.training import find_model, start_pretrain
from napari_muvit.training.images import open_images


@pytest.fixture
def sized(tmp_path):
    """Writes images of given pixel sizes, um; None is unknown."""
    def write(*sizes):
        paths = []
        for number, size in enumerate(sizes):
            path = tmp_path / f"{len(list(tmp_path.iterdir()))}.ome.zarr"
            pixel_size = None if size is None else (size, size)
            [array] = create_pyramid(
                path, shape=(96, 96), axes="yx", levels=(1,), dtype=np.uint8, chunk=32,
                pixel_size=pixel_size)
            array[:] = np.random.default_rng(number).integers(0, 255, (96, 96))
            paths.append(str(path))
        return paths

    return write


def open_them(images, val, tmp_path):
    return open_images(parse_config(PretrainConfig, {
        **TINY, "images": images, "val": val, "output": str(tmp_path / "run")}))


def test_images_of_other_pixel_size_are_rescaled_and_that_is_said(sized, tmp_path):
    opened = open_them(sized(0.5, 0.25), sized(0.125), tmp_path)
    assert [image.match.levels for image in opened.training.samples.images] == [(1, 2), (2, 4)]
    assert opened.validation.samples.images[0].match.levels == (4, 8)
    [warning] = opened.warnings()
    assert "0.5 um, 0.25 um, 0.125 um" in warning
    assert "rescaled" in warning


def test_images_of_one_pixel_size_need_no_words(sized, tmp_path):
    opened = open_them(sized(0.5, 0.5), sized(0.5), tmp_path)
    assert opened.warnings() == []
    assert opened.validation.samples.images[0].match.levels == (1, 2)


@pytest.mark.filterwarnings("ignore:physical pixel size:napari_muvit.errors.MuvitWarning")
def test_the_model_takes_the_first_known_size(sized, tmp_path):
    run = start_pretrain({**TINY, "images": sized(None, 0.25), "steps": 1, "dim_decoder": 48,
                          "output": str(tmp_path / "run")})
    warnings = [event.message for event in run if hasattr(event, "message")]
    assert any("first one known, 0.25 um" in text for text in warnings)
    assert load_model(find_model(run.folder)).meta.pixel_size == (0.25, 0.25)
