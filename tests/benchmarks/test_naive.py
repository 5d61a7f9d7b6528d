"""The paper's control: within, boxes are not true, and afterwards they are again."""

from __future__ import annotations

import pytest
import torch
from experiments.naive import naive_boxes

from napari_muvit.models.encoder import Encoder
from napari_muvit.models.mae import MAE
from napari_muvit.models.segmenter import Segmenter

SIZES = {"in_channels": 1, "levels": (1, 4), "patch_size": 4, "num_layers": 1, "dim": 32,
         "heads": 1, "ndim": 2}


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    boxes = torch.tensor([[[0.0, 0.0], [16.0, 16.0]], [[-40.0, -3.0], [24.0, 61.0]]])
    return torch.randn(1, 2, 1, 16, 16), boxes[None]


def test_a_segmenter_sees_concentric_boxes_within(inputs):
    model = Segmenter(Encoder(**SIZES), 2, head_dim=16).eval()
    true = model(*inputs)
    with naive_boxes():
        within = model(*inputs)
    assert torch.equal(within, model(inputs[0]))
    assert not torch.equal(within, true)
    assert torch.equal(model(*inputs), true)


def test_so_does_an_autoencoder(inputs):
    model = MAE(**SIZES, num_layers_decoder=1, dim_decoder=32).eval()
    visible = torch.tensor([[0, 5, 17, 30]])
    true = model(*inputs, visible_idx=visible)["loss"]
    with naive_boxes():
        within = model(*inputs, visible_idx=visible)["loss"]
    assert within == model(inputs[0], visible_idx=visible)["loss"]
    assert within != true


def test_it_can_be_switched_off(inputs):
    model = Segmenter(Encoder(**SIZES), 2, head_dim=16).eval()
    with naive_boxes(False):
        assert not torch.equal(model(*inputs), model(inputs[0]))
