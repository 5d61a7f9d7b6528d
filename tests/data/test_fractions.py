"""Class fractions of patches."""

from __future__ import annotations

import numpy as np

from napari_muvit.data.fractions import class_fractions


def test_fractions_leave_unlabelled_pixels_out():
    labels = np.full((2, 4, 8), -1, np.int16)
    labels[0, :2, :2] = [[0, 0], [1, 2]]
    labels[1, :, 4:] = 2
    fractions, known = class_fractions(labels, 3, (4, 4))
    assert fractions.shape == (2, 3, 1, 2)
    np.testing.assert_allclose(fractions[0, :, 0, 0], [0.5, 0.25, 0.25])
    np.testing.assert_allclose(fractions[1, :, 0, 1], [0, 0, 1])
    assert known.dtype == np.float32
    assert known.tolist() == [[[0.25, 0]], [[0, 1]]]
    assert fractions[0, :, 0, 1].sum() == 0


def test_fractions_of_volumes():
    labels = np.zeros((1, 2, 4, 4), np.int16)
    fractions, known = class_fractions(labels, 1, (1, 4, 2))
    assert fractions.shape == (1, 1, 2, 1, 2)
    assert (known == 1).all()
    assert (fractions == 1).all()
