"""Place maps: points are drawn where the mask is, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_muvit.data.places import PlaceMap

BOUNDS = np.array([[-0.5, -0.5], [99.5, 199.5]])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 9))
def test_drawn_points_lie_in_filled_cells_inside_the_bounds(seed, rows, columns):
    rng = np.random.default_rng(seed)
    mask = rng.random((rows, columns)) < 0.4
    mask[rng.integers(rows), rng.integers(columns)] = True
    cell = np.array([100 / rows * 1.1, 200 / columns])
    places = PlaceMap(mask, cell, BOUNDS, BOUNDS[0])
    points = np.stack([places.draw(rng) for _ in range(20)])
    assert places.holds(points).all()
    assert (points >= BOUNDS[0]).all()
    assert (points <= BOUNDS[1]).all()


def test_area_is_that_of_the_filled_cells_cut_to_the_bounds():
    places = PlaceMap.over(np.eye(2, dtype=bool), BOUNDS)
    assert places.area == pytest.approx(100 * 200 / 2)
    assert places.within([[-0.5, -0.5], [24.5, 199.5]]).area == pytest.approx(25 * 100)
    assert PlaceMap.everywhere(BOUNDS).area == pytest.approx(100 * 200)


def test_places_outside_the_bounds_are_empty():
    places = PlaceMap.over(np.array([[True, False]]), BOUNDS)
    assert places.within([[-0.5, 120], [99.5, 199.5]]).is_empty
    assert not places.is_empty


def test_points_outside_are_not_held():
    places = PlaceMap.everywhere(BOUNDS)
    assert places.holds([[50, 50], [-1, 5], [50, 200]]).tolist() == [True, False, False]


def test_also_in_keeps_cells_that_touch_the_other_map():
    fine = PlaceMap.over(np.ones((4, 4), dtype=bool), BOUNDS)
    half = PlaceMap.over(np.array([[True, False]]), BOUNDS)
    kept = fine.also_in(half)
    assert kept.mask[:, :2].all()
    assert not kept.mask[:, 2:].any()
