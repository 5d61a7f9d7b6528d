"""Learning rates: by batch size and width, warm-up then cosine. Pure functions of the step.

No scheduler object has state to save, so a resumed run cannot disagree about the rate.
MuViT, supplement A.2 and A.3.
"""

from __future__ import annotations

import math

PAPER_WIDTH = 512
"""Width of the encoder that the paper's rates are for."""


def pretrain_rate(batch_size: int, width: int = PAPER_WIDTH) -> float:
    """Highest rate of pretraining: 1e-4 sqrt(B / 128), 6e-5 at the paper's batch of 48.

    The square root is the official project's rule (its MAE's ``fit``). For narrower encoders the
    factor of `finetune_rate` is squared, up to 16: in the short runs that they are for, the
    paper's rate, made for long ones, left much unlearned (docs/benchmarks.md).
    """
    factor = PAPER_WIDTH / width
    return 1e-4 * math.sqrt(batch_size / 128) * min(max(factor, factor**2), 16.0)


def finetune_rate(batch_size: int, width: int = PAPER_WIDTH) -> float:
    """Highest rate of fine-tuning: 1e-4 at the paper's batch of 16, by the same root.

    Narrower encoders learn at a rate that is higher in proportion, as Adam's steps ask for (Yang
    et al. 2021, Tensor Programs V).
    """
    return 1e-4 * math.sqrt(batch_size / 16) * PAPER_WIDTH / width


def rate_at(step: int, steps: int, highest: float, warmup: float) -> float:
    """Learning rate of optimizer step `step` (from 0) out of `steps`.

    Rises in equal parts over the first ``warmup * steps`` steps, reaches `highest`, then
    follows half a cosine down to zero at the end of the run.
    """
    rising = round(warmup * steps)
    if step < rising:
        return highest * (step + 1) / (rising + 1)
    share = (step - rising) / max(1, steps - rising)
    return highest * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def epoch_of(step: int, batch_size: int, epoch_size: int) -> int:
    """Number of whole epochs after `step` steps; an epoch is `epoch_size` samples."""
    return step * batch_size // epoch_size
