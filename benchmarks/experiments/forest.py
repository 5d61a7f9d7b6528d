"""A random forest on a bank of filters, as pixel classifiers for microscopy have it.

Filters, at each of `SCALES`: every channel smoothed, and of that gradient magnitude and
Laplacian (scipy); and the eigenvalues of the structure tensor of the channels' mean
(scikit-image). The forest is scikit-learn's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.feature import structure_tensor, structure_tensor_eigenvalues

from experiments.sections import read_labels, read_scaled
from napari_muvit import api
from napari_muvit.data.cohort import CohortRow

SCALES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Standard deviations of the smoothing, px."""

PIXELS = 10_000
"""Labelled pixels of each section that the forest learns from."""

MAX_TREES = 200
TREES_AT_ONCE = 2
ROWS_AT_ONCE = 64
"""Image rows that are classified together, so that probabilities of one part are in memory."""

VALIDATION_STEP = 4
"""Every so many pixels of validation images, along both axes, are judged."""


def filter_bank(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Features (F, H, W) of an image (C, H, W) of about 0 to 1."""
    grey, found = image.mean(0), []
    for sigma in SCALES:
        smooth = [ndimage.gaussian_filter(channel, sigma) for channel in image]
        found += smooth
        found += [ndimage.generic_gradient_magnitude(one, ndimage.sobel) for one in smooth]
        found += [ndimage.laplace(one) for one in smooth]
        found += list(structure_tensor_eigenvalues(structure_tensor(grey, sigma=sigma)))
    return np.stack(found).astype(np.float32)


def draw_pixels(
    rows: Sequence[CohortRow], unlabelled: int, seed: int,
) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Features (N, F) and label values (N,) of pixels drawn from the labelled ones."""
    random = np.random.default_rng(seed)
    features, targets = [], []
    for row in rows:
        labels = read_labels(row)
        places = np.flatnonzero(labels != unlabelled)
        places = random.choice(places, min(PIXELS, len(places)), replace=False)
        bank = filter_bank(read_scaled(row.image))
        features.append(bank.reshape(len(bank), -1)[:, places].T)
        targets.append(labels.ravel()[places])
    return np.concatenate(features), np.concatenate(targets)


def train_forest(
    rows: Sequence[CohortRow], unlabelled: int, options: dict[str, Any], seconds: float,
    seed: int, threads: int,
) -> tuple[Any, float]:
    """A forest that grows until the seconds are over or it is full; and the seconds it took.

    The filters are part of the time. At least `TREES_AT_ONCE` trees are grown.
    """
    from sklearn.ensemble import RandomForestClassifier

    began = time.perf_counter()
    features, targets = draw_pixels(rows, unlabelled, seed)
    forest = RandomForestClassifier(
        0, warm_start=True, random_state=seed, n_jobs=threads, **options)
    while forest.n_estimators < MAX_TREES:
        before = time.perf_counter()
        forest.n_estimators += TREES_AT_ONCE
        forest.fit(features, targets)
        now = time.perf_counter()
        if now - began + (now - before) > seconds:  # another round would be too long
            break
    return forest, time.perf_counter() - began


def classify(forest: Any, image: NDArray[np.float32], step: int = 1) -> NDArray[np.float32]:
    """Probabilities (K, H, W) of every `step`-th pixel, classes in the order of the forest's."""
    bank = filter_bank(image)[:, ::step, ::step]
    parts = []
    for start in range(0, bank.shape[1], ROWS_AT_ONCE):
        part = bank[:, start:start + ROWS_AT_ONCE]
        flat = forest.predict_proba(part.reshape(len(bank), -1).T)
        parts.append(flat.T.reshape(-1, *part.shape[1:]).astype(np.float32))
    return np.concatenate(parts, axis=1)


def validation_score(forest: Any, rows: Sequence[CohortRow], unlabelled: int) -> float:
    """Pooled mDSC of pixels of the validation images."""
    guesses, truths = [], []
    for row in rows:
        found = classify(forest, read_scaled(row.image), VALIDATION_STEP)
        truths.append(read_labels(row)[::VALIDATION_STEP, ::VALIDATION_STEP])
        guesses.append(np.asarray(forest.classes_)[found.argmax(0)].astype(truths[-1].dtype))
    return float(api.evaluate(guesses, truths, unlabelled).mdsc)
