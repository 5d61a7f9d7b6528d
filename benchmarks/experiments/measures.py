"""What predictions of labelled sections are worth: overlap, calibration, boundaries; intervals.

Of each section only counts are kept, so that sections can be pooled, and drawn again, at will.

Calibration: expected calibration error, Guo et al. (ICML 2017): judged pixels are sorted into
`NUM_BINS` equal intervals of the largest probability, and the differences between its mean and
the share of hits are averaged, weighted by pixels.

Boundaries: the boundary of a class are its judged pixels that have, above, below, left or right,
a judged pixel of another class; the border of what is judged is none. Every boundary pixel of
the prediction has a distance to the nearest one of the truth, of the same class, and the other
way round (Euclidean, px, between centres). Both lists together give one mean and one 95th
percentile for each section and class. Where one of the two has no boundary of that class, both
are the diagonal of the box around what is judged; where neither has one, there is nothing to
measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from napari_muvit import api
from napari_muvit.inference.scores import mean_dice, score_counts

NUM_BINS = 15
NAMES = ("mdsc", "ece", "boundary_mean", "boundary_95")
ROUNDS = 1000
"""Times that sections are drawn for an interval."""


@dataclass(frozen=True)
class Gap:
    """Distances between two boundaries of one class, px; `is_missing` where one does not exist."""

    mean: float
    p95: float
    is_missing: bool = False


@dataclass(frozen=True)
class Section:
    """Counts of one predicted section.

    Attributes
    ----------
    counts
        Judged pixels by (truth, prediction) value.
    bins
        (3, `NUM_BINS`): pixels, their largest probabilities added up, and hits.
    gaps
        By class value, of the classes that have a boundary in truth or prediction.
    """

    name: str
    donor: str
    counts: dict[tuple[int, int], int]
    bins: NDArray[np.float64]
    gaps: dict[int, Gap]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "name": self.name, "donor": self.donor,
            "counts": [[*pair, n] for pair, n in sorted(self.counts.items())],
            "bins": self.bins.tolist(),
            "gaps": {str(value): vars(gap) for value, gap in self.gaps.items()},
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Section:
        """The section that `to_dict` wrote."""
        return cls(
            data["name"], data["donor"], {(t, p): n for t, p, n in data["counts"]},
            np.asarray(data["bins"]),
            {int(value): Gap(**gap) for value, gap in data["gaps"].items()})


def measure_section(
    name: str, donor: str, probabilities: NDArray[np.float32], values: Sequence[int],
    truth: NDArray[np.integer[Any]], unlabelled: int,
) -> Section:
    """Counts of one section.

    Parameters
    ----------
    probabilities
        (K, H, W), summing to one; classes in the order of `values`.
    truth
        (H, W) label values; pixels that are `unlabelled` are not judged.
    """
    judged = truth != unlabelled
    guess = np.asarray(values, truth.dtype)[probabilities.argmax(0)]
    counts = dict(api.evaluate(guess, truth, unlabelled).confusion)
    is_hit = guess[judged] == truth[judged]
    bins = calibration_bins(probabilities.max(0)[judged], is_hit)
    return Section(name, donor, counts, bins, boundary_gaps(guess, truth, judged))


def calibration_bins(
    confidence: NDArray[np.floating[Any]], is_hit: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """(3, `NUM_BINS`): pixels, their confidences added up, and hits; bins include their top."""
    index = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    return np.stack([
        np.bincount(index, weights=weights, minlength=NUM_BINS)
        for weights in (np.ones(len(index)), confidence.astype(np.float64), is_hit)
    ])


def calibration_error(bins: NDArray[np.float64]) -> float:
    """Expected calibration error, 0 to 1."""
    return float(np.abs(bins[1] - bins[2]).sum() / bins[0].sum())


def boundary_of(
    labels: NDArray[np.integer[Any]], judged: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Judged pixels (H, W) that have a judged neighbour of another class."""
    found = np.zeros(labels.shape, bool)
    for axis in range(labels.ndim):
        one, other = ([slice(None)] * labels.ndim for _ in range(2))
        one[axis], other[axis] = slice(1, None), slice(None, -1)
        here, there = tuple(one), tuple(other)
        differs = (labels[here] != labels[there]) & judged[here] & judged[there]
        found[here] |= differs
        found[there] |= differs
    return found


def boundary_gaps(
    guess: NDArray[np.integer[Any]], truth: NDArray[np.integer[Any]], judged: NDArray[np.bool_],
) -> dict[int, Gap]:
    """Distances between the boundaries of each class in two label images (H, W)."""
    edges = [boundary_of(labels, judged) for labels in (guess, truth)]
    box = [np.ptp(places) + 1 for places in np.nonzero(judged)]
    found = {}
    for value in np.unique(np.concatenate([guess[edges[0]], truth[edges[1]]])):
        ours, theirs = (edge & (labels == value)
                        for edge, labels in zip(edges, (guess, truth), strict=True))
        if ours.any() and theirs.any():
            distances = np.concatenate(
                [distance_transform_edt(~theirs)[ours], distance_transform_edt(~ours)[theirs]])
            gap = Gap(float(distances.mean()), float(np.percentile(distances, 95)))
        else:
            gap = Gap(*[float(np.hypot(*box))] * 2, is_missing=True)
        found[int(value)] = gap
    return found


def pool(sections: Sequence[Section]) -> dict[str, float]:
    """Measures of several sections: pixels together for mDSC and ECE; means over all gaps."""
    counts: dict[tuple[int, int], int] = {}
    for section in sections:
        for pair, number in section.counts.items():
            counts[pair] = counts.get(pair, 0) + number
    gaps = [gap for section in sections for gap in section.gaps.values()]
    return {
        "mdsc": mean_dice(score_counts(counts)[0]),
        "ece": calibration_error(np.sum([section.bins for section in sections], axis=0)),
        "boundary_mean": _mean([gap.mean for gap in gaps]),
        "boundary_95": _mean([gap.p95 for gap in gaps]),
        "missing": _mean([float(gap.is_missing) for gap in gaps]),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def pool_seeds(seeds: Sequence[Sequence[Section]]) -> dict[str, float]:
    """Mean over seeds of the pooled measures; `seeds` has the sections of each."""
    pooled = [pool(sections) for sections in seeds]
    return {name: _mean([one[name] for one in pooled]) for name in pooled[0]}


def intervals(
    seeds: Sequence[Sequence[Section]], rounds: int = ROUNDS
) -> dict[str, tuple[float, float]]:
    """95 % bootstrap interval of each measure: donors are drawn, then sections of each.

    Of one donor only sections are drawn: such an interval says nothing about other donors.

    Parameters
    ----------
    seeds
        For each seed the same sections in the same order; a draw is the same for all seeds.
    """
    random = np.random.default_rng(0)
    donors: dict[str, list[int]] = {}
    for index, section in enumerate(seeds[0]):
        donors.setdefault(section.donor, []).append(index)
    groups, drawn = list(donors.values()), []
    for _ in range(rounds):
        chosen = [groups[i] for i in random.integers(len(groups), size=len(groups))]
        picks = [i for group in chosen for i in random.choice(group, len(group))]
        drawn.append(pool_seeds([[sections[i] for i in picks] for sections in seeds]))
    return {
        name: tuple(np.percentile([one[name] for one in drawn], [2.5, 97.5]).tolist())
        for name in NAMES
    }
