"""Segmentation losses that leave unlabelled pixels out and add up over parts of a batch.

Every loss is a sum over samples divided by a total that is known before the forward pass, so
a batch gives the same loss and gradient whole, in parts (accumulation), or spread over
processes. MuViT, section 3.4 and supplement A.3.

Axis letters: B batch, K classes, S spatial extent.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from napari_muvit.models.devices import widest_float

IGNORE = -1
"""Value of `target` where nothing was judged."""

SMOOTH = 1.0
"""Pixels added to both sides of a Dice fraction, so that tiny regions do not dominate."""


def judged_weight(target: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Sum of class weights over judged pixels, the divisor of the cross-entropy; scalar.

    Parameters
    ----------
    target
        (B, *S) int64, class index or `IGNORE`.
    class_weights
        (K,) float, or None for 1 each.
    """
    judged = target[target != IGNORE]
    wide = widest_float(target.device)
    if class_weights is None:
        return torch.tensor(float(judged.numel()), dtype=wide, device=target.device)
    return class_weights.to(wide)[judged].sum()


def present_classes(target: Tensor, num_classes: int, background: int | None) -> Tensor:
    """Which classes each sample's truth holds, (B, K) bool; never the background."""
    flat = target.flatten(1)
    # One more column takes what is not judged: a mask as index would make a GPU wait.
    marked = torch.zeros(len(flat), num_classes + 1, dtype=torch.bool, device=target.device)
    present = marked.scatter(1, flat - IGNORE, True)[:, 1:]
    if background is not None:
        present[:, background] = False
    return present


def cross_entropy_sum(
    logits: Tensor, target: Tensor, class_weights: Tensor | None = None
) -> Tensor:
    """Weighted cross-entropy summed over judged pixels; scalar.

    Parameters
    ----------
    logits
        (B, K, *S) float.
    target
        (B, *S) int64, class index or `IGNORE`.
    """
    if torch.are_deterministic_algorithms_enabled():
        return _gathered_entropy(logits.float(), target, class_weights)
    return F.cross_entropy(
        logits.float(), target, weight=class_weights, ignore_index=IGNORE, reduction="sum"
    )


def _gathered_entropy(logits: Tensor, target: Tensor, class_weights: Tensor | None) -> Tensor:
    """The same without torch's own loss, which has no deterministic kernel for pixels on CUDA."""
    truth = target.clamp(min=0)
    entropy = -logits.log_softmax(dim=1).gather(1, truth[:, None])[:, 0]
    if class_weights is not None:
        entropy = entropy * class_weights[truth]
    return torch.where(target == IGNORE, 0.0, entropy).sum()


def dice_sum(logits: Tensor, target: Tensor, present: Tensor) -> Tensor:
    """1 - soft Dice summed over the (sample, class) pairs marked in `present`; scalar.

    Unlabelled pixels are in neither the overlap nor the sizes, so their gradient is zero.

    Parameters
    ----------
    logits
        (B, K, *S) float.
    target
        (B, *S) int64, class index or `IGNORE`.
    present
        (B, K) bool, see `present_classes`.
    """
    judged_BS = (target != IGNORE).flatten(1)
    prob_BKS = logits.float().softmax(dim=1).flatten(2) * judged_BS[:, None]
    truth_BS = target.flatten(1).clamp(min=0)
    truth_BKS = F.one_hot(truth_BS, logits.shape[1]).movedim(-1, 1) * judged_BS[:, None]
    overlap = (prob_BKS * truth_BKS).sum(-1)
    sizes = prob_BKS.sum(-1) + truth_BKS.sum(-1)
    dice_BK = (2 * overlap + SMOOTH) / (sizes + SMOOTH)
    return ((1 - dice_BK) * present).sum()
