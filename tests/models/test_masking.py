"""Which tokens are visible."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_muvit.errors import InputError
from napari_muvit.models.masking import (
    Mask,
    MaskRule,
    consistent_order,
    draw_mask,
    mask_from_visible,
    masked_by_level,
)

LEVELS = (1, 4, 16)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(rule: MaskRule, batch: int = 3, patches: int = 20, seed: int = 0) -> Mask:
    return draw_mask(rule, batch, LEVELS, patches, generator(seed))


def visible_per_level(mask: Mask, patches: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(mask.visible // patches, len(LEVELS)).sum(dim=1)


@given(
    seed=st.integers(0, 99), ratio=st.floats(0.05, 0.95), batch=st.integers(0, 3),
    mode=st.sampled_from(["dirichlet", "random", (0.2, 0.3, 0.5), (0.0, 1.0, 0.0)]),
    consistent=st.booleans(), per_sample=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_every_token_is_either_visible_or_masked(
    seed, ratio, batch, mode, consistent, per_sample
):
    rule = MaskRule(ratio, mode, consistent=consistent, per_sample=per_sample)
    mask = draw(rule, batch, 7, seed)
    assert mask.visible.shape == (batch, int(21 * (1 - ratio)))
    both = torch.cat([mask.visible, mask.masked], dim=1)
    assert torch.equal(both.sort(dim=1).values, torch.arange(21).expand(batch, -1))
    again = draw(rule, batch, 7, seed)
    assert torch.equal(mask.visible, again.visible)


def test_ratios_hold_for_each_level():
    mask = draw(MaskRule(0.75, (0.5, 0.9, 1.0), is_ratio=True))
    assert visible_per_level(mask, 20).tolist() == [[10, 1, 0]] * 3


def test_weights_choose_visible_levels():
    mask = draw(MaskRule(0.75, (0.0, 1.0, 0.0)))
    assert visible_per_level(mask, 20).tolist() == [[0, 15, 0]] * 3


def test_dirichlet_weights_are_drawn_per_batch_or_per_sample():
    """Shares of a batch resemble each other only where their weights are common."""
    spread = {}
    for per_sample in (False, True):
        rule = MaskRule(0.75, "dirichlet", per_sample=per_sample)
        counts = torch.stack([
            visible_per_level(draw(rule, 4, 100, seed), 100).float() for seed in range(12)])
        spread[per_sample] = float(counts.std(dim=1).mean())
    assert spread[True] > 2 * spread[False]


def test_dirichlet_weights_have_the_official_distribution():
    """Our draw from normals and torch's Dirichlet(0.5) have the same moments."""
    from napari_muvit.models.masking import _dirichlet

    source = generator()
    draws = torch.stack([_dirichlet(3, source) for _ in range(4000)])
    assert torch.allclose(draws.mean(dim=0), torch.full((3,), 1 / 3), atol=0.02)
    # Var = a (a0 - a) / (a0^2 (a0 + 1)) with a = 1/2, a0 = 3/2
    assert torch.allclose(draws.var(dim=0), torch.full((3,), 0.5 / (2.25 * 2.5)), atol=0.01)


def test_consistent_masks_do_not_depend_on_the_other_levels():
    rule = MaskRule(0.75, "random", consistent=True)
    both = draw_mask(rule, 2, (1, 4), 16, generator())
    one = draw_mask(rule, 2, (4,), 16, generator())
    shared = both.visible[both.visible >= 16].reshape(2, -1) - 16
    assert torch.equal(shared, one.visible)


def test_samples_of_a_batch_have_masks_of_their_own():
    mask = draw(MaskRule(0.75, "random"), batch=2)
    assert not torch.equal(mask.visible[0].sort().values, mask.visible[1].sort().values)


def test_given_visible_tokens():
    mask = mask_from_visible(torch.tensor([[3, 0], [1, 2]], dtype=torch.int32), 4)
    assert mask.masked.tolist() == [[1, 2], [0, 3]]
    assert mask.visible.dtype == torch.int64


@pytest.mark.parametrize(
    "visible", [torch.zeros(3), torch.zeros(1, 9).long(), torch.zeros(1, 2), torch.ones(1, 2) > 0]
)
def test_visible_tokens_of_another_form_are_refused(visible):
    with pytest.raises(InputError, match="visible_idx has shape"):
        mask_from_visible(visible, 8)


@pytest.mark.parametrize("mode", ["dirichlt", (0.5, 0.5), (-1.0, 1.0, 1.0), (0.0, 0.0, 0.0)])
def test_modes_that_mean_nothing_are_refused(mode):
    with pytest.raises(InputError, match="Invalid masking_mode"):
        draw(MaskRule(0.75, mode))


def test_ratios_above_one_are_refused():
    with pytest.raises(InputError, match="between 0 and 1"):
        draw(MaskRule(0.75, (0.5, 1.5, 0.5), is_ratio=True))


def test_consistent_samples_have_masks_of_their_own():
    mask = draw_mask(MaskRule(0.75, "random", consistent=True), 2, (1, 4), 16, generator())
    assert not torch.equal(mask.visible[0].sort().values, mask.visible[1].sort().values)


def test_consistent_masks_keep_a_token_of_every_level():
    order = consistent_order(3, (1, 4, 16), 4, 0.95, generator())
    assert (order[:, :3] // 4 == torch.arange(3)).all()


def test_masked_patches_of_each_level_and_which_of_them_count():
    mask = mask_from_visible(torch.tensor([[0, 1, 4], [4, 5, 6]]), 8)
    found = [
        [sorted(places[counts].tolist()) for places, counts in zip(*level, strict=True)]
        for level in masked_by_level(mask, 2, 4)
    ]
    assert found == [[[2, 3], [0, 1, 2, 3]], [[1, 2, 3], [3]]]
    assert [places.shape for places, _ in masked_by_level(mask, 2, 4)] == [(2, 4), (2, 3)]
