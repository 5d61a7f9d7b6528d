"""The two products that every layer is made of, by the kernel that measured fastest here.

``linear`` and ``attention`` are the only doors to matrix products. Behind each stand several
public ways to compute it; which one is fastest depends on the matrix library's taste in
processors (on some, oneDNN's convolution is twice as fast as MKL's product, on others it is
slower), so `choose_kernels` measures and never asks for the processor's name. What it found is
a `KernelChoice`: a run records it and passes it to its resumption and its workers, so that
timing noise never changes bits.

With precision ``bf16`` the products alone are taken in bfloat16. Residuals, norms, rotary
angles, master weights and whatever leaves a model stay in float32.

Axis letters: B batch, H heads, N queries, M keys, E head width.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from napari_muvit.errors import ConfigError
from napari_muvit.models.blocked_attention import blocked_attention

LinearKernel = Literal["torch", "convolution"]
AttentionKernel = Literal["torch", "blocks", "blocks_backward"]
ProductPrecision = Literal["fp32", "bf16"]
MARGIN = 1.1
"""A kernel has to be this much faster than plain torch to be taken in its place."""

SMALL_PRODUCT = 256 * 512
"""Tokens times width below which measuring kernels costs more than it saves."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class KernelChoice:
    """How products are computed; plain torch in fp32 by default.

    ``linear``: ``torch``, or ``convolution`` (a 1x1 convolution on a channels-last view).
    ``attention``: ``torch``, ``blocks`` (queries of one head, a block at a time), or
    ``blocks_backward`` (torch's forward pass, and blocks in the backward pass).
    ``precision``: of products only.
    """

    linear: LinearKernel = "torch"
    attention: AttentionKernel = "torch"
    precision: ProductPrecision = "fp32"

    def to_dict(self) -> dict[str, str]:
        """Names only, for a run's config."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> KernelChoice:
        """The choice that `to_dict` wrote.

        Raises
        ------
        ConfigError
            If a key or a name is unknown.
        """
        known = {"linear": LinearKernel, "attention": AttentionKernel,
                 "precision": ProductPrecision}
        for key, value in values.items():
            names = get_args(known[key]) if key in known else ()
            if value not in names:
                raise ConfigError(
                    f"kernel choice has {key}: {value!r}; known are "
                    f"{ {name: get_args(kind) for name, kind in known.items()} }. Remove the "
                    "entry to measure anew.", field="kernels",
                )
        return cls(**values)


PLAIN = KernelChoice()


class _State(threading.local):
    choice = PLAIN


_state = _State()


class use_kernels:
    """Compute products by `choice` from now on; as a ``with`` block, until its end.

    Holds for the calling thread, so a viewer may predict in bf16 while a run trains in fp32.
    """

    def __init__(self, choice: KernelChoice) -> None:
        self._before = _state.choice
        _state.choice = choice

    def __enter__(self) -> use_kernels:
        return self

    def __exit__(self, *_: object) -> None:
        _state.choice = self._before


def current_choice() -> KernelChoice:
    """The choice that holds in this thread."""
    return _state.choice


def product_input(x: Tensor) -> Tensor:
    """`x` in the products' precision, cast once for several products that share it."""
    if x.dtype == torch.float32 and _state.choice.precision == "bf16":
        return x.bfloat16()
    return x


