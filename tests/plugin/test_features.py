"""Colours, groups and likeness of features."""

from __future__ import annotations

import numpy as np
import pytest

from napari_muvit.plugin import features, predict

RNG = np.random.default_rng(0)


def two_kinds() -> np.ndarray:
    """Features (6, 8, 10) of two kinds of patches: left and right."""
    values = RNG.normal(0, 0.05, (6, 8, 10)).astype(np.float32)
    values[0, :, :6] += 3
    values[1, :, 6:] += 3
    return values


def test_groups_find_the_two_kinds() -> None:
    found = features.groups(two_kinds(), 2)
    assert np.all(found[:, :6] == 1)
    assert np.all(found[:, 6:] == 2)


def test_more_groups_than_patches() -> None:
    assert features.groups(np.ones((3, 1, 2), np.float32), 5).shape == (1, 2)


def test_colours_tell_the_two_kinds_apart() -> None:
    colours = features.pca_colours(two_kinds()).astype(float)
    assert colours.shape == (8, 10, 3)
    assert abs(colours[:, :6, 0].mean() - colours[:, 6:, 0].mean()) > 200


def test_likeness_is_one_at_the_place_and_low_elsewhere() -> None:
    similarity = features.likeness(two_kinds(), (2, 3))
    assert similarity[2, 3] == pytest.approx(1, abs=1e-5)
    assert similarity[:, :6].min() > 0.9
    assert similarity[:, 6:].max() < 0.2


def test_patch_at_a_place() -> None:
    region = predict.plan_region(np.array([[63.5, 31.5], [191.5, 159.5]]), (40, 40), 8.0)
    found = features.FeatureMap(1, np.zeros((2, 16, 16), np.float32), region)
    assert found.patch_at((64, 32)) == (0, 0)
    assert found.patch_at((79.4, 55.4)) == (1, 2)
    assert found.patch_at((10, 10)) is None
