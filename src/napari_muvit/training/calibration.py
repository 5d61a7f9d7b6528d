"""How sure a segmenter may be: one temperature for its logits, fitted on validation crops.

A network that fits its training images well gives probabilities that are too high elsewhere.
Logits divided by a temperature rank classes as before; the temperature that makes the
cross-entropy of validation crops least takes most of the excess away (Guo et al., ICML 2017).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from napari_muvit.training.losses import cross_entropy_sum

STEP = math.sqrt(2)
TEMPERATURES = tuple(math.pow(2, k / 2) for k in range(-2, 8))
"""Tried on every validation crop, `STEP` times as much each; the best one lies between them."""


def entropies(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of judged pixels under each of `TEMPERATURES`, summed; (T,) float64.

    Without class weights, which ask for other probabilities than those that come true.

    Parameters
    ----------
    logits
        (B, K, *S) float.
    target
        (B, *S) int64, class index or `losses.IGNORE`.
    """
    sums = [cross_entropy_sum(logits.float() / t, target) for t in TEMPERATURES]
    return torch.stack(sums).cpu().double()


def best_temperature(sums: Tensor) -> float:
    """Where `entropies`, added up over crops, are least: between three by a parabola.

    1 where nothing was judged, or the sums are no numbers.
    """
    if not bool(torch.isfinite(sums).all()) or not bool((sums > 0).any()):
        return 1.0
    best = int(sums.argmin())
    if not 0 < best < len(sums) - 1:
        return TEMPERATURES[best]
    before, here, after = sums[best - 1 : best + 2].tolist()
    bend = before - 2 * here + after
    shift = (before - after) / (2 * bend) if bend > 0 else 0.0
    return TEMPERATURES[best] * math.pow(STEP, shift)
