"""Which group an image belongs to, from crops of it."""

from __future__ import annotations

import numpy as np
import pytest

from napari_muvit import api
from napari_muvit.errors import InputError

from .models import make_model


@pytest.fixture(scope="module")
def model():
    return make_model()


def texture(group, seed):
    """Noise of fine or coarse grain."""
    rng = np.random.default_rng(seed)
    grain = {"fine": 1, "coarse": 8}[group]
    noise = rng.integers(0, 255, (160 // grain, 160 // grain)).astype(np.uint8)
    return np.kron(noise, np.ones((grain, grain), np.uint8))


def test_groups_of_images_are_told_apart(model):
    train = [(texture(group, seed), group) for seed in range(3) for group in ("fine", "coarse")]
    test = [(texture(group, seed + 9), group) for seed in range(2) for group in ("fine", "coarse")]
    found = api.probe_images(train, test, model, device="cpu")
    assert found.classes == {0: "coarse", 1: "fine"}
    assert (found.num_train, found.num_test) == (6 * 5, 4 * 10)
    assert found.mean_auc > 0.95
    few = {"crops": (2, 3), "device": "cpu"}
    assert api.probe_images(train, test, model, **few) == api.probe_images(
        train, test, model, **few)
    wrong = [(image, {"fine": "coarse", "coarse": "fine"}[group]) for image, group in test]
    assert api.probe_images(train, wrong, model, **few).mean_auc < 0.05


def test_one_group_is_refused(model):
    pairs = [(texture("fine", 0), "fine")]
    with pytest.raises(InputError, match="two groups"):
        api.probe_images(pairs, pairs, model, device="cpu")
