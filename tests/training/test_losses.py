"""Losses: what they equal, what they leave out, how they add up."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_muvit.training.device import torch_settings
from napari_muvit.training.losses import (
    IGNORE,
    SMOOTH,
    cross_entropy_sum,
    dice_sum,
    judged_weight,
    present_classes,
)


def example(seed=0, batch=3, classes=4, side=5):
    torch.manual_seed(seed)
    logits = torch.randn(batch, classes, side, side, dtype=torch.float64, requires_grad=True)
    target = torch.randint(-1, classes, (batch, side, side))
    return logits, target


def test_cross_entropy_is_torchs_mean_over_judged_pixels():
    logits, target = example()
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0])
    for w in (None, weights):
        mine = cross_entropy_sum(logits, target, w) / judged_weight(target, w)
        theirs = F.cross_entropy(logits.float(), target, w, ignore_index=IGNORE)
        assert float(mine.detach()) == pytest.approx(float(theirs.detach()), rel=1e-6)


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 0.5, 3.0])])
def test_deterministic_cross_entropy_is_the_same_without_torchs_loss(weights, monkeypatch):
    logits, target = example()
    theirs = cross_entropy_sum(logits, target, weights)
    expected = torch.autograd.grad(theirs, logits)[0]

    def refuse(*args, **kwargs):  # as torch does on CUDA
        raise RuntimeError("nll_loss2d does not have a deterministic implementation")

    monkeypatch.setattr(F, "cross_entropy", refuse)
    with torch_settings(threads=None, deterministic=True):
        mine = cross_entropy_sum(logits, target, weights)
        found = torch.autograd.grad(mine, logits)[0]
    assert float(mine.detach()) == pytest.approx(float(theirs.detach()), rel=1e-6)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert not found[(target == IGNORE)[:, None].expand_as(found)].any()


def test_dice_by_hand():
    logits = torch.zeros(1, 2, 1, 4)
    logits[0, 1] = torch.tensor([9.0, 9.0, -9.0, -9.0])
    target = torch.tensor([[[1, 0, 1, IGNORE]]])
    p = torch.sigmoid(torch.tensor(9.0)).item()
    overlap, sizes = p + (1 - p), (p + p + (1 - p)) + 2
    expected = 1 - (2 * overlap + SMOOTH) / (sizes + SMOOTH)
    present = present_classes(target, 2, background=0)
    assert present.tolist() == [[False, True]]
    assert float(dice_sum(logits, target, present)) == pytest.approx(expected, rel=1e-5)


def test_perfect_prediction_has_no_dice_loss():
    target = torch.randint(0, 3, (2, 8, 8))
    logits = F.one_hot(target, 3).movedim(-1, 1) * 100.0
    present = present_classes(target, 3, None)
    assert float(dice_sum(logits, target, present)) == pytest.approx(0, abs=1e-6)


def test_gradients_at_pixels_that_are_not_judged_are_exactly_zero():
    logits, target = example()
    present = present_classes(target, 4, background=0)
    loss = cross_entropy_sum(logits, target) + dice_sum(logits, target, present)
    loss.backward()
    hidden = (target == IGNORE)[:, None].expand_as(logits)
    assert hidden.any()
    assert torch.all(logits.grad[hidden] == 0)
    assert torch.any(logits.grad[~hidden] != 0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3))
def test_parts_add_up_to_the_whole(seed, cut):
    logits, target = example(seed, batch=4)
    present = present_classes(target, 4, None)

    def both(part):
        return (cross_entropy_sum(logits[part], target[part])
                + dice_sum(logits[part], target[part], present[part]))

    whole = both(slice(None)).detach()
    parts = (both(slice(0, cut)) + both(slice(cut, None))).detach()
    assert float(parts) == pytest.approx(float(whole), rel=1e-5)


def test_nothing_judged_is_no_error():
    logits, _ = example()
    target = torch.full((3, 5, 5), IGNORE)
    present = present_classes(target, 4, None)
    assert not present.any()
    assert float(cross_entropy_sum(logits, target).detach()) == 0
    assert float(judged_weight(target)) == 0
