"""Normalisation: a rule is kept, each image is measured by itself."""

from __future__ import annotations

import numpy as np
import pytest

from napari_muvit.config import PretrainConfig
from napari_muvit.data import normalize
from napari_muvit.data.normalize import Normalization, NormalizationRule, measure
from napari_muvit.data.places import PlaceMap
from napari_muvit.data.pyramid import open_pyramid, pyramid_from_arrays
from napari_muvit.errors import ChannelError, InputError


def everywhere(pyramid):
    return PlaceMap.everywhere(pyramid.extent)


def test_percentiles_of_each_channel_become_0_and_1():
    image = np.random.default_rng(0).integers(100, 4000, (2, 80, 90)).astype(np.uint16)
    pyramid = pyramid_from_arrays([image], axes="cyx")
    found = measure(NormalizationRule(), pyramid, everywhere(pyramid))
    values = found.apply(image)
    assert values.dtype == np.float32
    np.testing.assert_allclose(np.percentile(values, 1.0, axis=(1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(np.percentile(values, 99.8, axis=(1, 2)), 1, atol=1e-4)
    np.testing.assert_allclose(found.undo(values), image, rtol=1e-4)
    stacked = found.apply(np.stack([image, image]))
    np.testing.assert_array_equal(stacked[1], values)


def test_only_the_foreground_counts():
    image = np.zeros((100, 100), np.uint8)
    image[:, 50:] = np.random.default_rng(0).integers(100, 200, (100, 50))
    pyramid = open_pyramid(image)
    right = PlaceMap.over(np.array([[False, True]]), pyramid.extent)
    found = measure(NormalizationRule(), pyramid, right)
    assert found.offset[0] >= 100
    assert measure(NormalizationRule(), pyramid, everywhere(pyramid)).offset[0] == 0


def test_large_images_are_sampled_in_the_foreground_and_always_alike(monkeypatch):
    monkeypatch.setattr(normalize, "WHOLE_PIXELS", 10_000)
    image = np.zeros((900, 800), np.uint16)
    image[300:500, 200:700] = np.random.default_rng(0).integers(1000, 2000, (200, 500))
    pyramid = open_pyramid(image)
    mask = np.zeros((9, 8), bool)
    mask[3:5, 2:7] = True
    places = PlaceMap.over(mask, pyramid.extent)
    found = measure(NormalizationRule(), pyramid, places)
    assert found.offset[0] == pytest.approx(1010, abs=5)
    assert found.offset[0] + found.scale[0] == pytest.approx(1998, abs=5)
    assert measure(NormalizationRule(), pyramid, places).to_dict() == found.to_dict()


def test_volumes_are_measured():
    image = np.random.default_rng(0).integers(0, 1000, (20, 30, 40)).astype(np.uint16)
    pyramid = pyramid_from_arrays([image], axes="zyx")
    found = measure(NormalizationRule(), pyramid)
    assert found.num_axes == 3
    assert found.apply(image[None]).max() == pytest.approx(1, abs=0.02)


def test_constant_images_and_pixels_that_are_no_numbers_do_no_harm():
    flat = measure(NormalizationRule(), open_pyramid(np.full((40, 40), 7, np.uint8)))
    assert flat.apply(np.full((1, 4, 4), 7, np.uint8)).max() == 0
    broken = np.random.default_rng(0).random((40, 40)).astype(np.float32)
    broken[:5] = np.nan
    found = measure(NormalizationRule(), open_pyramid(broken))
    assert np.isfinite([found.offset, found.scale]).all()
    empty = measure(NormalizationRule(), open_pyramid(np.full((8, 8), np.nan, np.float32)))
    assert (empty.scale == 1).all()


def test_a_pixel_that_is_no_number_in_one_channel_is_left_out_of_all():
    broken = np.random.default_rng(0).random((2, 40, 40)).astype(np.float32)
    broken[0, 3], broken[1, :, 5] = np.nan, np.inf
    found = measure(NormalizationRule(), open_pyramid(broken))
    assert np.isfinite([found.offset, found.scale]).all()
    assert (np.abs(found.scale - 1) < 0.1).all()


def test_whole_numbers_are_never_spread_by_less_than_one():
    image = np.zeros((25, 40), np.uint8)
    image[3, 4] = image[7, 8] = 1  # the percentile 99.8 lies between 0 and 1
    pyramid = open_pyramid(image)
    found = measure(NormalizationRule(), pyramid, PlaceMap.everywhere(pyramid.extent))
    assert found.scale.tolist() == [1.0]
    assert 0 < np.percentile(image, 99.8) < 1


def test_constant_and_none():
    pyramid = open_pyramid(np.zeros((8, 8), np.uint8))
    constant = measure(NormalizationRule("constant", constant=255.0), pyramid)
    assert constant.apply(np.full((1, 2, 2), 255, np.uint8)).max() == 1
    none = measure(NormalizationRule("none"), pyramid)
    assert none.apply(np.full((1, 2, 2), 7, np.uint8)).max() == 7


def test_large_integers_keep_their_differences():
    image = (np.arange(4).reshape(1, 2, 2) + 2**30).astype(np.uint32)
    found = Normalization(np.array([2.0**30]), np.array([3.0]))
    np.testing.assert_allclose(found.apply(image).ravel(), [0, 1 / 3, 2 / 3, 1], rtol=1e-6)


def test_an_image_is_measured_once(monkeypatch):
    pyramid = open_pyramid(np.random.default_rng(5).integers(0, 99, (64, 64)).astype(np.uint8))
    first = measure(NormalizationRule(), pyramid)
    monkeypatch.setattr(normalize, "sample_values", None)
    assert measure(NormalizationRule(), pyramid) is first


def test_rules_and_numbers_survive_a_dict():
    rule = NormalizationRule("percentile", (2.0, 98.0), 3.0)
    assert NormalizationRule.from_dict(rule.to_dict()) == rule
    numbers = Normalization(np.array([1.0]), np.array([2.0]), 3)
    assert Normalization.from_dict(numbers.to_dict()).to_dict() == numbers.to_dict()
    config = PretrainConfig(images=("a",), output="o", normalization="constant",
                            normalization_constant=10.0)
    assert NormalizationRule.from_config(config).constant == 10


def test_mistakes_are_named():
    with pytest.raises(InputError, match="percentile, constant, none"):
        NormalizationRule("log")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="ascend"):
        NormalizationRule(percentiles=(99.0, 1.0))
    with pytest.raises(ChannelError, match="3 channels"):
        Normalization(np.zeros(1), np.ones(1)).apply(np.zeros((3, 4, 4)))


@pytest.mark.parametrize("lead", [(), (2,), (3, 2)])
def test_padding_and_pixels_that_are_no_numbers_become_0(lead):
    image = np.random.default_rng(0).random((*lead, 3, 8, 9)) + 1
    valid = np.ones((*lead, 8, 9), bool)
    valid[..., 0, :] = False
    image[..., 1, 4, 5], image[..., 2, 5, 5] = np.nan, np.inf
    rule = Normalization(np.ones(3), np.full(3, 2.0))
    values, known = rule.apply_where(image, valid)
    wanted = valid.copy()
    wanted[..., 4:6, 5] = False
    np.testing.assert_array_equal(known, wanted)
    assert values.dtype == np.float32
    shown = np.broadcast_to(known[..., None, :, :], values.shape)
    assert (values[~shown] == 0).all()
    np.testing.assert_array_equal(values[shown], rule.apply(image)[shown])
    assert valid[..., 4, 5].all()  # what was given stays as it was
