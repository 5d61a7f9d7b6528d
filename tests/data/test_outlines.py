"""Outlines follow pixel borders exactly, one for each connected area."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import label

from napari_muvit.data import rasterize
from napari_muvit.data.outlines import trace_labels
from napari_muvit.data.rasterize import fill_rings


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rasterize, "BLOCK", 5)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 14), st.integers(1, 14), st.integers(1, 3))
def test_filling_the_outlines_gives_the_labels_back(
    seed: int, height: int, width: int, size: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = np.kron(rng.integers(0, 3, (height, width)), np.ones((size, 1), int))
    outlines = list(trace_labels(labels))
    assert len(outlines) == sum(label(labels == v, connectivity=1).max() for v in (1, 2))
    filled = np.zeros_like(labels)
    for outline in outlines:
        inside = fill_rings(outline.rings, (0, 0), labels.shape)
        assert not filled[inside].any()
        filled[inside] = outline.value
        # A ring that touches itself would be no valid polygon.
        assert all(len(np.unique(ring, axis=0)) == len(ring) for ring in outline.rings)
    np.testing.assert_array_equal(filled, labels)


def test_square_has_four_corners_on_pixel_edges() -> None:
    labels = np.zeros((20, 20), np.uint8)
    labels[3:9, 4:15] = 7
    (outline,) = trace_labels(labels)
    assert outline.value == 7
    (ring,) = outline.rings
    assert sorted(ring.tolist()) == [[2.5, 3.5], [2.5, 14.5], [8.5, 3.5], [8.5, 14.5]]


def test_island_in_a_hole_is_its_own_area() -> None:
    labels = np.ones((15, 15), np.uint8)
    labels[3:12, 3:12] = 0
    labels[6:9, 6:9] = 1
    outlines = list(trace_labels(labels))
    assert sorted(len(outline.rings) for outline in outlines) == [1, 2]


def test_coarse_labels_are_scaled_and_placed() -> None:
    (outline,) = trace_labels(np.ones((2, 3), np.uint8), level=4, corner=(9.5, 19.5))
    np.testing.assert_array_equal(outline.rings[0].min(axis=0), [9.5, 19.5])
    np.testing.assert_array_equal(outline.rings[0].max(axis=0), [17.5, 31.5])


def test_only_wanted_values_are_traced() -> None:
    labels = np.arange(9).reshape(3, 3)
    assert [outline.value for outline in trace_labels(labels, [3, 5, 77])] == [3, 5]
    assert list(trace_labels(np.zeros((4, 4), int))) == []


def test_pixels_need_not_be_square() -> None:
    (outline,) = trace_labels(np.ones((2, 3), np.uint8), level=(4.0, 4.5), corner=(9.5, 19.5))
    assert outline.rings[0].min(axis=0).tolist() == [9.5, 19.5]
    assert outline.rings[0].max(axis=0).tolist() == [17.5, 33.0]


def test_memory_is_little_for_each_pixel_of_a_border(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million nuclei have borders of fifty million sides of pixels."""
    monkeypatch.setattr(rasterize, "BLOCK", 2048)
    y, x = np.indices((8, 8)) - 3
    labels = np.tile((y**2 + x**2 < 12).astype(np.uint8), (50, 50))
    tracemalloc.start()
    try:
        assert sum(1 for _ in trace_labels(labels)) == 2500
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 120 * 28 * 2500


def test_rings_keep_their_order_and_where_they_begin() -> None:
    """Files of equal labels are equal."""
    labels = np.array([[1, 1, 1, 0], [1, 0, 1, 2], [1, 1, 0, 2], [0, 1, 1, 1]])
    found = [(item.value, [(ring + 0.5).astype(int).tolist() for ring in item.rings])
             for item in trace_labels(labels)]
    outer = [[0, 0], [0, 3], [2, 3], [2, 2], [3, 2], [3, 4], [4, 4], [4, 1], [3, 1], [3, 0]]
    hole = [[2, 2], [1, 2], [1, 1], [2, 1]]
    assert found == [(1, [outer, hole]), (2, [[[1, 3], [1, 4], [3, 4], [3, 3]]])]
