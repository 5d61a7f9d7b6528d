"""What a place attended to: the right patch asks, and everything it saw is accounted for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from napari_muvit.data.pyramid import open_pyramid
from napari_muvit.errors import InputError
from napari_muvit.inference.attention_view import attention_view

from .models import make_model, save


@pytest.fixture(scope="module")
def model():
    return make_model()


def image(shape=(150, 130), seed=0):
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def test_weights_are_those_of_the_patch_at_the_place(model):
    pixels = image()
    view = attention_view(pixels, model, (70.0, 66.0), layer=1, device="cpu")
    assert view.weights.shape == (2, 4, 4)
    assert sum(view.shares()) == pytest.approx(1, abs=1e-5)
    crop = open_pyramid(pixels).crop(corner=view.boxes[:, 0], levels=(1, 4), size=32)
    low, high = np.percentile(pixels, (1, 99.8))
    x = np.where(crop.valid[:, None], (crop.image - low) / (high - low), 0).astype(np.float32)
    row, column = ((np.array([70.0, 66.0]) - crop.bbox[0, 0]) // 8).astype(int)
    bbox = torch.from_numpy(crop.bbox - crop.bbox[-1].mean(axis=0)).float()
    with torch.inference_mode():
        found = model.encoder.attention_map(
            torch.from_numpy(x)[None], bbox[None], layer=1, queries=torch.tensor([row * 4 + column])
        )
    np.testing.assert_allclose(view.weights, found[0, :, 0].mean(0).numpy(), atol=1e-4)


@pytest.mark.parametrize("place", [(0.0, 0.0), (149.0, 129.0), (75.0, 3.0)])
def test_crops_stay_inside_where_they_fit_and_hold_the_place(model, place):
    view = attention_view(image(), model, place, device="cpu")
    reach = np.array([[1e-6], [4.0]])  # coarse crops start on their own pixels
    assert np.all(view.boxes[:, 0] <= np.asarray(place) + reach)
    assert np.all(view.boxes[:, 1] >= np.asarray(place) - reach)
    assert np.all(view.boxes[0, 0] >= -0.5 - 1e-6)
    assert np.all(view.boxes[0, 1] <= np.array([149.5, 129.5]) + 1e-6)


def test_a_folder_will_do(model, tmp_path):
    view = attention_view(image(), save(model, tmp_path / "model"), (20, 20), device="cpu")
    assert view.levels == (1.0, 4.0)


def test_wrong_places_and_layers_are_refused(model):
    with pytest.raises(InputError, match="Choose a place inside"):
        attention_view(image(), model, (400.0, 2.0), device="cpu")
    with pytest.raises(InputError, match="2 layers"):
        attention_view(image(), model, (4.0, 2.0), layer=5, device="cpu")


def test_pixels_that_are_no_numbers_are_padding(model):
    pixels = image()
    pixels[:, 60:80] = np.nan
    view = attention_view(pixels, model, (70.0, 90.0), device="cpu")
    assert sum(view.shares()) == pytest.approx(1, abs=1e-5)
