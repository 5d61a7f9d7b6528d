"""Rotary positions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_muvit.errors import InputError
from napari_muvit.models.rope import (
    AxisFrequencies,
    base_frequencies,
    build_frequencies,
    rotary_table,
    rotate,
    scale_frequencies,
    split_head,
    wavelength_range,
)


@pytest.mark.parametrize(
    ("head", "axes", "shares"),
    [(64, 2, (32, 32)), (64, 3, (24, 20, 20)), (64, 4, (16, 16, 16, 16)), (40, 3, (16, 12, 12))],
)
def test_a_head_is_split_between_the_axes(head, axes, shares):
    assert split_head(head, axes) == shares


@pytest.mark.parametrize(("head", "axes"), [(16, 2), (24, 3), (33, 2)])
def test_heads_that_are_too_small_or_odd_are_refused(head, axes):
    with pytest.raises(InputError, match="dim / heads is even and at least"):
        split_head(head, axes)


def test_base_frequencies_are_powers():
    assert base_frequencies(4, 100.0).tolist() == pytest.approx([1.0, 0.1])


def test_scale_frequencies_have_the_wavelengths_asked_for():
    wavelengths = 2 * math.pi / scale_frequencies(10, 16.0, 2048.0).double()
    assert wavelengths[0].item() == pytest.approx(16, rel=1e-6)
    assert wavelengths[-1].item() == pytest.approx(2048, rel=1e-6)
    steps = wavelengths[1:] / wavelengths[:-1]
    assert torch.allclose(steps, steps[:1].expand(4), rtol=1e-5)


def test_wavelengths_follow_patches_and_views_of_each_axis():
    scales = ((1.0, 2.0), (1.0, 8.0))
    assert wavelength_range((4, 8), (16, 64), scales) == ((8.0, 32.0), (32.0, 1024.0))


@given(shift=st.floats(-1e3, 1e3), seed=st.integers(0, 100))
@settings(deadline=None, max_examples=20)
def test_products_depend_on_differences_only(shift, seed):
    torch.manual_seed(seed)
    frequencies = build_frequencies([base_frequencies(16, 100.0)] * 2, is_trainable=True).double()
    q, k = torch.randn(2, 1, 2, 3, 32, dtype=torch.float64)
    coords = torch.randn(1, 3, 2, dtype=torch.float64) * 50

    def products(moved):
        table = rotary_table(moved, frequencies)
        return rotate(q, table) @ rotate(k, table).transpose(-1, -2)

    assert torch.allclose(products(coords), products(coords + shift), atol=1e-9)


def test_rotation_turns_interleaved_pairs():
    t = torch.tensor([1.0, 0, 0, 1]).reshape(1, 1, 1, 4)
    angles = torch.tensor([math.pi / 2, math.pi]).reshape(1, 1, 1, 2)
    turned = rotate(t, (angles.cos(), angles.sin()))
    assert torch.allclose(turned.flatten(), torch.tensor([0.0, 1, 0, -1]), atol=1e-6)


@pytest.mark.parametrize("is_trainable", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_frequencies_never_become_half_precision(dtype, is_trainable):
    axis = AxisFrequencies(base_frequencies(16, 10_000.0), is_trainable=is_trainable)
    exact = axis.inv_freq.detach().clone()
    axis.to(dtype)
    assert torch.equal(axis.inv_freq, exact)
    assert axis.double().inv_freq.dtype == torch.float64
    assert isinstance(axis.inv_freq, torch.nn.Parameter) is is_trainable
