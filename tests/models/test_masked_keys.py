"""Masked tokens of a level as one key: the same as looking at every one of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from napari_muvit.models import masked_keys
from napari_muvit.models.kernels import KernelChoice, use_kernels
from napari_muvit.models.masked_keys import MaskedKeys
from napari_muvit.models.rope import base_frequencies, build_frequencies, rotary_table, rotate
from napari_muvit.models.tokens import Spread

GRIDS = [(3, 4), (2, 3, 2), (2, 2, 3, 2)]
LEVELS = 2


class Sequence:
    """A masked sequence: 2 samples, 2 heads, 2 levels of `grid`, 3 queries."""

    def __init__(self, grid: tuple[int, ...], *, turns: bool = True, size: float = 1.0) -> None:
        source = torch.Generator().manual_seed(len(grid))

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=source, dtype=torch.float64)

        self.grid, num = grid, math.prod(grid)
        visible = [torch.randperm(LEVELS * num, generator=source)[: num // 2] for _ in range(2)]
        self.spread = Spread(torch.stack(visible), LEVELS, grid)
        width = 4 * len(grid)
        self.q = (size * draw(2, 2, 3, width)).requires_grad_()
        self.keys, self.values = (
            draw(2, 2, num // 2 + LEVELS, width).requires_grad_() for _ in range(2))
        axes = [draw(2, LEVELS, count) * 9 for count in grid]
        mesh = [
            torch.stack([torch.stack(torch.meshgrid(*[a[b, row] for a in axes], indexing="ij"), -1)
                         for row in range(LEVELS)]) for b in range(2)
        ]
        self.coords = torch.stack(mesh).flatten(1, -2)
        initial = [base_frequencies(4, 10.0).double() for _ in grid]
        self.frequencies = build_frequencies(initial, is_trainable=True) if turns else None

    @property
    def inputs(self) -> list[Tensor]:
        learnt = [] if self.frequencies is None else list(self.frequencies.parameters())
        return [self.q, self.keys, self.values, *learnt]

    def each(self) -> Tensor:
        """Attention to every token."""
        keys, values = (
            self.spread(t.transpose(1, 2).flatten(2)).unflatten(2, (2, -1)).transpose(1, 2)
            for t in (self.keys, self.values)
        )
        keys = rotate(keys, rotary_table(self.coords, self.frequencies))
        return functional.scaled_dot_product_attention(self.q, keys, values)

    def grouped(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The same by `MaskedKeys`."""
        num, visible = self.spread.visible.shape[1], self.spread.visible
        index = visible[..., None].expand(-1, -1, len(self.grid))
        table = rotary_table(self.coords.gather(1, index), self.frequencies)
        angles = None
        if self.frequencies is not None:
            places = self.spread.along_axes(self.coords)
            angles = tuple(
                axis(place) for axis, place in zip(self.frequencies, places, strict=True))
        context = MaskedKeys(
            rotate(self.keys[:, :, :num], table).to(dtype), self.values[:, :, :num].to(dtype),
            self.keys[:, :, num:].to(dtype), self.values[:, :, num:].to(dtype), angles,
            self.spread.is_masked,
        )
        return context.attend(self.q.to(dtype))


@pytest.mark.parametrize("turns", [True, False])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_it_equals_looking_at_every_masked_token(grid: tuple[int, ...], turns: bool) -> None:
    data = Sequence(grid, turns=turns)
    expected, found = data.each(), data.grouped()
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    wanted = torch.autograd.grad(expected.square().sum(), data.inputs)
    for got, want in zip(
        torch.autograd.grad(found.square().sum(), data.inputs), wanted, strict=True
    ):
        torch.testing.assert_close(got, want, atol=1e-11, rtol=0)


def test_queries_in_parts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Sequence((2, 3, 2))
    whole = data.grouped()
    monkeypatch.setattr(masked_keys, "MOST_QUERIES", 2)
    torch.testing.assert_close(data.grouped(), whole, atol=1e-15, rtol=0)


@pytest.mark.parametrize("attention", ["torch", "blocks", "blocks_backward"])
def test_in_half_precision_scores_of_levels_stay_exact(attention: str) -> None:
    """Scores near 20 have steps of 1/8 in bfloat16, which would be errors of weights of 12 %."""
    data = Sequence((3, 4), size=8.0)
    with use_kernels(KernelChoice(attention=attention, precision="bf16")):  # type: ignore[arg-type]
        found = data.grouped(torch.bfloat16)
    assert found.dtype == torch.bfloat16
    exact = Sequence((3, 4), size=8.0)
    with torch.no_grad():
        for tensor in (exact.q, exact.keys, exact.values):
            tensor.copy_(tensor.bfloat16())
    error = (found.double() - exact.each()).abs().max() / exact.each().abs().max()
    assert error < 0.03


@pytest.mark.parametrize("count", [0, 24])
def test_levels_without_masked_or_visible_tokens(count: int) -> None:
    """All masked, and none: the latter's level keys are never looked at."""
    data = Sequence((3, 4))
    data.spread = Spread(torch.arange(count).expand(2, -1), LEVELS, (3, 4))
    data.keys, data.values = (
        torch.randn(2, 2, count + LEVELS, 8, dtype=torch.float64).requires_grad_()
        for _ in range(2))
    found = data.grouped()
    torch.testing.assert_close(found, data.each(), atol=1e-12, rtol=0)
    grads = torch.autograd.grad(found.sum(), data.inputs[:3])
    assert all(grad.isfinite().all() for grad in grads)


def test_large_scores_do_not_overflow() -> None:
    data = Sequence((3, 4), size=300.0)
    torch.testing.assert_close(
        data.grouped(torch.float32).double(), data.each(), atol=1e-3, rtol=0)
