"""Place maps: points are drawn where the mask is, and nowhere else."""

from __future__ import annotations

import pickle

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
    right = places.within([[-0.5, 120], [99.5, 199.5]])
    assert right.is_empty
    assert right.area == 0
    nowhere = places.within([[300, 300], [400, 400]])
    assert nowhere.is_empty
    assert not nowhere.holds([[50, 50]]).any()
    assert not places.is_empty


def test_every_filled_cell_is_drawn_equally_often():
    mask = np.array([[[1, 0], [0, 1]], [[0, 0], [1, 1]]], bool)
    places = PlaceMap.over(mask, [[0, 0, 0], [2, 2, 2]])
    rng = np.random.default_rng(0)
    cells, counts = np.unique(
        [np.floor(places.draw(rng)) for _ in range(2000)], axis=0, return_counts=True
    )
    np.testing.assert_array_equal(cells, np.argwhere(mask))
    assert counts.min() > 400
    assert places.area == pytest.approx(4)


def test_maps_of_many_cells_are_small():
    places = PlaceMap.over(np.ones((1000, 1000), bool), BOUNDS)
    places.draw(np.random.default_rng(0))
    assert places.area == pytest.approx(100 * 200)
    assert len(pickle.dumps(places)) < 1.1e6


def test_points_outside_are_not_held():
    places = PlaceMap.everywhere(BOUNDS)
    assert places.holds([[50, 50], [-1, 5], [50, 200]]).tolist() == [True, False, False]


def test_also_in_keeps_cells_that_touch_the_other_map():
    fine = PlaceMap.over(np.ones((4, 4), dtype=bool), BOUNDS)
    half = PlaceMap.over(np.array([[True, False]]), BOUNDS)
    kept = fine.also_in(half)
    assert kept.mask[:, :2].all()
    assert not kept.mask[:, 2:].any()
