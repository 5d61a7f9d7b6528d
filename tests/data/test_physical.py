"""A model meets images of another pixel size."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from napari_muvit.data.physical import match_pixel_size
from napari_muvit.data.pyramid import Pyramid, open_pyramid, pyramid_from_arrays
from napari_muvit.errors import InputError, MuvitWarning

IMAGE = np.random.default_rng(0).integers(0, 255, (256, 256)).astype(np.uint8)


def sized(*pixel_size: float) -> Pyramid:
    return pyramid_from_arrays([IMAGE], axes="yx", pixel_size=pixel_size)


def test_a_finer_image_is_read_at_coarser_levels() -> None:
    pyramid = sized(0.25, 0.25)
    match = match_pixel_size((1, 8), (0.5, 0.5), pyramid)
    assert match.levels == (2.0, 16.0)
    assert match.scale == (0.5, 0.5)
    crop = pyramid.crop(center=(100, 60), levels=match.levels, size=8)
    boxes = match.to_model(crop.bbox)
    np.testing.assert_allclose(boxes[:, 1] - boxes[:, 0], [[8, 8], [64, 64]])
    np.testing.assert_array_equal(crop.image[0], open_pyramid(IMAGE).crop(
        center=(100, 60), levels=2, size=8).image[0])


def test_a_coarser_image_is_magnified_with_a_warning() -> None:
    with pytest.warns(MuvitWarning, match="magnified"):
        match = match_pixel_size((1, 4), (0.5, 0.5), sized(1.0, 1.0))
    assert match.levels == (0.5, 2.0)
    crop = sized(1.0, 1.0).crop(center=(100, 100), levels=match.levels, size=8)
    np.testing.assert_allclose(crop.bbox[0, 1] - crop.bbox[0, 0], 4)


def test_the_same_size_changes_nothing() -> None:
    for pixel_size in ((0.5, 0.5), (0.504, 0.498)):
        match = match_pixel_size((1, 8), (0.5, 0.5), sized(*pixel_size))
        assert match.scale == (1.0, 1.0)
        assert match.levels == (1, 8)


def test_unknown_sizes_warn_when_one_is_known() -> None:
    with pytest.warns(MuvitWarning, match="the image has none"):
        assert match_pixel_size((1, 8), (0.5, 0.5), open_pyramid(IMAGE)).scale == (1.0, 1.0)
    with pytest.warns(MuvitWarning, match="trained without one"):
        assert match_pixel_size((1, 8), None, sized(0.5, 0.5)).scale == (1.0, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert match_pixel_size((1, 8), None, open_pyramid(IMAGE)).scale == (1.0, 1.0)


def test_only_scaled_axes_decide() -> None:
    volume = pyramid_from_arrays([np.zeros((8, 64, 64))], axes="zyx", pixel_size=(2.0, 0.25, 0.25))
    match = match_pixel_size((1, 4), (1.0, 0.5, 0.5), volume)
    assert match.levels == (2.0, 8.0)
    assert match.scale == (2.0, 0.5, 0.5)
    same = match_pixel_size((1, 4), (1.0, 0.25, 0.25), volume)
    assert same.levels == (1, 4)
    assert same.scale == (2.0, 1.0, 1.0)


def test_axes_must_agree() -> None:
    with pytest.raises(InputError, match="3 axes"):
        match_pixel_size((1, 4), (1.0, 0.5, 0.5), sized(0.5, 0.5))
