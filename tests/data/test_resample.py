"""Coarser levels: exact area averages, majorities, and no more memory than the pixels take."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_muvit.data.resample import average, choose_labels, source_span


def by_area(row: np.ndarray, step: float, count: int, phase: float) -> list[float]:
    """Means over intervals of a piecewise constant row, of what is there."""
    edges = np.arange(len(row) + 1)
    total = np.concatenate([[0.0], np.cumsum(row, dtype=np.float64)])
    low = np.minimum(phase + step * np.arange(count), len(row))
    high = np.minimum(low + step, len(row))
    sums = np.interp(high, edges, total) - np.interp(low, edges, total)
    return (sums / np.maximum(high - low, 1e-300)).tolist()


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.floats(1.0, 9.0), st.floats(0, 0.99), st.integers(0, 2**32 - 1))
def test_averages_are_those_of_areas(length: int, step: float, phase: float, seed: int) -> None:
    row = np.random.default_rng(seed).random(length)
    count = max(1, int(np.ceil((length - phase) / step - 1e-9)))
    found = average(row[None, :, None], (step, 1), (count, 1), (phase, 0.0))
    np.testing.assert_allclose(found[0, :, 0], by_area(row, step, count, phase), atol=1e-9)
    turned = average(row[None, None, :], (1, step), (1, count), (0.0, phase))
    np.testing.assert_array_equal(turned[0, 0], found[0, :, 0])


@pytest.mark.parametrize("step", [2.0, 3.0, 2.5])
def test_borders_average_what_is_there(step: float) -> None:
    pixels = np.full((1, 7, 7), 200, np.uint8)
    count = int(np.ceil(7 / step))
    assert (average(pixels, (step, step), (count, count), (0.0, 0.0)) == 200).all()


def test_a_wide_row_takes_no_table_of_all_weights() -> None:
    row = np.zeros((1, 1, 200_000), np.uint8)
    row[..., 99_999:] = 250
    found = average(row, (1, 2.5), (1, 80_000), (0.0, 0.0))
    assert found.shape == (1, 1, 80_000)
    assert found[0, 0, 39_999] == 100  # one of two and a half pixels is bright
    assert found[0, 0, 40_000:].min() == 250


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float32"])
def test_sums_do_not_overflow(dtype: str) -> None:
    top = 1e30 if dtype == "float32" else np.iinfo(dtype).max
    pixels = np.full((1, 300, 300), top, dtype)
    assert (average(pixels, (300, 300), (1, 1), (0.0, 0.0)) == np.asarray(top, dtype)).all()


def test_sums_of_a_long_row_do_not_overflow() -> None:
    row = np.full((1, 1, 70_000), 65535, np.uint16)
    assert (average(row, (1, 70_000), (1, 1), (0.0, 0.0)) == 65535).all()


def test_the_commonest_label_wins_and_ties_go_to_the_lowest() -> None:
    labels = np.array([[[1, 1, 5, 4], [1, 9, 4, 5], [7, 7, 0, 0], [7, 7, 3, 0]]], np.uint8)
    assert choose_labels(labels, (2, 2), (2, 2), (0.0, 0.0)).tolist() == [[[1, 4], [7, 0]]]


def test_labels_of_broken_steps_are_those_at_the_middle() -> None:
    labels = np.arange(10, dtype=np.uint8).reshape(1, 1, 10)
    # middles of intervals of two and a half pixels: 1.25, 3.75, 6.25, 8.75
    assert choose_labels(labels, (1, 2.5), (1, 4), (0.0, 0.0)).tolist() == [[[1, 3, 6, 8]]]


def test_a_span_covers_its_outputs() -> None:
    assert source_span(3, 2, 4.0, 100) == (12, 20, 0.0)
    assert source_span(1, 2, 2.5, 100) == (2, 8, 0.5)
    assert source_span(2, 2, 4.0, 10) == (8, 10, 0.0)
