"""The head that asks coarser levels what they see."""

from __future__ import annotations

import torch

from napari_muvit.models.level_supervision import LevelSupervision


def _case() -> tuple[LevelSupervision, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    head = LevelSupervision(dim=8, num_levels=3, num_classes=4)
    tokens = torch.randn(2, 3, 5, 5, 8)
    fractions = torch.rand(2, 3, 4, 5, 5).softmax(dim=2)
    return head, tokens, fractions, torch.rand(2, 3, 5, 5)


def test_every_coarser_level_has_its_own_layer() -> None:
    head, tokens, _, _ = _case()
    logits = head(tokens)
    assert logits.shape == (2, 2, 4, 5, 5)
    changed = tokens.clone()
    changed[:, 1] += 1
    changed[:, 0] += torch.randn(8)
    assert torch.equal(head(changed)[:, 1], logits[:, 1])


def test_the_loss_is_least_where_shares_are_right() -> None:
    head, tokens, fractions, valid = _case()
    optimizer = torch.optim.Adam([tokens.requires_grad_(), *head.parameters()], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loss = head.loss(tokens, fractions, valid)
        loss.backward()
        optimizer.step()
    best = -(fractions * fractions.log()).sum(2)[:, 1:]
    entropy = (best * valid[:, 1:]).sum() / valid[:, 1:].sum()
    assert 0 <= loss.item() - entropy.item() < 0.02


def test_patches_without_labels_have_no_say() -> None:
    head, tokens, fractions, valid = _case()
    valid[0] = 0
    fractions[0] = torch.nan
    tokens.requires_grad_()
    head.loss(tokens, fractions, valid).backward()
    assert tokens.grad is not None
    assert torch.equal(tokens.grad[0], torch.zeros_like(tokens.grad[0]))
    assert torch.isfinite(tokens.grad).all()
    assert tokens.grad[1, 1:].abs().sum() > 0
    assert tokens.grad[1, 0].abs().sum() == 0
    assert head.loss(tokens, fractions, torch.zeros_like(valid)) == 0


def test_one_level_alone_has_nothing_to_ask() -> None:
    head = LevelSupervision(dim=8, num_levels=1, num_classes=2)
    tokens = torch.randn(2, 1, 3, 3, 8)
    assert head(tokens).shape == (2, 0, 2, 3, 3)
    assert head.loss(tokens, torch.ones(2, 1, 2, 3, 3), torch.ones(2, 1, 3, 3)) == 0
