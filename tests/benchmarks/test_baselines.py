"""The baselines and their plain loop."""

from __future__ import annotations

import pytest
import torch
from experiments.baselines import BASELINES
from experiments.plain_loop import predict_tiles, tile_starts


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_logits_have_the_size_of_the_image(name):
    model = BASELINES[name](2, 3)
    logits = model(torch.randn(2, 2, 32, 64))
    assert logits.shape == (2, 3, 32, 64)
    logits.sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_logits_depend_on_the_image(name):
    model = BASELINES[name](1, 3).eval()
    assert not torch.equal(model(torch.zeros(1, 1, 32, 32)), model(torch.ones(1, 1, 32, 32)))


@pytest.mark.parametrize(("side", "size", "step"), [(64, 64, 48), (100, 64, 48), (512, 64, 48)])
def test_tiles_cover_every_pixel(side, size, step):
    starts = tile_starts(side, size, step)
    covered = {pixel for start in starts for pixel in range(start, start + size)}
    assert covered == set(range(side))


@pytest.mark.parametrize("sides", [(40, 56), (16, 30), (16, 16), (10, 56), (7, 9)])
def test_tiles_are_put_back_where_they_were(sides):
    image = torch.rand(1, *sides)

    def threshold(tiles):
        assert tiles.shape[-2:] == (16, 16)
        return torch.cat([20 * (tiles - 0.5), 20 * (0.5 - tiles)], dim=1)

    labels = predict_tiles(threshold, image, 16, 0.25, 2).argmax(0)
    assert torch.equal(labels, (image[0] < 0.5).long())
