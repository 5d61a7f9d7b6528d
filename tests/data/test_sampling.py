"""Random nested crops: nested, on their grids, inside the image, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_muvit.data.places import PlaceMap
from napari_muvit.data.pyramid import pyramid_from_arrays
from napari_muvit.data.sampling import (
    LevelGrids,
    draw_corners,
    image_weights,
    is_due,
    level_grids,
    sample_rng,
    split_blocks,
)
from napari_muvit.errors import InputError
from napari_muvit.geometry import crop_extents, is_nested


def grids(levels=(1, 4, 16), size=16, axes=2):
    factor = crop_extents(levels, 1, axes)
    return LevelGrids(factor, np.full_like(factor, -0.5), (size,) * axes)


def boxes(corners, grid):
    return np.stack([corners, corners + grid.extents], axis=1)


ratios = st.lists(st.floats(1.3, 8), min_size=0, max_size=3)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), ratios, st.integers(2, 40), st.integers(20, 3000),
       st.integers(20, 3000), st.booleans())
def test_crops_are_nested_and_inside_where_they_fit(seed, steps, size, height, width, pointed):
    rng = np.random.default_rng(seed)
    levels = np.cumprod([1.0, *steps])
    # Coarse arrays need not begin on the image's edge: half of them are shifted.
    factor = np.repeat(levels[:, None], 2, axis=1)
    lower = -0.5 + rng.integers(0, 2, (len(levels), 1)) * rng.random((len(levels), 2)) * factor
    lower[0] = -0.5
    grid = LevelGrids(factor, lower, (size, size))
    bounds = np.array([[-0.5, -0.5], [height - 0.5, width - 0.5]])
    point = bounds[0] + rng.random(2) * (bounds[1] - bounds[0]) if pointed else None
    corners = draw_corners(rng, grid, bounds, point)
    found = boxes(corners, grid)
    on_grid = (corners - grid.lower) / grid.factor
    np.testing.assert_allclose(on_grid, np.rint(on_grid), atol=1e-6)
    widen = factor[1:] - factor[:-1]
    if np.all(widen * size >= factor[1:]):
        assert is_nested(found, 1e-6)
    fits = np.all(grid.extents[0] <= bounds[1] - bounds[0])
    if fits:
        assert (found[0, 0] >= bounds[0] - 1e-6).all()
        assert (found[0, 1] <= bounds[1] + 1e-6).all()


def test_coarse_crops_stay_inside_the_image_where_they_can():
    bounds = np.array([[-0.5, -0.5], [399.5, 511.5]])
    for seed in range(50):
        found = boxes(draw_corners(np.random.default_rng(seed), grids(), bounds), grids())
        assert (found[:, 0] >= bounds[0]).all()
        assert (found[:, 1] <= bounds[1]).all()


def test_crops_are_not_centred_on_each_other_and_reach_every_place():
    bounds = np.array([[-0.5, -0.5], [255.5, 255.5]])
    rng = np.random.default_rng(0)
    drawn = np.stack([draw_corners(rng, grids((1, 4)), bounds) for _ in range(2000)])
    inside = drawn[:, 0] - drawn[:, 1]
    assert inside.min() == 0
    assert inside.max() == 48
    assert drawn[:, 0].min() == -0.5
    assert drawn[:, 0].max() == 239.5
    assert np.abs(drawn[:, 0].mean(axis=0) - 119.5).max() < 6


def test_images_smaller_than_the_crop_are_centred():
    bounds = np.array([[-0.5, -0.5], [7.5, 7.5]])
    corners = draw_corners(np.random.default_rng(0), grids((1,)), bounds)
    assert corners.tolist() == [[-4.5, -4.5]]


def test_a_point_is_in_the_middle_or_anywhere_within():
    bounds = np.array([[-0.5, -0.5], [999.5, 999.5]])
    point = np.array([500.2, 300.7])
    middle = draw_corners(np.random.default_rng(0), grids(), bounds, point, "centre")
    assert np.abs(middle[0] + 8 - point).max() <= 1
    rng = np.random.default_rng(0)
    within = np.stack([draw_corners(rng, grids(), bounds, point, "within")[0] for _ in range(300)])
    offset = point - within
    assert (offset > -1).all()
    assert (offset < 17).all()
    assert np.ptp(offset, axis=0).min() > 12


def test_the_finest_crop_stays_in_its_block():
    bounds = np.array([[-0.5, -0.5], [999.5, 999.5]])
    block = np.array([[-0.5, -0.5], [99.5, 99.5]])
    for seed in range(20):
        corners = draw_corners(np.random.default_rng(seed), grids(), bounds, block=block)
        assert (corners[0] + 16 <= 99.5).all()


def test_grids_are_those_that_crops_are_read_on():
    image = np.zeros((301, 450), np.uint8)
    pyramid = pyramid_from_arrays([image, image[:150 * 2:2, ::2]])
    found = level_grids(pyramid, (1, 2, 8), 16)
    corners = draw_corners(np.random.default_rng(0), found, np.asarray(pyramid.extent))
    crop = pyramid.crop(corner=corners, levels=(1, 2, 8), size=16)
    np.testing.assert_allclose(crop.bbox, boxes(corners, found))
    assert found.factor[1, 0] == pytest.approx(301 / 150)


def test_samples_depend_on_seed_stream_and_index_alone():
    one = sample_rng(1, 0, 5).random(3)
    np.testing.assert_array_equal(one, sample_rng(1, 0, 5).random(3))
    for other in ((2, 0, 5), (1, 1, 5), (1, 0, 6)):
        assert not np.array_equal(one, sample_rng(*other).random(3))


@given(st.floats(0, 1), st.integers(1, 300))
def test_at_least_the_share_is_due(share, count):
    due = sum(is_due(i, share) for i in range(count))
    assert due >= int(share * count)
    assert due <= share * count + 1


def test_images_are_weighted_by_area_or_equally():
    np.testing.assert_allclose(image_weights([30, 10, 0], "area"), [0.75, 0.25, 0])
    np.testing.assert_allclose(image_weights([30, 10, 0], "equal"), [0.5, 0.5, 0])
    with pytest.raises(InputError, match="tissue to none"):
        image_weights([0, 0], "area")


@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("shape", [(400, 1000), (1000, 400)])
def test_no_training_crop_sees_the_validation_block(shape, at_end):
    bounds = np.array([[-0.5, -0.5], [shape[0] - 0.5, shape[1] - 0.5]])
    grid = grids()
    blocks = split_blocks(PlaceMap.everywhere(bounds), 0.2, grid.extents[-1], grid.extents[0],
                          at_end)
    assert blocks is not None
    axis = int(np.argmax(shape))
    share = (blocks.val[1, axis] - blocks.val[0, axis]) / shape[axis]
    assert share == pytest.approx(0.2, abs=0.01)
    for seed in range(100):
        rng = np.random.default_rng(seed)
        found = boxes(draw_corners(rng, grid, bounds, block=blocks.train), grid)
        overlap = np.minimum(found[:, 1], blocks.val[1]) - np.maximum(found[:, 0], blocks.val[0])
        assert (overlap.min(axis=1) <= 1e-9).all()


def test_the_validation_block_holds_its_share_of_the_annotations():
    bounds = np.array([[-0.5, -0.5], [99.5, 999.5]])
    mask = np.zeros((10, 100), bool)
    mask[:, 30:50] = True
    blocks = split_blocks(PlaceMap.over(mask, bounds), 0.25, np.array([40.0, 40]),
                          np.array([20.0, 20]))
    assert blocks is not None
    assert blocks.val[0, 1] == pytest.approx(449.5)
    assert blocks.train[1, 1] == pytest.approx(409.5)


def test_images_too_small_for_both_blocks_are_not_cut():
    bounds = np.array([[-0.5, -0.5], [255.5, 255.5]])
    grid = grids()
    assert split_blocks(PlaceMap.everywhere(bounds), 0.2, grid.extents[-1], grid.extents[0]) is None


@pytest.mark.parametrize("at_end", [True, False])
def test_the_validation_block_holds_at_least_one_crop(at_end):
    bounds = np.array([[-0.5, -0.5], [399.5, 999.5]])
    grid = grids((1, 4))
    blocks = split_blocks(PlaceMap.everywhere(bounds), 0.001, grid.extents[-1], grid.extents[0],
                          at_end)
    assert blocks is not None
    assert blocks.val[1, 1] - blocks.val[0, 1] == 16
    apart = (blocks.val[0] - blocks.train[1], blocks.train[0] - blocks.val[1])[0 if at_end else 1]
    assert apart[1] == 64


def test_a_coarse_crop_holds_the_finer_one_rather_than_stay_inside_the_image():
    # an image hardly larger than the coarse crop, whose pixels begin outside it
    factor = np.array([[1.0, 1.0], [1.3, 1.3]])
    grid = LevelGrids(factor, np.array([[-0.5, -0.5], [-1.3, -1.3]]), (16, 16))
    bounds = np.array([[-0.5, -0.5], [20.5, 20.5]])
    for seed in range(60):
        corners = draw_corners(np.random.default_rng(seed), grid, bounds)
        assert is_nested(boxes(corners, grid), 1e-6)
