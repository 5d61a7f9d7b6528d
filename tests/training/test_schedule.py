"""Learning rates by batch size, warm-up and cosine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_muvit.training.schedule import epoch_of, finetune_rate, pretrain_rate, rate_at


def test_rates_are_the_papers_at_its_batch_sizes():
    assert pretrain_rate(48) == pytest.approx(6e-5, rel=0.03)
    assert finetune_rate(16) == pytest.approx(1e-4)
    assert pretrain_rate(128) == 2 * pretrain_rate(32)


def test_narrower_models_learn_at_a_higher_rate():
    assert finetune_rate(16, 128) == 4 * finetune_rate(16, 512) == 4 * finetune_rate(16)
    assert pretrain_rate(48, 256) == 4 * pretrain_rate(48)
    assert pretrain_rate(48, 1024) == pretrain_rate(48) / 2
    assert pretrain_rate(48, 64) == pretrain_rate(48, 128) == 16 * pretrain_rate(48)


def test_warm_up_rises_to_the_highest_and_cosine_falls_to_nearly_zero():
    rates = [rate_at(step, 100, 1.0, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[10] == 1.0
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[-1] < 1e-3


@given(st.integers(1, 500), st.floats(0, 0.99), st.data())
def test_rate_is_never_above_the_highest_nor_zero(steps, warmup, data):
    step = data.draw(st.integers(0, steps - 1))
    assert 0 < rate_at(step, steps, 3e-4, warmup) <= 3e-4


def test_epochs_count_samples():
    assert [epoch_of(step, 48, 10_000) for step in (0, 208, 209, 417)] == [0, 0, 1, 2]
