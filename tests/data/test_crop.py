"""Crops are where they say they are, at any ratio, and missing levels equal stored ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_muvit.data.convert import convert
from napari_muvit.data.crop import plan_level
from napari_muvit.data.omezarr import create_pyramid
from napari_muvit.data.pyramid import Pyramid, open_pyramid, pyramid_from_arrays
from napari_muvit.errors import InputError
from napari_muvit.geometry import is_nested, pixel_to_world, world_to_pixel

RNG = np.random.default_rng(7)
NOISE = RNG.integers(0, 256, (2, 120, 90)).astype(np.uint8)


def sampled(places: Any, blob: np.ndarray, width: float) -> np.ndarray:
    """A Gaussian at `blob`, sampled at the world positions of each axis."""
    along = [np.exp(-((p - b) ** 2) / (2 * width**2)) for p, b in zip(places, blob, strict=True)]
    return np.multiply.outer(*along)


def centroid(image: np.ndarray) -> np.ndarray:
    weights = image / image.sum()
    return np.array([(weights.sum(axis=1 - a) * np.arange(image.shape[a])).sum() for a in (0, 1)])


ratio = st.floats(1.0, 3.7)
shift = st.floats(-2.0, 2.0)


@settings(max_examples=40, deadline=None)
@given(st.tuples(ratio, ratio), st.tuples(ratio, ratio), st.tuples(shift, shift),
       st.floats(2, 12), st.tuples(st.floats(75, 125), st.floats(75, 125)))
def test_a_structure_is_at_the_same_place_at_every_level(
    first: Any, second: Any, moved: Any, level: float, blob: Any
) -> None:
    factors = [(1.0, 1.0), first, tuple(a * b for a, b in zip(first, second, strict=True))]
    offsets = [(0.0, 0.0), moved, tuple(m - 1 for m in moved)]
    arrays = []
    for factor, offset in zip(factors, offsets, strict=True):
        places = [o + f * np.arange(math.ceil(200 / f))
                  for f, o in zip(factor, offset, strict=True)]
        arrays.append(sampled(places, np.array(blob), 3 * max(2.0, max(factor) / 2)))
    pyramid = placed(arrays, factors, offsets)
    crop = pyramid.crop(center=blob, levels=(1, level), size=100)
    for image, box, valid in zip(crop.image[:, 0], crop.bbox, crop.valid, strict=True):
        pixel = (box[1] - box[0]) / 100
        found = box[0] + (centroid(np.where(valid, image, 0)) + 0.5) * pixel
        assert np.all(np.abs(found - blob) < 0.5 * pixel + 0.05)


def placed(arrays: list[np.ndarray], factors: Any, offsets: Any) -> Pyramid:
    """A pyramid with scales and translations, as metadata would give them."""
    from napari_muvit.data.selection import select
    from napari_muvit.data.sources.arrays import HeldArray
    from napari_muvit.data.sources.raw import RawImage

    raw = RawImage("array", "test", "yx", tuple(HeldArray(a, str(i)) for i, a in enumerate(arrays)),
                   scales=tuple(map(tuple, factors)), translations=tuple(map(tuple, offsets)))
    return Pyramid(raw, select(raw))


@settings(max_examples=60, deadline=None)
@given(st.floats(0.01, 1e3), st.floats(-1e5, 1e5), st.floats(1, 64), st.integers(-1000, 1000))
def test_pixel_to_world_and_back(scale: float, offset: float, factor: float, index: int) -> None:
    world = pixel_to_world(index, factor * scale, offset)
    back = world_to_pixel(world, factor * scale, offset)
    assert abs(back - index) < 1e-6


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.floats(-50, 170), st.floats(-50, 140)),
       st.lists(st.floats(1, 20), min_size=1, max_size=4, unique=True), st.integers(1, 24))
def test_boxes_say_what_was_read(center: Any, levels: list[float], size: int) -> None:
    pyramid = open_pyramid(NOISE)
    crop = pyramid.crop(center=center, levels=sorted(levels), size=size)
    for level, image, box, valid in zip(crop.levels, crop.image, crop.bbox, crop.valid,
                                        strict=True):
        grid = pyramid.level_grid(level)
        np.testing.assert_allclose(box[1] - box[0], np.array(grid.factor) * size)
        first = (box[0] + 0.5) / np.array(grid.factor)
        np.testing.assert_allclose(first, np.round(first), atol=1e-6)
        # the centre is kept within half a pixel of the level
        assert np.all(np.abs(box.mean(axis=0) - center) <= np.array(grid.factor) / 2 + 1e-6)
        index = np.round(first).astype(int)
        whole = pyramid.level_image(level)
        for y in range(size):
            for x in range(size):
                inside = 0 <= index[0] + y < whole.shape[1] and 0 <= index[1] + x < whole.shape[2]
                assert valid[y, x] == inside
        seen = [np.arange(size)[valid.any(axis=1 - a)] for a in (0, 1)]
        if valid.any():
            rows, columns = (index[a] + seen[a] for a in (0, 1))
            np.testing.assert_array_equal(
                image[:, seen[0][:, None], seen[1]], whole[:, rows[:, None], columns])


@settings(max_examples=40, deadline=None)
@given(st.tuples(st.floats(0, 120), st.floats(0, 90)), st.integers(4, 40))
def test_concentric_crops_are_nested(center: Any, size: int) -> None:
    crop = open_pyramid(NOISE).crop(center=center, levels=(1, 4, 16), size=size)
    assert is_nested(crop.bbox, tolerance=0)


def test_corners_and_rows_place_crops() -> None:
    pyramid = open_pyramid(NOISE)
    for corner in ((10, 20), (9.5, 19.5)):
        crop = pyramid.crop(corner=corner, levels=1, size=8)
        np.testing.assert_array_equal(crop.bbox[0], [[9.5, 19.5], [17.5, 27.5]])
    rows = pyramid.crop(corner=((10, 20), (4, 8)), levels=(1, 2), size=(8, 6))
    np.testing.assert_array_equal(rows.bbox[1], [[3.5, 7.5], [19.5, 19.5]])
    assert rows.image.shape == (2, 2, 8, 6)
    both = pyramid.crop(center=((40, 40), (44, 48)), levels=(1, 2), size=8)
    np.testing.assert_array_equal(both.bbox.mean(axis=1), [[39.5, 39.5], [43.5, 47.5]])


@pytest.mark.parametrize("levels", [(2,), (3,), (4, 8), (1.5,), (2.7, 7.3)])
def test_missing_levels_equal_a_precomputed_pyramid(tmp_path: Any, levels: Any) -> None:
    fine = open_pyramid(NOISE)
    arrays = [fine.level_image(level) for level in levels]
    full = pyramid_from_arrays(
        [NOISE, *arrays], axes="cyx",
        factors=[(1.0, 1.0), *(fine.level_grid(v).factor for v in levels)])
    assert full.level_grid(levels[-1]).array_index == len(levels)
    for center in ((0, 0), (60, 45), (119.3, 10.2)):
        mine = fine.crop(center=center, levels=levels, size=12)
        theirs = full.crop(center=center, levels=levels, size=12)
        np.testing.assert_array_equal(mine.image, theirs.image)
        np.testing.assert_allclose(mine.bbox, theirs.bbox)
        np.testing.assert_array_equal(mine.valid, theirs.valid)


def test_averaging_is_exact() -> None:
    level = open_pyramid(NOISE).level_image(3)
    expected = NOISE.astype(float).reshape(2, 40, 3, 30, 3).mean(axis=(2, 4))
    np.testing.assert_array_equal(level, np.rint(expected))
    floats = open_pyramid(NOISE.astype(np.float32)).level_image(3)
    np.testing.assert_allclose(floats, expected, rtol=1e-6)
    wide = open_pyramid(np.full((1, 64, 64), 65535, np.uint16)).level_image(32)
    assert (wide == 65535).all()
    signed = open_pyramid((NOISE.astype(np.int16) - 200)[:1]).level_image(3)
    np.testing.assert_array_equal(signed, np.rint(expected[:1] - 200))


def test_the_last_pixels_average_what_is_there() -> None:
    image = np.zeros((1, 5, 4), np.float64)
    image[0, 4] = 7
    level = open_pyramid(image[0]).level_image(2)
    assert level.shape == (1, 3, 2)
    assert (level[0, 2] == 7).all()


def test_real_factors_come_from_metadata_or_shapes() -> None:
    arrays = [np.zeros((301, 200), np.uint8), np.zeros((150, 100), np.uint8)]
    pyramid = open_pyramid(arrays)
    assert pyramid.factors[1] == (301 / 150, 2.0)
    assert pyramid.offsets[1] == pytest.approx(((301 / 150 - 1) / 2, 0.5))
    grid = pyramid.level_grid(2)
    assert grid.array_index == 1
    assert grid.factor == (301 / 150, 2.0)
    box = pyramid.crop(corner=(-0.5, -0.5), levels=2, size=(150, 100)).bbox[0]
    np.testing.assert_allclose(box, [[-0.5, -0.5], [300.5, 199.5]])


def test_contradicting_scales_are_replaced_and_noted() -> None:
    from dataclasses import replace

    pyramid = open_pyramid([np.zeros((64, 64)), np.zeros((16, 16))])
    raw = replace(pyramid._raw, scales=((1.0, 1.0), (2.0, 2.0)))
    fixed = Pyramid(raw, pyramid._selection)
    assert fixed.factors[1] == (4.0, 4.0)
    assert "contradict" in fixed.notes[0]


class TestWhichArrayServesALevel:
    def plan(self, factors: Any, level: float) -> tuple[int, tuple[float, ...]]:
        arrays = [np.zeros((round(480 / f), round(480 / f)), np.uint8) for f in factors]
        grid = plan_level(pyramid_from_arrays(arrays, axes="yx"), level)
        return grid.array_index, grid.steps

    def test_its_own(self) -> None:
        assert self.plan((1, 2, 4), 4) == (2, (1.0, 1.0))

    def test_one_within_two_percent(self) -> None:
        arrays = [np.zeros((301, 301), np.uint8), np.zeros((150, 150), np.uint8)]
        grid = plan_level(open_pyramid(arrays), 2)
        assert (grid.array_index, grid.is_direct) == (1, True)

    def test_the_nearest_finer_one(self) -> None:
        assert self.plan((1, 2, 4), 16) == (2, (4.0, 4.0))

    def test_a_finer_one_whose_pixels_are_whole(self) -> None:
        assert self.plan((1, 2), 3) == (0, (3.0, 3.0))

    def test_never_one_that_is_coarser_along_an_axis(self) -> None:
        arrays = [np.zeros((96, 96), np.uint8), np.zeros((96, 3), np.uint8)]
        grid = plan_level(pyramid_from_arrays(arrays, axes="yx"), 24)
        assert (grid.array_index, grid.steps) == (0, (24.0, 24.0))

    def test_not_when_it_reads_too_much(self) -> None:
        index, steps = self.plan((1, 32), 48)
        assert index == 1
        assert steps == (1.5, 1.5)


class TestLabels:
    def test_majority_never_mean(self) -> None:
        labels = np.zeros((8, 8), np.uint8)
        labels[:4, :3] = 9
        labels[4:, :] = 5
        pyramid = open_pyramid(labels).as_labels()
        np.testing.assert_array_equal(pyramid.level_image(4)[0], [[9, 0], [5, 5]])
        assert set(np.unique(open_pyramid(labels).level_image(4))) != {0, 5, 9}

    def test_ties_go_to_the_lowest(self) -> None:
        pyramid = open_pyramid(np.array([[3, 1], [1, 3]], np.int16)).as_labels()
        assert pyramid.level_image(2)[0, 0, 0] == 1

    def test_many_values_and_broken_ratios_take_the_nearest(self) -> None:
        labels = np.arange(400, dtype=np.uint16).reshape(20, 20)
        values = set(labels.ravel().tolist())
        for level in (2, 2.5, 3):
            found = open_pyramid(labels).as_labels().level_image(level)
            assert set(found.ravel().tolist()) <= values

    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 2**32 - 1), st.integers(2, 6))
    def test_majority_counts(self, seed: int, step: int) -> None:
        labels = np.random.default_rng(seed).integers(0, 4, (13, 11)).astype(np.uint8)
        found = open_pyramid(labels).as_labels().level_image(step)[0]
        for y in range(found.shape[0]):
            for x in range(found.shape[1]):
                block = labels[y * step:(y + 1) * step, x * step:(x + 1) * step]
                assert found[y, x] == np.bincount(block.ravel()).argmax()

    def test_only_integers_are_labels(self) -> None:
        with pytest.raises(InputError, match="must be integers"):
            open_pyramid(np.zeros((4, 4), np.float32)).as_labels()


class TestScaledAxes:
    volume = RNG.integers(0, 256, (30, 40, 50)).astype(np.uint8)

    def test_z_is_not_scaled_unless_asked(self) -> None:
        crop = open_pyramid(self.volume).crop(center=(15, 20, 25), levels=(1, 4), size=(8, 8, 8))
        np.testing.assert_array_equal(crop.bbox[:, 1] - crop.bbox[:, 0], [[8, 8, 8], [8, 32, 32]])

    def test_z_scaled(self) -> None:
        pyramid = open_pyramid(self.volume)
        crop = pyramid.crop(center=(15, 20, 25), levels=(1, 2), size=6, scaled_axes="zyx")
        np.testing.assert_array_equal(crop.bbox[1, 1] - crop.bbox[1, 0], [12, 12, 12])
        level = pyramid.level_image(2, "zyx")
        expected = self.volume.reshape(15, 2, 20, 2, 25, 2).mean(axis=(1, 3, 5))
        np.testing.assert_array_equal(level[0], np.rint(expected))

    def test_unknown_axes_are_refused(self) -> None:
        with pytest.raises(InputError, match="scaled_axes"):
            open_pyramid(self.volume).level_grid(2, ("t",))


@pytest.mark.parametrize(("options", "words"), [
    ({"center": (1, 2), "levels": (4, 1), "size": 8}, "ascending"),
    ({"center": (1, 2), "levels": (0,), "size": 8}, "ascending"),
    ({"center": (1, 2), "levels": ("a",), "size": 8}, "ascending"),
    ({"center": (1, 2), "levels": 1, "size": 0}, "size is 0"),
    ({"center": (1, 2, 3), "levels": 1, "size": 8}, "shape"),
    ({"center": (1, math.nan), "levels": 1, "size": 8}, "not finite"),
    ({"levels": 1, "size": 8}, "exactly one"),
    ({"center": (1, 2), "corner": (1, 2), "levels": 1, "size": 8}, "exactly one"),
])
def test_wrong_crops_are_refused(options: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_pyramid(NOISE).crop(**options)


def test_levels_below_one_magnify() -> None:
    crop = open_pyramid(NOISE).crop(center=(60, 45), levels=(0.5, 1), size=8)
    np.testing.assert_allclose(crop.bbox[0, 1] - crop.bbox[0, 0], [4, 4])
    assert crop.valid.all()


def test_big_averages_are_split_and_stay_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = open_pyramid(NOISE).level_image(5)
    monkeypatch.setattr("napari_muvit.data.crop.STRIP", 500)
    np.testing.assert_array_equal(open_pyramid(NOISE).level_image(5), whole)


def test_too_large_levels_are_refused(tmp_path: Any) -> None:
    create_pyramid(tmp_path / "big.zarr", shape=(200_000, 200_000), axes="yx", levels=1,
                   dtype="uint8")
    with pytest.raises(InputError, match="coarser level"):
        open_pyramid(tmp_path / "big.zarr").level_image(1)


def test_a_converted_store_equals_averaging_on_the_fly(tmp_path: Any) -> None:
    list(convert(NOISE, tmp_path / "all.zarr", levels=(1, 2, 4, 8), chunk=16))
    list(convert(NOISE, tmp_path / "few.zarr", levels=(1, 4), chunk=16))
    stored, sparse = open_pyramid(tmp_path / "all.zarr"), open_pyramid(tmp_path / "few.zarr")
    for center in ((3, 3), (70, 50)):
        a = stored.crop(center=center, levels=(1, 2), size=20)
        b = sparse.crop(center=center, levels=(1, 2), size=20)
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.bbox, b.bbox)
