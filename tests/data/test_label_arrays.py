"""Setting labels at any level, and coarse arrays that agree with the fine one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from napari_muvit.data.label_arrays import LabelArrays, most_frequent, parse_level, store_levels
from napari_muvit.data.stroke_log import Change, trim_change
from napari_muvit.errors import InputError


def make_arrays(shape: Sequence[int], num_levels: int = 3, chunk: int = 8) -> LabelArrays:
    scaled = (len(shape) - 2, len(shape) - 1)
    group = zarr.create_group(zarr.storage.MemoryStore())
    arrays = []
    for i in range(num_levels):
        size = [-(-n // 2**i) if a in scaled else n for a, n in enumerate(shape)]
        chunks = [min(chunk, n) if a in scaled else 1 for a, n in enumerate(size)]
        arrays.append(group.create_array(str(i), shape=size, chunks=chunks, dtype="u1"))
    return LabelArrays(arrays, [2**i for i in range(num_levels)], scaled)


def apply(arrays: LabelArrays, change: Change) -> list[tuple[Change, Change]]:
    return [pair for pairs in arrays.apply([change]) for pair in pairs]


def brute_most_frequent(labels: NDArray[np.uint8], ratio: tuple[int, int]) -> NDArray[np.uint8]:
    height, width = -(-labels.shape[0] // ratio[0]), -(-labels.shape[1] // ratio[1])
    result = np.zeros((height, width), np.uint8)
    for y, x in np.ndindex(height, width):
        block = labels[y * ratio[0] : (y + 1) * ratio[0], x * ratio[1] : (x + 1) * ratio[1]]
        counts = Counter(v for v in block.ravel().tolist() if v)
        if counts:
            result[y, x] = min(counts, key=lambda v: (-counts[v], v))
    return result


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 17), st.integers(1, 17),
       st.integers(1, 5), st.integers(1, 5))
def test_most_frequent_equals_counting(seed: int, height: int, width: int, a: int, b: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 4, (height, width)).astype(np.uint8)
    found = most_frequent(labels, (a, b))
    np.testing.assert_array_equal(found, brute_most_frequent(labels, (a, b)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 3, 4, 6, 10]))
def test_change_sets_exactly_the_pixels_below_it(seed: int, level: int) -> None:
    rng = np.random.default_rng(seed)
    arrays = make_arrays((21, 30))
    base = rng.integers(0, 3, (21, 30)).astype(np.uint8)
    arrays.arrays[0][...] = base
    list(arrays.update_coarse([((0, 0), (21, 30))]))
    grid = arrays.level_shape(level)
    mask = rng.random(grid) < 0.2
    labels = rng.integers(0, 5, grid).astype(np.uint8)
    change = trim_change(level, (0, 0), mask, labels)
    if change is None:
        return
    pairs = apply(arrays, change)
    big = np.ix_(np.arange(21) // level, np.arange(30) // level)
    expected = np.where(mask[big], labels[big], base)
    np.testing.assert_array_equal(arrays.arrays[0][...], expected)
    for index in (1, 2):
        finer = np.asarray(arrays.arrays[index - 1][...])
        np.testing.assert_array_equal(arrays.arrays[index][...],
                                      brute_most_frequent(finer, (2, 2)))
    # What is told as changed is all that changed, and leads back.
    back = expected.copy()
    for before, after in pairs:
        cut = tuple(slice(s, s + n) for s, n in zip(after.start, after.mask.shape, strict=True))
        assert (back[cut][after.mask] == after.values()).all()
        back[cut][before.mask] = before.values()
    np.testing.assert_array_equal(back, base)
    assert apply(arrays, change) == []


def test_replay_mends_coarse_arrays_that_a_crash_left_behind() -> None:
    arrays = make_arrays((16, 16))
    change = Change(1, (2, 2), np.ones((4, 4), bool), 3)
    arrays.arrays[0][2:6, 2:6] = 3
    assert not np.any(arrays.arrays[1][...])
    assert apply(arrays, change) == []
    assert np.any(arrays.arrays[1][...])
    assert np.any(arrays.arrays[2][...])


def test_change_over_the_border_is_cut() -> None:
    arrays = make_arrays((10, 10))
    apply(arrays, Change(4, (1, 1), np.ones((5, 5), bool), 1))
    found = np.asarray(arrays.arrays[0][...])
    assert found[4:, 4:].all()
    assert found.sum() == 36
    apply(arrays, Change(1, (20, 20), np.ones((2, 2), bool), 1))
    np.testing.assert_array_equal(arrays.arrays[0][...], found)


def test_read_pads_with_unlabelled_outside() -> None:
    arrays = make_arrays((10, 10))
    arrays.arrays[0][...] = 1
    list(arrays.update_coarse([((0, 0), (10, 10))]))
    block = arrays.read(2, (-1, 3), (4, 4))
    np.testing.assert_array_equal(block, [[0] * 4, [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]])
    assert not arrays.read(1, (50, 50), (3, 3)).any()


def test_volumes_keep_their_planes_apart() -> None:
    arrays = make_arrays((3, 16, 16))
    apply(arrays, Change(2, (1, 2, 2), np.ones((1, 3, 3), bool), 5))
    found = np.asarray(arrays.arrays[0][...])
    assert not found[0].any()
    assert not found[2].any()
    assert (found[1, 4:10, 4:10] == 5).all()
    assert np.asarray(arrays.arrays[2][...])[1].any()


def test_levels_reach_down_to_an_overview() -> None:
    assert store_levels((300, 200), (0, 1)) == [1]
    assert store_levels((100_000, 513), (0, 1))[-1] == 256
    assert store_levels((5000, 513, 200), (1, 2)) == [1, 2]


@pytest.mark.parametrize("level", [0, 1.5, 4096])
def test_levels_that_cannot_be_painted_are_refused(level: float) -> None:
    with pytest.raises(InputError, match="whole downsampling factors"):
        parse_level(level, (100, 200), (0, 1))
