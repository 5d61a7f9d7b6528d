"""Boxes, table, pictures and code of the Crops widget."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from napari.layers import Image

import napari_muvit as muvit
from napari_muvit.errors import InputError
from napari_muvit.geometry import is_nested
from napari_muvit.plugin import crops
from napari_muvit.plugin.layers import ChannelDisplay


@settings(deadline=None, max_examples=40)
@given(
    levels=st.sets(st.integers(1, 64), min_size=1, max_size=4).map(sorted),
    size=st.integers(1, 512), y=st.floats(-1e5, 1e5), x=st.floats(-1e5, 1e5),
)
def test_boxes_nest_around_the_centre(levels: list[int], size: int, y: float, x: float) -> None:
    boxes = crops.CropChoice(tuple(levels), size, (y, x)).boxes()
    assert is_nested(boxes)
    assert np.allclose(boxes.mean(axis=1), (y, x))
    assert np.allclose(boxes[:, 1] - boxes[:, 0], np.asarray(levels)[:, None] * size)


@pytest.mark.parametrize("text", ["1, 4, 16", "1 4 16", " 1;4;16 "])
def test_levels_as_typed(text: str) -> None:
    assert crops.parse_levels_text(text) == (1, 4, 16)
    assert crops.levels_text((1, 4, 16)) == "1, 4, 16"


@pytest.mark.parametrize("text", ["", "one", "4, 1", "0, 2"])
def test_wrong_levels_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        crops.parse_levels_text(text)


def test_table_names_pixels_and_micrometres() -> None:
    boxes = crops.CropChoice((1, 4), 64, (99.5, 199.5)).boxes()
    rows = crops.box_rows((1, 4), boxes, (0.5, 0.25))
    assert rows == [("1", "68, 168", "64", "32 × 16"), ("4", "-28, 72", "256", "128 × 64")]
    assert crops.box_rows((1, 4), boxes, None)[0][3] == "unknown"


def test_share_outside() -> None:
    image = np.array([[-0.5, -0.5], [99.5, 99.5]])
    boxes = np.array([[[10, 10], [20, 20]], [[-100.5, -0.5], [99.5, 99.5]]])
    assert crops.outside_share(boxes, image) == pytest.approx([0, 0.5])


def test_picture_shows_limits_colours_and_padding() -> None:
    image = np.array([[[0, 50], [100, 200]]], np.uint16)
    valid = np.array([[True, True], [True, False]])
    picture = crops.render_crop(image, valid, [ChannelDisplay((0, 100), (1.0, 0.0, 0.0))])
    assert picture[0, 1].tolist() == [128, 0, 0]
    assert picture[1, 0].tolist() == [255, 0, 0]
    assert picture[1, 1].tolist() == [40, 40, 40]


def test_picture_of_a_volume_has_its_section_below() -> None:
    image = np.zeros((1, 4, 32, 32), np.uint8)
    image[0, 2] = 100
    valid = np.ones((4, 32, 32), bool)
    picture = crops.render_crop(image, valid, [ChannelDisplay((0, 100), (1.0, 1.0, 1.0))])
    assert picture.shape == (32 + 1 + 4 * 2, 32, 3)
    assert (picture[:33] == 255).all()
    assert (picture[33:, 0, 0] == [0, 0, 0, 0, 255, 255, 0, 0]).all()


def test_picture_of_rgb_is_unchanged() -> None:
    image = np.random.default_rng(0).integers(0, 255, (3, 5, 7), dtype=np.uint8)
    picture = crops.render_crop(image, np.ones((5, 7), bool), ())
    assert np.array_equal(picture, np.moveaxis(image, 0, -1))


def test_levels_that_are_slow_to_average_are_named() -> None:
    assert crops.averaging_text((1, 16), 256, 1) == ""
    assert "level 32 is averaged" in crops.averaging_text((1, 32), 256, 1)
    assert crops.averaging_text((1, 32), 256, 8) == ""


def test_code_runs() -> None:
    choice = crops.CropChoice((1, 2), 16, (20.0, 30.0))
    image = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    layer = Image(image, name="tissue")
    names: dict[str, Any] = {"viewer": SimpleNamespace(layers={"tissue": layer})}
    exec(choice.code(None, layers=["tissue"]), names)
    expected = muvit.open_pyramid(image).crop(center=(20, 30), levels=(1, 2), size=16)
    assert np.array_equal(names["crop"].image, expected.image)
    both = choice.code(None, layers=["tissue", "tissue"])
    exec(both, names)
    assert names["crop"].image.shape == (2, 2, 16, 16)
