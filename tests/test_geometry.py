"""Geometry: properties that every crop relies on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_muvit import geometry as geo
from napari_muvit.errors import InputError

factors = st.floats(0.5, 64)
offsets = st.floats(-1e5, 1e5)
indices = st.integers(-1000, 200_000)
level_sets = st.lists(st.integers(1, 64), min_size=1, max_size=4, unique=True).map(sorted)


@given(indices, factors, offsets)
def test_pixel_to_world_and_back(index: int, factor: float, offset: float) -> None:
    world = geo.pixel_to_world(index, factor, offset)
    assert abs(geo.world_to_pixel(world, factor, offset) - index) < 1e-6


@given(indices, st.integers(1, 64))
def test_the_edge_of_an_aligned_pixel_names_that_pixel(index: int, factor: int) -> None:
    offset = geo.aligned_offset(factor)
    edge = geo.pixel_to_world(index - 0.5, factor, offset)
    assert edge == factor * index - 0.5
    assert geo.first_pixel(edge, factor, offset) == index


@given(st.integers(0, 100_000), st.sampled_from([301 / 150, 7 / 3, 1.1, 4.0001]))
def test_rounding_moves_no_edge_to_the_next_pixel(index: int, factor: float) -> None:
    offset = geo.aligned_offset(factor)
    places = geo.pixel_to_world([index - 0.5, index], factor, offset)  # the edge and the corner
    assert geo.first_pixel(places, factor, offset).tolist() == [index, index]


@given(st.floats(-99, 99))
def test_the_first_pixel_is_the_one_whose_lower_edge_is_nearest(edge: float) -> None:
    assert abs(int(geo.first_pixel(edge, 1, 0)) - 0.5 - edge) <= 0.5 + 1e-6


@given(st.integers(0, 10**6))
def test_corner_and_edge_both_mean_pixel_k(k: int) -> None:
    assert geo.first_pixel([k - 0.5, k], 1, 0).tolist() == [k, k]


@given(level_sets, st.integers(1, 3), st.integers(2, 64))
def test_a_crop_placed_by_its_centre_is_nested_and_centred(
    levels: list[int], num_axes: int, size: int
) -> None:
    extents = geo.crop_extents(levels, size, num_axes)
    boxes = geo.place_boxes(extents, center=[100.0] * num_axes)
    assert geo.is_nested(boxes)
    np.testing.assert_allclose(boxes.mean(axis=1), 100.0)
    np.testing.assert_allclose(boxes[:, 1] - boxes[:, 0], extents)


def test_corner_places_the_finest_box_or_each() -> None:
    extents = geo.crop_extents((1, 4), 256, 2)
    one = geo.place_boxes(extents, corner=(-0.5, -0.5))
    np.testing.assert_allclose(one[0], [[-0.5, -0.5], [255.5, 255.5]])
    np.testing.assert_allclose(one.mean(axis=1)[0], one.mean(axis=1)[1])
    each = geo.place_boxes(extents, corner=one[:, 0])
    np.testing.assert_allclose(each, one)


def test_levels_scale_only_the_chosen_axes() -> None:
    assert geo.level_scales((1, 8), 3).tolist() == [[1, 1, 1], [1, 8, 8]]
    assert geo.level_scales((2, 8), 3, scaled_axes=(0, 1, 2)).tolist() == [[2] * 3, [8] * 3]


def test_patch_centres_follow_the_policy() -> None:
    box = np.array([[[-0.5, -0.5], [15.5, 15.5]]])
    centre = geo.patch_centres(box, (2, 2), "centre")
    assert centre[0].tolist() == [[3.5, 3.5], [3.5, 11.5], [11.5, 3.5], [11.5, 11.5]]
    span = geo.patch_centres(box, (2, 2), "span")
    assert span[0].tolist() == [[-0.5, -0.5], [-0.5, 15.5], [15.5, -0.5], [15.5, 15.5]]


@given(level_sets, st.integers(1, 3))
def test_patch_centres_lie_inside_their_box(levels: list[int], num_axes: int) -> None:
    boxes = geo.place_boxes(geo.crop_extents(levels, 32, num_axes), center=(0,) * num_axes)
    centres = geo.patch_centres(boxes, (4,) * num_axes)
    assert centres.shape == (len(levels), 4**num_axes, num_axes)
    assert (centres > boxes[:, None, 0]).all()
    assert (centres < boxes[:, None, 1]).all()


@given(
    st.floats(-0.5, 500), st.floats(-0.5, 500), st.integers(64, 2000),
    st.floats(0, 1), st.integers(2, 8),
)
def test_nested_corners_hold_the_inner_box(
    y: float, x: float, image_size: int, fraction: float, factor: int
) -> None:
    image = np.array([[-0.5, -0.5], [image_size - 0.5] * 2])
    inner = np.array([[y, x], [y + 32, x + 32]])
    extent = np.array([32.0 * factor] * 2)
    low, high = geo.nested_corner_range(inner, extent, image)
    corner = low + fraction * (high - low)
    boxes = np.stack([inner, np.stack([corner, corner + extent])])
    assert (low <= high).all()
    assert geo.is_nested(boxes, tolerance=1e-6)


def test_nested_corners_stay_inside_the_image_where_possible() -> None:
    image = np.array([[-0.5, -0.5], [999.5, 999.5]])
    inner = np.array([[10.0, 900.0], [42.0, 932.0]])
    low, high = geo.nested_corner_range(inner, np.array([256.0, 256.0]), image)
    assert low.tolist() == [-0.5, 676.0]
    assert high.tolist() == [10.0, 743.5]


@pytest.mark.parametrize("levels", [(), (0,), (4, 1), (1, 1), (1, -2), ("a",), (float("nan"),)])
def test_wrong_levels_are_refused(levels: tuple[object, ...]) -> None:
    with pytest.raises(InputError, match="ascending"):
        geo.parse_levels(levels)  # type: ignore[arg-type]


def test_wrong_sizes_and_places_are_refused() -> None:
    with pytest.raises(InputError, match="size is"):
        geo.parse_size((256, 0), 2)
    with pytest.raises(InputError, match="size is"):
        geo.parse_size((256,), 2)
    for size in ("256", (256, None), np.array(256.5), {"y": 3}, ((1, 2), (3, 4)), np.inf):
        with pytest.raises(InputError, match="size is"):
            geo.parse_size(size, 2)  # type: ignore[arg-type]
    assert geo.parse_size(np.array(256), 2) == geo.parse_size(np.int64(256), 2) == (256, 256)
    extents = geo.crop_extents((1, 4), 16, 2)
    with pytest.raises(InputError, match="exactly one"):
        geo.place_boxes(extents)
    with pytest.raises(InputError, match="shape"):
        geo.place_boxes(extents, corner=(1, 2, 3))
