"""The linear head: what it gives at a pixel is the weighed tokens interpolated there."""

from __future__ import annotations

import pytest
import torch

from napari_muvit.inference.instant_features import FeatureMap
from napari_muvit.models.checkpoint import ModelMeta, load_model, save_model
from napari_muvit.models.encoder import Encoder
from napari_muvit.models.linear import LinearHead, pixel_places
from napari_muvit.models.segmenter import Segmenter

BOXES = torch.tensor([[[10.0, 20], [26, 36]], [[-14, 4], [50, 68]]], dtype=torch.float64)


def test_logits_are_the_weighed_features_at_each_pixel() -> None:
    torch.manual_seed(0)
    head = LinearHead(5, 2, 3)
    head.weight.data.normal_()
    head.bias.data.normal_()
    tokens = torch.randn(1, 2, 4, 4, 5)
    with torch.no_grad():
        found = head([tokens], torch.zeros(1, 1, 16, 16), BOXES[None])
    points = torch.stack(torch.meshgrid(
        torch.arange(10.5, 26.5), torch.arange(20.5, 36.5), indexing="ij"), -1).reshape(-1, 2)
    expected = head.bias.detach().expand(256, 3).clone()
    for level in range(2):
        features = FeatureMap.in_box(tokens[0, level].numpy(), BOXES[level].numpy())
        weights = head.weight[level].detach().T
        expected += torch.from_numpy(features.at(points.numpy())) @ weights
    assert torch.allclose(found[0].movedim(0, -1).reshape(-1, 3), expected, atol=1e-4)


def test_places_are_relative_to_the_box_and_in_reverse_order() -> None:
    places = pixel_places((2, 4, 8), torch.tensor([[[0.0, 0, 0], [2, 4, 8]]]),
                          torch.tensor([[[0.0, 0, -8], [2, 4, 8]]]))
    assert places.shape == (1, 2, 4, 8, 3)
    assert places[0, 0, 0, 0].tolist() == [0.0625, -0.75, -0.5]


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_linear_segmenter_is_saved_and_loaded_as_any_other(tmp_path, ndim) -> None:
    torch.manual_seed(0)
    encoder = Encoder(1, (1, 2), dim=64, num_layers=1, heads=2, patch_size=4, ndim=ndim)
    model = Segmenter(encoder, 3, decoder="linear").eval()
    model.head.weight.data.normal_()
    x = torch.rand(2, 2, 1, *(8,) * ndim)
    save_model(tmp_path / "m", model, ModelMeta("segmenter", crop_size=(8,) * ndim))
    again = load_model(tmp_path / "m").eval()
    with torch.no_grad():
        assert model(x).shape == (2, 3, *(8,) * ndim)
        assert torch.equal(model(x), again(x))
    model(x).square().sum().backward()
    assert model.head.weight.grad.abs().sum() > 0
