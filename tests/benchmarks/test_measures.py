"""Measures of `alternatives.py` against cases computed by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from experiments.measures import (
    NUM_BINS,
    Gap,
    Section,
    boundary_gaps,
    boundary_of,
    calibration_bins,
    calibration_error,
    intervals,
    measure_section,
    pool,
    pool_seeds,
)

from napari_muvit import api

UNLABELLED = 0


def halves(column: int, side: int = 10) -> np.ndarray:
    """Class 1 left of a column, class 2 from it on."""
    labels = np.full((side, side), 2, np.uint8)
    labels[:, :column] = 1
    return labels


def sure_of(labels: np.ndarray, values: tuple[int, ...] = (1, 2), top: float = 0.8) -> np.ndarray:
    """Probabilities that say `labels`, each with `top`."""
    rest = (1 - top) / (len(values) - 1)
    return np.stack([np.where(labels == v, top, rest) for v in values]).astype(np.float32)


def section(guess: np.ndarray, truth: np.ndarray, donor: str = "a", top: float = 0.8) -> Section:
    return measure_section("one", donor, sure_of(guess, top=top), (1, 2), truth, UNLABELLED)


def test_calibration_error_by_hand():
    confidence = np.array([0.95, 0.95, 0.55, 0.55])
    bins = calibration_bins(confidence, np.array([True, False, True, True]))
    assert bins[0, 14] == bins[0, 8] == 2
    # |0.95 - 0.5| and |0.55 - 1|, each half of the pixels
    assert calibration_error(bins) == pytest.approx(0.45)


def test_who_is_right_as_often_as_sure_has_no_error():
    bins = calibration_bins(np.full(10, 0.7), np.arange(10) < 7)
    assert calibration_error(bins) == pytest.approx(0)


def test_bins_take_the_ends_in():
    bins = calibration_bins(np.array([0.0, 1.0, 1 / NUM_BINS]), np.zeros(3, bool))
    assert bins[0, 0] == 2
    assert bins[0, -1] == 1


def test_two_halves_moved_by_two_pixels():
    truth, guess = halves(4), halves(6)
    gaps = boundary_gaps(guess, truth, np.ones(truth.shape, bool))
    assert gaps == {1: Gap(2.0, 2.0), 2: Gap(2.0, 2.0)}


def test_distances_count_both_ways():
    truth = halves(4)
    guess = truth.copy()
    guess[5, 9] = 1  # far from the boundary of class 1 in the truth, column 3
    gap = boundary_gaps(guess, truth, np.ones(truth.shape, bool))[1]
    assert gap.mean == pytest.approx(6 / 21)  # 10 pixels with 0, one with 6; and 10 back with 0
    assert gap.p95 == 0
    both = boundary_gaps(truth, guess, np.ones(truth.shape, bool))[1]
    assert both == gap


def test_a_boundary_that_is_missing_is_as_far_as_can_be():
    truth = np.zeros((10, 12), np.uint8)
    truth[2:6, 3:6] = halves(1, 4)[:, :3]  # what is judged: 4 x 3 px, a diagonal of 5
    gaps = boundary_gaps(np.ones_like(truth), truth, truth != UNLABELLED)
    assert gaps == {1: Gap(5.0, 5.0, True), 2: Gap(5.0, 5.0, True)}


def test_no_boundary_anywhere_is_nothing_to_measure():
    labels = np.ones((6, 6), np.uint8)
    assert boundary_gaps(labels, labels, np.ones((6, 6), bool)) == {}


def test_the_border_of_what_is_judged_is_no_boundary():
    labels, judged = halves(5), np.ones((10, 10), bool)
    judged[:, 5] = False
    assert not boundary_of(labels, judged).any()
    judged[3, 5] = True
    assert np.argwhere(boundary_of(labels, judged)).tolist() == [[3, 4], [3, 5]]


def test_pooled_dice_is_that_of_evaluate():
    truths = [halves(4), halves(5)]
    truths[1][0] = UNLABELLED
    guesses = [halves(6), halves(2)]
    pooled = pool([section(*pair) for pair in zip(guesses, truths, strict=True)])
    assert pooled["mdsc"] == pytest.approx(api.evaluate(guesses, truths, UNLABELLED).mdsc)


def test_pooled_measures_by_hand():
    sections = [section(halves(6), halves(4)), section(halves(5), halves(5))]
    pooled = pool(sections)
    # Class 1: 90 right of 110 + 90; class 2: 90 right of 90 + 110.
    assert pooled["mdsc"] == pytest.approx(0.9)
    assert pooled["ece"] == pytest.approx(0.1)  # 0.8 sure, 0.9 right
    assert pooled["boundary_mean"] == pytest.approx(1.0)
    assert pooled["missing"] == 0
    missed = section(np.ones((10, 10), np.uint8), halves(5))
    assert pool([*sections, missed])["missing"] == pytest.approx(1 / 3)


def test_seeds_are_averaged():
    one, other = section(halves(5), halves(5)), section(halves(0), halves(5))
    both = pool_seeds([[one], [other]])
    assert both["mdsc"] == pytest.approx((1 + pool([other])["mdsc"]) / 2)


def test_intervals_draw_donors_and_sections():
    good, bad = section(halves(5), halves(5), "a"), section(halves(9), halves(5), "b")
    low, high = intervals([[good, bad]], 200)["mdsc"]
    assert low == pytest.approx(pool([bad])["mdsc"])
    assert high == pytest.approx(1)
    assert intervals([[good, good]], 20)["mdsc"] == pytest.approx((1, 1))
    # Donors are drawn before sections: a quarter of the draws has the good donor alone.
    assert intervals([[good, *[bad] * 9]], 200)["mdsc"] == pytest.approx((low, 1))


def test_sections_survive_json():
    one = section(halves(6), halves(4))
    again = Section.from_dict(json.loads(json.dumps(one.to_dict())))
    assert pool([again]) == pool([one])
    assert again.gaps == one.gaps
