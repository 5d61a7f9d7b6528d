"""Probabilities that come true as often as they say."""

from __future__ import annotations

import pytest
import torch

from napari_muvit.training.calibration import TEMPERATURES, best_temperature, entropies
from napari_muvit.training.losses import IGNORE


def crops(over: float, pixels: int = 40_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `over` times too large for how often their classes come true."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 4, pixels // 2, 1, generator=generator) * 2
    chances = logits.softmax(1).movedim(1, -1).reshape(-1, 4)
    drawn = torch.multinomial(chances, 1, generator=generator)
    return logits * over, drawn.reshape(2, pixels // 2, 1)


@pytest.mark.parametrize("over", [0.6, 1.0, 1.3, 3.0, 8.0])
def test_the_temperature_that_was_put_in_comes_out(over):
    logits, target = crops(over)
    assert best_temperature(entropies(logits, target)) == pytest.approx(over, rel=0.05)


def test_crops_add_up_and_unlabelled_pixels_count_for_nothing():
    logits, target = crops(2.0, 2000)
    whole = entropies(logits, target)
    assert torch.allclose(whole, sum(entropies(logits[i:i + 1], target[i:i + 1])
                                     for i in range(2)))
    target[:, ::3] = IGNORE
    logits[:, :, ::3] = 1000.0
    rest = [i for i in range(1000) if i % 3]
    assert torch.allclose(entropies(logits, target),
                          entropies(logits[:, :, rest], target[:, rest]))


@pytest.mark.parametrize("sums", [torch.zeros(len(TEMPERATURES)),
                                  torch.full((len(TEMPERATURES),), float("nan"))])
def test_without_judged_pixels_logits_stay_as_they_are(sums):
    assert best_temperature(sums) == 1.0


@pytest.mark.parametrize("over", [0.01, 1000.0])
def test_it_stays_among_those_that_are_tried(over):
    logits, target = crops(over, 4000)
    assert best_temperature(entropies(logits, target)) in (TEMPERATURES[0], TEMPERATURES[-1])
