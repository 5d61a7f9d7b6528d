"""Components and clusters of features: found again where they are known."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest

from napari_muvit.errors import InputError
from napari_muvit.inference.feature_views import cluster_features, project_features


def halves(noise=0.05):
    """Features (16, 40, 60) of two kinds, left and right."""
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(2, 16))
    which = (np.arange(60) >= 30).astype(int)
    image = np.repeat(kinds[which].T[:, None], 40, axis=1) + noise * rng.normal(size=(16, 40, 60))
    return da.from_array(image.astype(np.float32), chunks=(16, 20, 20)), which


def test_clusters_are_found_again():
    features, which = halves()
    labels = cluster_features(features, 2)
    assert labels.shape == (40, 60)
    assert labels.dtype == np.uint8
    found = labels.compute()
    left, right = found[0, 0], found[0, -1]
    assert {left, right} == {1, 2}
    np.testing.assert_array_equal(found == right, np.broadcast_to(which == 1, (40, 60)))


def test_the_first_component_tells_the_kinds_apart():
    features, which = halves()
    colours = project_features(features, 3)
    assert colours.shape == (3, 40, 60)
    found = colours.compute()
    assert found.min() >= 0
    assert found.max() <= 1
    first = found[0]
    assert abs(first[:, which == 0].mean() - first[:, which == 1].mean()) > 0.6


def test_the_same_seed_gives_the_same_answer():
    features, _ = halves()
    np.testing.assert_array_equal(
        cluster_features(features, 4, seed=3).compute(),
        cluster_features(features, 4, seed=3).compute())


def test_refuses_counts_that_cannot_be():
    features, _ = halves()
    with pytest.raises(InputError, match="clusters"):
        cluster_features(features, 0)
    with pytest.raises(InputError, match="components"):
        project_features(features, 17)
