"""Every kernel gives what plain torch gives; the choice is measured, recorded, local."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from napari_muvit.errors import ConfigError
from napari_muvit.models import blocked_attention as blocked_attention_module
from napari_muvit.models import kernels
from napari_muvit.models.blocked_attention import blocked_attention
from napari_muvit.models.kernels import KernelChoice, attention, current_choice, linear, use_kernels
from napari_muvit.models.mae import MAE

CHOICES = [
    KernelChoice(linear=name, attention=kind, precision=precision)
    for name in ("torch", "convolution")
    for kind in ("torch", "blocks", "blocks_backward")
    for precision in ("fp32", "bf16")
]


def _tolerance(choice: KernelChoice) -> float:
    return 1e-5 if choice.precision == "fp32" else 2e-2


def _draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 16), (2, 3, 16), (1, 1, 16), (0, 4, 16)])
def test_linear_and_its_gradients_equal_plain_torch(
    choice: KernelChoice, bias: bool, shape: tuple[int, ...]
) -> None:
    x, weight, offset = _draw(*shape), _draw(8, 16, seed=1) / 4, _draw(8, seed=2)
    inputs = [t.requires_grad_() for t in ((x, weight, offset) if bias else (x, weight))]
    expected = functional.linear(*inputs)
    wanted = torch.autograd.grad(expected.square().sum(), inputs)
    with use_kernels(choice):
        out = linear(*inputs)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected, atol=4 * _tolerance(choice), rtol=0)
    for got, want in zip(torch.autograd.grad(out.square().sum(), inputs), wanted, strict=True):
        largest = want.abs().max().item() if want.numel() else 0.0
        torch.testing.assert_close(got, want, atol=_tolerance(choice) * (1 + largest), rtol=0)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_attention_and_its_gradients_equal_plain_torch(
    choice: KernelChoice, masked: bool
) -> None:
    q, k, v = (_draw(2, 3, n, 8, seed=i).requires_grad_() for i, n in enumerate((7, 5, 5)))
    mask = torch.ones(7, 5, dtype=torch.bool).tril(2) if masked else None
    expected = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    wanted = torch.autograd.grad(expected.square().sum(), (q, k, v))
    with use_kernels(choice):
        out = attention(q, k, v, mask)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected, atol=_tolerance(choice), rtol=0)
    for got, want in zip(torch.autograd.grad(out.square().sum(), (q, k, v)), wanted, strict=True):
        torch.testing.assert_close(got, want, atol=4 * _tolerance(choice), rtol=0)


@pytest.mark.parametrize("is_fused", [False, True])
def test_blocked_attention_over_several_blocks_is_exact(
    is_fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocked_attention_module, "BACKWARD_BYTES", 300 * 40 * 8)
    q, k, v = (
        _draw(2, 2, n, 4, seed=i, dtype=torch.float64).requires_grad_()
        for i, n in enumerate((1100, 40, 40))
    )
    out = blocked_attention(q, k, v, kernels.convolution_linear, is_forward_fused=is_fused)
    expected = functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)
    weights = _draw(2, 2, 1100, 4, seed=9, dtype=torch.float64)
    got = torch.autograd.grad((out * weights).sum(), (q, k, v))
    want = torch.autograd.grad((expected * weights).sum(), (q, k, v))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_products_in_half_precision_are_half_and_others_are_left_alone() -> None:
    x, weight = _draw(64, 64), _draw(64, 64, seed=1)
    exact = x.double() @ weight.double().T
    with use_kernels(KernelChoice(precision="bf16")):
        half, double = linear(x, weight), linear(x.double(), weight.double())
        assert kernels.product_input(x).dtype == torch.bfloat16
        assert linear(kernels.product_input(x), weight).dtype == torch.bfloat16
    assert (half - exact).abs().max() > 1e-3  # or the choice did nothing
    torch.testing.assert_close(double, exact)
    assert kernels.product_input(x) is x


def test_choice_nests_ends_and_stays_in_its_thread() -> None:
    half, blocks = KernelChoice(precision="bf16"), KernelChoice(attention="blocks")
    seen: list[KernelChoice] = []
    with use_kernels(half):
        with use_kernels(blocks):
            assert current_choice() == blocks
        assert current_choice() == half
        thread = threading.Thread(target=lambda: seen.append(current_choice()))
        thread.start()
        thread.join()
    assert seen == [KernelChoice()]
    assert current_choice() == KernelChoice()


def test_choice_survives_a_config() -> None:
    choice = KernelChoice("convolution", "blocks", "bf16")
    assert KernelChoice.from_dict(choice.to_dict()) == choice
    assert KernelChoice.from_dict({}) == KernelChoice()


@pytest.mark.parametrize("values", [{"linear": "magic"}, {"speed": "high"}, {"precision": 16}])
def test_an_unknown_kernel_is_refused_by_name(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))) as caught:
        KernelChoice.from_dict(values)
    assert caught.value.field == "kernels"


class TestChoosing:
    """The probe with a made-up clock: no test here depends on the machine."""

    @staticmethod
    def _pretend(monkeypatch: pytest.MonkeyPatch, gains: dict[str, float]) -> None:
        def measure(jobs: dict[str, object]) -> dict[str, float]:
            return {name: gains.get(name, 1.0) for name in jobs}

        monkeypatch.setattr(kernels, "_measure", measure)

    def test_the_fastest_wins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._pretend(monkeypatch, {"convolution": 2.0, "blocks": 2.0})
        assert kernels.choose_kernels() == KernelChoice("convolution", "blocks")

    def test_a_narrow_lead_is_noise(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._pretend(monkeypatch, {"convolution": 1.05, "blocks": 0.5, "blocks_backward": 1.05})
        assert kernels.choose_kernels() == KernelChoice()

    def test_half_precision_is_granted_where_it_is_faster(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self._pretend(monkeypatch, {"bf16": 2.5})
        assert kernels.choose_kernels("bf16").precision == "bf16"
        self._pretend(monkeypatch, {"bf16": 0.7})
        assert kernels.choose_kernels("bf16").precision == "fp32"

    def test_a_job_is_as_fast_as_its_worse_clock_says(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = {"wall": 0.0, "own": 0.0}
        monkeypatch.setattr(kernels.time, "perf_counter", lambda: now["wall"])
        monkeypatch.setattr(kernels.time, "thread_time", lambda: now["own"])

        def spend(wall: float, own: float) -> None:
            now["wall"] += wall
            now["own"] += own

        jobs = {
            "torch": lambda: spend(8, 4), "lags": lambda: spend(16, 1), "fast": lambda: spend(2, 2)
        }
        gains = kernels._measure(jobs)
        assert gains["lags"] == 0.5
        assert gains["fast"] in (2.0, 4.0)  # the second clock is coarse on some systems

    @pytest.mark.parametrize("is_training", [False, True])
    def test_the_real_probe_runs(self, is_training: bool) -> None:
        for precision in ("fp32", "bf16"):
            choice = kernels.choose_kernels(
                precision, dim=32, heads=2, tokens=16, is_training=is_training)
            assert KernelChoice.from_dict(choice.to_dict()) == choice
        assert current_choice() == KernelChoice()

    def test_training_is_measured_with_its_backward_pass(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[tuple[int, bool]] = []

        def watched(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            out = functional.linear(x, weight, bias)
            seen.append((len(x), out.requires_grad))
            if out.requires_grad:
                out.register_hook(lambda _: seen.append((0, True)))
            return out

        monkeypatch.setattr(kernels, "_measure", lambda jobs: {
            name: (job() is not None) * 1.0 for name, job in jobs.items()})
        monkeypatch.setattr(kernels, "linear", watched)
        kernels.choose_kernels(dim=16, heads=2, tokens=8)
        assert set(seen) == {(8, False)}
        seen.clear()
        kernels.choose_kernels(dim=16, heads=2, tokens=5000, is_training=True)
        assert set(seen) == {(kernels.MOST_TRAINED_TOKENS, True), (0, True)}

    def test_other_devices_use_plain_torch(self) -> None:
        assert kernels.choose_kernels("fp32", device="cuda") == KernelChoice()
        assert kernels.choose_kernels("bf16", device="mps") == KernelChoice(precision="bf16")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_products_compile_without_breaks(precision: str) -> None:
    choice = KernelChoice("convolution", "blocks", precision)  # type: ignore[arg-type]
    x, weight, q = _draw(3, 16), _draw(8, 16), _draw(1, 2, 4, 8)

    def job(x: Tensor, weight: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        return linear(x, weight), attention(q, q, q)

    torch._dynamo.reset()
    compiled = torch.compile(job, backend="eager", fullgraph=True)
    with use_kernels(choice):
        for got, want in zip(compiled(x, weight, q), job(x, weight, q), strict=True):
            torch.testing.assert_close(got, want, atol=_tolerance(choice), rtol=0)


@pytest.mark.parametrize("mode", ["single", "multi", "multi_iso"])
@pytest.mark.parametrize("choice", CHOICES[1:], ids=str)
def test_autoencoders_train_with_every_choice(mode: str, choice: KernelChoice) -> None:
    torch.manual_seed(0)
    mae = MAE(
        1, (1, 4), 4, num_layers=2, dim=64, heads=2, num_layers_decoder=2, dim_decoder=64,
        decoder_mode=mode,  # type: ignore[arg-type]
    )
    x = _draw(2, 2, 1, 16, 16)
    visible = torch.tensor([[0, 3, 17, 30], [1, 2, 20, 31]])
    exact = mae(x, visible_idx=visible)["loss"]
    exact.backward()
    wanted = {name: p.grad.clone() for name, p in mae.named_parameters() if p.grad is not None}
    mae.zero_grad()
    with use_kernels(choice):
        loss = mae(x, visible_idx=visible, only_loss=True)["loss"]
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=_tolerance(choice))
    # Single gradients are noisy in half precision; their direction is not.
    got = {name: p.grad for name, p in mae.named_parameters() if p.grad is not None}
    assert got.keys() == wanted.keys()
    a, b = (torch.cat([g.flatten() for g in grads.values()]) for grads in (got, wanted))
    assert functional.cosine_similarity(a, b, dim=0) > 1 - 10 * _tolerance(choice) ** 2 - 1e-5