def product_precision(device_type: str) -> contextlib.AbstractContextManager[Any]:
    """A block in which torch's own layers (convolutions) keep to the products' precision."""
    if _state.choice.precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device_type, dtype=torch.bfloat16)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``, (..., In) to (..., Out) in the dtype of `x`, differentiable."""
    choice, dtype = _state.choice, x.dtype
    if choice.precision == "bf16" and dtype in (torch.float32, torch.bfloat16):
        x, weight = x.bfloat16(), weight.bfloat16()
        bias = None if bias is None else bias.bfloat16()
        return _linear(choice, x, weight, bias).to(dtype)
    return _linear(choice, x, weight, bias)


def _linear(choice: KernelChoice, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    fits = x.device.type == "cpu" and x.dtype == _DTYPES[choice.precision] and x.numel() > 0
    if choice.linear == "convolution" and fits and not torch.compiler.is_compiling():
        return convolution_linear(x, weight, bias)
    return functional.linear(x, weight, bias)


def convolution_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` as a 1x1 convolution on a channels-last view: oneDNN's product, no copies."""
    image = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
    out = functional.conv2d(image, weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], weight.shape[0])


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Softmax attention of `q` (B, H, N, E) to `k` and `v` (B, H, M, E).

    Parameters
    ----------
    mask
        None, or boolean broadcastable to (B, H, N, M), True where a query may look at a key.
    scale
        Of the scores; ``E ** -0.5`` by default.

    Returns
    -------
    Tensor
        (B, H, N, E) in the dtype of `q`, differentiable.
    """
    choice, dtype = _state.choice, q.dtype
    if choice.precision == "bf16" and dtype in (torch.float32, torch.bfloat16):
        q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
    fits = q.device.type == "cpu" and mask is None and q.numel() > 0 and k.shape[2] > 0
    if choice.attention != "torch" and fits and not torch.compiler.is_compiling():
        product = convolution_linear if choice.linear == "convolution" else functional.linear
        is_fused = choice.attention == "blocks_backward"
        out = blocked_attention(q, k, v, product, scale, is_forward_fused=is_fused)
    else:
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return out.to(dtype)


MOST_TOKENS = 3072
"""Longer sequences are not measured: three 256 px crops, beyond which the ranking stays."""
MOST_TRAINED_TOKENS = 1024
"""The same where backward passes are measured too, which take three times as long."""


def choose_kernels(
    precision: ProductPrecision = "fp32", *, dim: int = 512, heads: int = 8, tokens: int = 1536,
    device: str | torch.device = "cpu", is_training: bool = False,
) -> KernelChoice:
    """The fastest kernels for such a model on this machine, measured in a second or two.

    bf16 is granted only where it is measured to be faster than fp32; elsewhere the choice
    says fp32. Other devices than the CPU compute by plain torch.

    Parameters
    ----------
    dim, heads
        Of the encoder.
    tokens
        Length of the sequence to measure with, at most `MOST_TOKENS` of it.
    is_training
        Measure forward and backward passes together.
    """
    tokens = min(tokens, MOST_TRAINED_TOKENS if is_training else MOST_TOKENS)
    kind = torch.device(device).type
    if kind != "cpu":
        granted = precision == "bf16" and (kind != "cuda" or torch.cuda.is_bf16_supported())
        return KernelChoice(precision="bf16" if granted else "fp32")
    with torch.set_grad_enabled(is_training):
        plain = _fastest("fp32", dim, heads, tokens)
        if precision == "fp32":
            return plain
        half = _fastest("bf16", dim, heads, tokens)
        gains = _measure({c.precision: _layer(c, dim, heads, tokens) for c in (plain, half)})
    return half if gains["bf16"] > MARGIN else plain


def _fastest(precision: ProductPrecision, dim: int, heads: int, tokens: int) -> KernelChoice:
    """The best pair of kernels in one precision; the linear kernel first, as blocks use it."""
    choice = KernelChoice(precision=precision)
    for field, names in (("linear", get_args(LinearKernel)),
                         ("attention", get_args(AttentionKernel))):
        ways = {n: KernelChoice(**{**choice.to_dict(), field: n}) for n in names}
        jobs = {n: _part(field, way, dim, heads, tokens) for n, way in ways.items()}
        gains = _measure(jobs)
        best = max(gains, key=lambda n: gains[n])
        if gains[best] > MARGIN:
            choice = ways[best]
    return choice


def _part(
    field: str, choice: KernelChoice, dim: int, heads: int, tokens: int
) -> Callable[[], object]:
    """One product of a layer as a job without arguments."""
    dtype, trains = _DTYPES[choice.precision], torch.is_grad_enabled()
    if field == "linear":
        x = torch.ones(tokens, dim, dtype=dtype, requires_grad=trains)
        weight = torch.ones(2 * dim, dim, dtype=dtype, requires_grad=trains)
        return _under(choice, lambda: linear(x, weight), (x, weight))
    shape = (1, heads, tokens, dim // heads)
    q, k, v = (torch.full(shape, 0.1, dtype=dtype, requires_grad=trains) for _ in range(3))
    return _under(choice, lambda: attention(q, k, v), (q, k, v))


def _layer(choice: KernelChoice, dim: int, heads: int, tokens: int) -> Callable[[], object]:
    """The products of one layer: eight of width dim to dim, and attention."""
    many = _part("linear", choice, dim, heads, tokens)
    look = _part("attention", choice, dim, heads, tokens)
    return lambda: [many(), many(), many(), many(), look()]


def _under(
    choice: KernelChoice, job: Callable[[], Tensor], inputs: Sequence[Tensor]
) -> Callable[[], object]:
    """`job` by the kernels of `choice`, and its backward pass where `inputs` want gradients."""
    def run() -> object:
        with use_kernels(choice):
            out = job()
        return torch.autograd.grad(out, inputs, out.detach()) if out.requires_grad else out

    return run


def _measure(jobs: Mapping[str, Callable[[], object]], rounds: int = 7) -> dict[str, float]:
    """How many times faster each job is than the first, by the clock that flatters it less.

    Jobs take turns and the least time counts, since other load only ever makes a job slower.
    Wall time sees a helper thread that lags; the thread's own time does not see that another
    program had the processor. Where the latter is counted in coarse ticks it is left out.
    """
    clocks = [time.perf_counter]
    if time.get_clock_info("thread_time").resolution < 1e-4:
        clocks.append(time.thread_time)
    least = {name: [float("inf")] * len(clocks) for name in jobs}
    for turn in range(rounds + 1):
        for name, job in jobs.items():
            begin = [clock() for clock in clocks]
            job()
            spent = [clock() - first for clock, first in zip(clocks, begin, strict=True)]
            if turn:  # the first turn warms up caches and threads
                least[name] = [min(pair) for pair in zip(least[name], spent, strict=True)]
    first = next(iter(least.values()))
    return {
        name: min(a / max(b, 1e-9) for a, b in zip(first, spent, strict=True))
        for name, spent in least.items()
    }
