"""Tiles cover the output exactly once, their contexts nest and are shared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_muvit.errors import InputError
from napari_muvit.geometry import is_nested
from napari_muvit.inference.tiles import TilePlan, choose_block, tile_step


def make_plan(shape, size, overlap=0.25, levels=(1,), blend=True, multiple=1, block=None):
    ndim = len(shape)
    step = tile_step(size, overlap, multiple)
    scales = tuple((float(level),) * ndim for level in levels)
    lowers = ((-0.5,) * ndim,) * len(levels)
    extent = ((-0.5,) * ndim, tuple(n * levels[0] - 0.5 for n in shape))
    block = block or choose_block(step, shape, 8, least=4 * max(step))
    return TilePlan(tuple(map(float, levels)), scales, lowers, extent, shape, size, step, block,
                    blend)


@st.composite
def plans(draw):
    ndim = draw(st.integers(1, 3))
    shape = tuple(draw(st.integers(1, 40)) for _ in range(ndim))
    size = tuple(draw(st.integers(1, 16)) for _ in range(ndim))
    overlap = draw(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.7]))
    plan = make_plan(shape, size, overlap, blend=draw(st.booleans()))
    return replace(plan, is_soft=draw(st.booleans()))


@settings(max_examples=150, deadline=None)
@given(plans())
def test_weights_sum_to_one_everywhere(plan):
    whole = tuple(slice(0, n) for n in plan.shape)
    total = np.zeros(plan.shape)
    for index in plan.tiles_in(whole):
        target, source, weights = plan.overlap(index, whole)
        part = np.ones([s.stop - s.start for s in source])
        for axis, weight in enumerate(weights):
            part *= weight.reshape([-1 if a == axis else 1 for a in range(plan.ndim)])
        total[target] += part
    np.testing.assert_allclose(total, 1, atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(plans())
def test_cores_cells_and_blocks_cover_every_pixel_once(plan):
    def covered(indices, region_of):
        count = np.zeros(plan.shape, int)
        for index in indices:
            count[region_of(index)] += 1
        return count

    for counts in (
        covered(np.ndindex(plan.num_tiles), plan.core),
        covered(np.ndindex(plan.num_cells), plan.cell_region),
        covered(np.ndindex(plan.num_blocks), plan.block_region),
        covered(plan.block_order(2), plan.block_region),
    ):
        assert (counts == 1).all()


@settings(max_examples=100, deadline=None)
@given(plans(), st.randoms(use_true_random=False))
def test_tiles_needed_are_those_with_weight_on_wanted_cells(plan, random):
    wanted = np.array([random.random() < 0.3 for _ in range(int(np.prod(plan.num_cells)))])
    wanted = wanted.reshape(plan.num_cells)
    expected = np.zeros(plan.num_tiles, bool)
    for cell in np.argwhere(wanted):
        for index in plan.tiles_in(plan.cell_region(tuple(cell))):
            expected[index] = True
    np.testing.assert_array_equal(plan.tiles_needed(wanted), expected)


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(st.integers(8, 700), st.integers(8, 700)),
    st.sampled_from([(1,), (1, 4), (1, 8, 32), (2, 4), (8, 32), (1, 1.5, 9.7)]),
    st.sampled_from([16, 32]),
)
def test_coarser_crops_hold_the_finer_ones(shape, levels, size):
    plan = make_plan(shape, (size, size), levels=levels)
    extent = np.array(plan.extent)
    for index in np.ndindex(plan.num_tiles):
        tile = plan.tile(index)
        extents = np.array(plan.scales) * size
        boxes = np.stack([tile.corners, tile.corners + extents], axis=1)
        # snapping to a coarse grid may cost half a coarse pixel where the image ends
        assert is_nested(boxes, tolerance=0.5 * levels[-1] + 1e-6)
        centred = boxes.mean(axis=1)
        for finer, coarser in zip(range(len(levels)), range(1, len(levels)), strict=False):
            slack = (extents[coarser] - extents[finer]) / 2
            assert (np.abs(centred[finer] - centred[coarser]) <= slack + levels[-1]).all()
        for level in range(1, len(levels)):
            inside = (extent[1] - extent[0]) >= extents[level]
            low = boxes[level, 0] >= extent[0] - 1e-6
            assert (low | ~inside).all()


def test_neighbours_share_contexts():
    plan = make_plan((4096, 4096), (256, 256), levels=(1, 8, 32))
    contexts = {plan.tile(index).context for index in np.ndindex(plan.num_tiles)}
    assert np.prod(plan.num_tiles) / len(contexts) > 12
    assert len({context[1] for context in contexts}) == 1  # 32 * 256 px hold the whole image


def test_context_stays_inside_the_image_and_centres_on_small_ones():
    for side in (4096, 4100):
        plan = make_plan((side, side), (256, 256), levels=(1, 8, 32))
        corner = plan.tile((0, 0)).corners
        np.testing.assert_allclose(corner[1], -0.5)  # level 8 fits: it begins with the image
        middle = corner[2] + 32 * 128
        np.testing.assert_allclose(middle, (side - 1) / 2, atol=16)  # level 32 does not: centred


def test_plans_do_not_depend_on_what_is_asked():
    plan = make_plan((1000, 700), (64, 64))
    whole = plan.tiles_in((slice(0, 1000), slice(0, 700)))
    part = plan.tiles_in((slice(300, 420), slice(10, 90)))
    assert set(part) < set(whole)
    assert part == [index for index in whole if index in set(part)]


@pytest.mark.parametrize("overlap", [-0.1, 0.95, 1])
def test_refuses_overlaps_that_never_advance(overlap):
    with pytest.raises(InputError, match="overlap is"):
        tile_step((64, 64), overlap)


def test_step_is_a_multiple_and_never_more_than_asked():
    assert tile_step((256, 256), 0.25) == (192, 192)
    assert tile_step((100, 100), 0.25) == (72, 72)
    assert tile_step((64, 64), 0.0) == (64, 64)
    assert tile_step((4, 64), 0.25) == (3, 48)


def test_blocks_are_large_in_the_plane_and_fit_memory():
    assert choose_block((192, 192), (10**5, 10**5), 20) == (1152, 1152)
    assert choose_block((192, 192), (500, 300), 20) == (576, 384)
    block = choose_block((16, 96, 96), (200, 10**4, 10**4), 8)
    assert block[0] == 16
    assert block[1] >= 1024
    small = choose_block((192, 192), (10**5, 10**5), 4000)
    assert np.prod(small) * 4000 <= 192 * 2**20


def test_planning_a_huge_image_costs_next_to_nothing():
    plan = make_plan((200_000, 200_000), (256, 256), levels=(1, 8, 32), multiple=8,
                     block=(1152, 1152))
    assert plan.num_tiles == (1042, 1042)
    needed = plan.tiles_needed(np.ones(plan.num_cells, bool))
    assert needed.all()
    assert len(plan.tiles_in(plan.block_region((100, 100)))) == 49


@settings(max_examples=60, deadline=None)
@given(plans())
def test_unblended_tiles_hold_their_own_cell(plan):
    plain = replace(plan, blend=False, is_soft=False)
    assert plain.num_tiles == plain.num_cells
    for index in np.ndindex(plain.num_tiles):
        assert plain.reach(index) == plain.cell_region(index) == plain.core(index)
        start = plain.tile(index).start
        for first, cell, size in zip(start, plain.cell_region(index), plain.size, strict=True):
            assert first <= cell.start
            assert cell.stop <= first + size


def test_the_rim_of_a_tile_has_no_weight():
    weights = make_plan((96,), (32,), overlap=0.5).weights[0]
    seen = weights > 0
    assert seen[0].tolist() == [True] * 30 + [False] * 2  # an eighth of 16 px
    assert seen[1].tolist() == [False] * 2 + [True] * 28 + [False] * 2
    assert seen[-1].tolist() == [False] * 2 + [True] * 30


def test_finer_crops_lie_in_the_middle_half_of_their_context():
    plan = make_plan((4096, 4096), (256, 256), levels=(1, 8))
    slack, found = 7 * 256, 0
    for index in np.ndindex(plan.num_tiles):
        finer, coarser = plan.tile(index).corners
        free = (coarser > -0.5) & (coarser + 8 * 256 < 4095.5)
        inside = (finer - coarser)[free]
        assert ((inside >= slack / 4 - 8) & (inside <= slack * 3 / 4 + 8)).all()
        found += free.sum()
    assert found > 50


def test_context_stays_inside_where_its_pixels_begin_outside():
    plan = replace(make_plan((4096, 4096), (256, 256), levels=(1, 8)),
                   lowers=((-0.5, -0.5), (-3.5, -3.5)))
    for index in list(np.ndindex(plan.num_tiles))[1:]:
        finer, coarser = plan.tile(index).corners
        can = finer >= 4.5  # else holding the finer crop comes first
        assert (coarser >= np.where(can, -0.5, -3.5)).all()


@settings(max_examples=60, deadline=None)
@given(plans())
def test_tiles_in_a_region_have_weight_there(plan):
    for block in np.ndindex(plan.num_blocks):
        region = plan.block_region(block)
        for index in plan.tiles_in(region):
            _, _, weights = plan.overlap(index, region)
            assert all((weight > 0).any() for weight in weights)
            ends = zip(plan.reach(index), plan.shape, strict=True)
            assert all(part.start >= 0 and part.stop <= n for part, n in ends)
