"""A light head on every coarser level's tokens, for training only.

From each patch's token alone it predicts which share of the patch's own pixels belongs to each
class. With the loss at the finest level alone, attention between levels comes late or not at
all; asking every level what it sees makes the coarse tokens worth looking at. The head stands
beside a segmenter, is trained with it and never saved.

Axis letters: B batch, L levels, G patch grid, D width, K classes.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from napari_muvit.models.layers import project


class LevelSupervision(nn.Module):
    """One norm and linear layer for each level but the finest.

    Parameters
    ----------
    dim
        Width of the tokens.
    num_levels
        Of the segmenter, the finest included.
    num_classes
        K.
    """

    def __init__(self, dim: int, num_levels: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_classes))
            for _ in range(num_levels - 1)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of class shares, (B, L - 1, K, *G) float32, of tokens (B, L, *G, D)."""
        logits = []
        for head, level in zip(self.heads, tokens.unbind(1)[1:], strict=True):
            norm, final = cast(nn.Sequential, head)
            logits.append(project(cast(nn.Linear, final), norm(level)).movedim(-1, 1))
        if logits:
            return torch.stack(logits, dim=1).float()
        shape = (tokens.shape[0], 0, self.num_classes, *tokens.shape[2:-1])
        return tokens.new_zeros(shape, dtype=torch.float32)

    def loss(self, tokens: Tensor, fractions: Tensor, valid: Tensor) -> Tensor:
        """Mean cross-entropy against the class shares, a scalar; 0 where nothing is labelled.

        Parameters
        ----------
        tokens
            (B, L, *G, D), see `Segmenter.forward_with_tokens`.
        fractions
            (B, L, K, *G) float32, share of each class among the labelled pixels of a patch.
        valid
            (B, L, *G) float32, weight of each patch: the share of its pixels that is labelled.
        """
        total, weight = self.loss_sum(tokens, fractions, valid)
        return total / weight.clamp(min=torch.finfo(total.dtype).tiny)

    def loss_sum(self, tokens: Tensor, fractions: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of weighted cross-entropies and of weights, to be divided over all processes."""
        weights = valid[:, 1:].float()
        # where, not a product: patches without labels may hold anything in `fractions`.
        shares = torch.where(weights[:, :, None] > 0, fractions[:, 1:].float(), 0.0)
        entropies = -(shares * self(tokens).log_softmax(dim=2)).sum(dim=2) * weights
        return entropies.sum(), weights.sum()
