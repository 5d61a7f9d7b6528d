"""Coarse levels encoded once, fine tiles many times."""

from __future__ import annotations

import pytest
import torch

from napari_muvit.errors import InputError
from napari_muvit.models.encoder import Encoder
from napari_muvit.models.layers import level_groups, level_mask


def encoder(levels=(1, 4, 16), **options) -> Encoder:
    torch.manual_seed(0)
    return Encoder(1, levels, 4, num_layers=3, dim=48, heads=2,
                   **{"attention_mode": "coarse_to_fine", **options}).eval()


def crops(batch=2, centre=1e6, dtype=torch.float64):
    torch.manual_seed(1)
    half = torch.tensor([1.0, 4, 16], dtype=dtype)[:, None] * torch.tensor([8.0, 12], dtype=dtype)
    bbox = torch.stack([centre - half, centre + half], dim=1).repeat(batch, 1, 1, 1)
    bbox[:, 0] += torch.arange(batch, dtype=dtype)[:, None, None] * 3
    return torch.randn(batch, 3, 1, 16, 24), bbox


@pytest.mark.parametrize("num_coarse", [1, 2])
@pytest.mark.parametrize(("centre", "dtype"), [(1e6, torch.float64), (100.0, torch.float32)])
def test_cached_and_uncached_agree(num_coarse, centre, dtype):
    model = encoder()
    x, bbox = crops(centre=centre, dtype=dtype)
    fine = 3 - num_coarse
    expected, coords, level_idx, kept = model(x, bbox, (0, 2))
    context = model.encode_context(x[:, fine:], bbox[:, fine:])
    found = model.encode_fine(x[:, :fine], bbox[:, :fine], context, layers=(0, 2))
    count = fine * 24
    assert torch.allclose(found[0], expected[:, :count], rtol=0, atol=1e-6)
    assert torch.allclose(context.outputs[-1], expected[:, count:], rtol=0, atol=1e-6)
    assert torch.equal(found[1], coords[:, :count])
    assert torch.equal(found[2], level_idx[:, :count])
    for a, b in zip(found[3], kept, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)


def test_one_context_serves_many_tiles():
    model = encoder()
    x, bbox = crops(batch=1)
    tiles = torch.randn(3, 1, 1, 16, 24)
    boxes = bbox[:, :1] + torch.tensor([-9.0, 0, 9])[:, None, None, None]
    context = model.encode_context(x[:, 1:], bbox[:, 1:])
    found, _, _ = model.encode_fine(tiles, boxes, context)
    for tile, box, features in zip(tiles, boxes, found, strict=True):
        whole = torch.cat([tile[None], x[:, 1:]], dim=1)
        expected = model(whole, torch.cat([box[None], bbox[:, 1:]], dim=1))[0]
        assert torch.allclose(features, expected[0, :24], rtol=0, atol=1e-6)


def test_coarse_tokens_never_see_fine_ones_but_fine_ones_see_coarse():
    model = encoder()
    x, bbox = crops()
    before = model(x, bbox)[0]
    for level, affected in ((0, [True, False, False]), (2, [True, True, True])):
        changed = x.clone()
        changed[:, level] += 1
        difference = (model(changed, bbox)[0] - before).abs().unflatten(1, (3, -1))
        assert (difference.amax(dim=(0, 2, 3)) > 0).tolist() == affected


@pytest.mark.parametrize("mode", ["causal", "same", "coarse_to_fine"])
def test_blocks_mean_the_same_as_masks(mode):
    level_idx = torch.arange(3).repeat_interleave(4)
    mask = level_mask(mode, level_idx[None], range(3))[0, 0]
    blocks = torch.zeros(12, 12, dtype=torch.bool)
    for rows, cols in level_groups(mode, range(3), 4):
        blocks[rows, cols] = True
    assert torch.equal(blocks, mask)


def test_levels_in_another_order_are_masked_by_their_size():
    """Levels taken out in descending order still look at coarser ones only."""
    model = encoder()
    x, bbox = crops(batch=1)
    expected = model.extract_levels((1, 16))(x[:, [0, 2]], bbox[:, [0, 2]])[0]
    turned = model.extract_levels((16, 1))
    found = turned(x[:, [2, 0]], bbox[:, [2, 0]])[0]
    assert torch.allclose(found[:, 24:], expected[:, :24], atol=2e-6)
    with pytest.raises(InputError, match="ascending"):
        turned.encode_context(x[:, :1], bbox[:, :1])


def test_other_modes_have_no_context():
    x, bbox = crops()
    with pytest.raises(InputError, match="attention_mode is 'all'"):
        encoder(attention_mode="all").encode_context(x[:, 1:], bbox[:, 1:])
