"""Augmentation: pixels still lie where their box says, and nothing else moves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_muvit.config import PretrainConfig
from napari_muvit.data.augment import (
    HED_FROM_RGB,
    can_turn,
    draw_augmentation,
    jitter_boxes,
    jitter_intensity,
    jitter_stain,
    move_boxes,
    move_pixels,
)
from napari_muvit.geometry import level_scales


def options(**changes) -> PretrainConfig:
    return PretrainConfig(images=("a",), output="out", **changes)


def draw(seed=0, channels=1, levels=2, axes=2, turn=True, **changes):
    rng = np.random.default_rng(seed)
    return draw_augmentation(options(**changes), rng, levels, channels, axes, turn)


def centres(bbox, size):
    """World position of every pixel of every level, (L, *S, A)."""
    grids = []
    for low, high in bbox:
        lines = [a + (np.arange(n) + 0.5) * (b - a) / n
                 for a, b, n in zip(low, high, size, strict=True)]
        grids.append(np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1))
    return np.stack(grids)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(6, 6), (3, 6, 6), (4, 8)]))
def test_moved_pixels_and_boxes_are_one_isometry_of_the_world(seed, size):
    rng = np.random.default_rng(seed)
    num_axes = len(size)
    low = rng.uniform(-50, 50, (3, num_axes))
    bbox = np.stack([low, low + np.asarray(size) * np.array([[1], [4], [16]])], axis=1)
    one = draw_augmentation(options(), rng, 3, 1, num_axes, size[-1] == size[-2])
    before = np.moveaxis(centres(bbox, size), -1, 1)
    moved = np.moveaxis(move_pixels(one, before, num_axes), 1, -1).reshape(-1, num_axes)
    after = centres(move_boxes(one, bbox), size).reshape(-1, num_axes)
    pick = rng.integers(len(moved), size=(20, 2))
    old = np.linalg.norm(moved[pick[:, 0]] - moved[pick[:, 1]], axis=1)
    new = np.linalg.norm(after[pick[:, 0]] - after[pick[:, 1]], axis=1)
    np.testing.assert_allclose(new, old, atol=1e-9)


def test_all_eight_orientations_occur():
    array = np.arange(4).reshape(2, 2)
    seen = {tuple(move_pixels(draw(seed), array, 2).ravel()) for seed in range(100)}
    assert len(seen) == 8


def test_no_turn_of_crops_that_are_not_square():
    moved = [move_pixels(draw(seed, turn=False), np.zeros((2, 3)), 2).shape for seed in range(20)]
    assert set(moved) == {(2, 3)}
    assert not can_turn((2, 3), level_scales((1, 4), 2))
    assert not can_turn((4, 4), level_scales((1, 4), 2, (1,)))
    assert can_turn((4, 4), level_scales((1, 4), 2))


def test_options_are_independent_of_each_other():
    plain, other = draw(7), draw(7, flip=False, rotate=False, box_shift=3.0)
    np.testing.assert_array_equal(plain.gain, other.gain)
    assert other.flips == ()
    assert other.turns == 0


def test_intensity_jitter_stays_within_its_bound_and_is_shared_by_levels():
    one = draw(3, channels=2, intensity_jitter=0.1)
    image = np.ones((2, 2, 4, 4), np.float32)
    changed = jitter_intensity(one, image, 2)
    assert np.abs(changed - 1).max() <= 0.2
    np.testing.assert_array_equal(changed[0], changed[1])
    assert (jitter_intensity(draw(3, channels=2, intensity_jitter=0.0), image, 2) == image).all()


def test_box_jitter_moves_boxes_by_level_pixels_and_keeps_their_order():
    bbox = np.array([[[0, 0], [64, 64]], [[-96, -96], [160, 160]]], float)
    pixel = np.array([[1.0, 1.0], [4.0, 4.0]])
    one = draw(5, box_shift=2.0, box_scale=0.3)
    moved = jitter_boxes(one, bbox, pixel)
    np.testing.assert_allclose(moved.mean(1) - bbox.mean(1), one.shift * pixel)
    np.testing.assert_allclose(moved[:, 1] - moved[:, 0],
                               (bbox[:, 1] - bbox[:, 0]) * one.stretch)
    assert (moved[:, 1] > moved[:, 0]).all()
    np.testing.assert_array_equal(jitter_boxes(draw(5), bbox, pixel), bbox)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_stain_jitter_changes_stains_and_keeps_white(dtype):
    top = 1 if dtype == np.float32 else np.iinfo(dtype).max
    image = np.full((1, 3, 4, 4), top, dtype)
    image[:, :, :2] = np.array([0.5, 0.3, 0.6]).reshape(3, 1, 1) * top
    changed = jitter_stain(draw(1, stain_jitter=0.5), image)
    assert changed.dtype == dtype
    np.testing.assert_allclose(changed[:, :, 2:], top, atol=top * 0.01)
    assert not np.allclose(changed[:, :, :2], image[:, :, :2], atol=top * 0.01)
    np.testing.assert_array_equal(jitter_stain(draw(1), image), image)


def test_stain_matrix_is_that_of_scikit_image():
    from skimage.color.colorconv import hed_from_rgb

    np.testing.assert_allclose(HED_FROM_RGB, hed_from_rgb, atol=1e-6)
