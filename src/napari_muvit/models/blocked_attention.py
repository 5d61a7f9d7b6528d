"""Exact attention, a block of queries at a time, as ordinary matrix products.

On processors where the fused attention runs on a slow matrix library this is faster: one
head's scores of a block fit into the cache, and each product can take the faster route. The
backward pass computes the scores again, so nothing of size N x M is kept. It can also be had
alone, behind torch's fused forward pass: in bfloat16 the fused backward pass is the slow one.

Axis letters: B batch, H heads, N queries, M keys, E head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 512
"""Queries in a block; 512 x 3072 scores in float32 are 6 MB."""
BACKWARD_BYTES = 2**23
"""Scores of a block in the backward pass, which holds three such tables at a time."""

Product = Callable[[Tensor, Tensor], Tensor]
"""(N, K) and (M, K) to (N, M): ``a @ b.T``."""


def blocked_attention(
    q: Tensor, k: Tensor, v: Tensor, product: Product, scale: float | None = None,
    *, is_forward_fused: bool = False,
) -> Tensor:
    """``softmax(scale * q k^T) v``, (B, H, N, E), differentiable.

    Parameters
    ----------
    q, k, v
        (B, H, N, E) and twice (B, H, M, E).
    product
        How to take the two products of each block.
    scale
        ``E ** -0.5`` by default.
    is_forward_fused
        Take torch's fused attention in the forward pass.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    arguments = (q, k, v, product, scale, is_forward_fused)
    return cast(Tensor, BlockedAttention.apply(*arguments))  # type: ignore[no-untyped-call]


class BlockedAttention(torch.autograd.Function):
    """``softmax(scale * q k^T) v`` for q (B, H, N, E) and k, v (B, H, M, E)."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, product: Product, scale: float, is_fused: bool
    ) -> Tensor:
        """(B, H, N, E); products are taken by `product`."""
        if is_fused:
            out = functional.scaled_dot_product_attention(q, k, v, scale=scale)
        else:
            out = torch.empty_like(q, memory_format=torch.contiguous_format)
            for at in _heads(q):
                columns = v[at].t().contiguous()
                for rows in _blocks(len(q[at]), BLOCK):
                    out[at][rows] = product(_weights(q[at][rows] * scale, k[at], product), columns)
        ctx.save_for_backward(q, k, v, out)
        ctx.product, ctx.scale = product, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k, v (Dao et al., FlashAttention, 2022, appendix B.2)."""
        q, k, v, out = ctx.saved_tensors
        grad_q, grad_k, grad_v = (torch.empty_like(t) for t in (q, k, v))
        head_bytes = max(q.shape[2] * k.shape[2] * q.element_size(), 1)
        for sample in range(len(q)):
            for heads in _blocks(q.shape[1], max(BACKWARD_BYTES // head_bytes, 1)):
                at = (sample, heads)
                # Heads are strided views of all channels; products are faster on copies.
                parts = (q[at] * ctx.scale, k[at], v[at], out[at], grads[0][at])
                found = _heads_backward(ctx.product, *(part.contiguous() for part in parts))
                grad_q[at], grad_k[at], grad_v[at] = found
        return grad_q.mul_(ctx.scale), grad_k, grad_v, None, None, None


def _heads_backward(
    product: Product, q: Tensor, k: Tensor, v: Tensor, out: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of scaled q (G, N, E), of k and of v (G, M, E) of G heads."""
    heads, num_queries, num_keys = len(q), q.shape[1], k.shape[1]
    wide = torch.promote_types(q.dtype, torch.float32)
    mean = (grad * out).sum(dim=-1, keepdim=True, dtype=wide).to(q.dtype)
    grad_q = torch.empty_like(q)
    grad_k, grad_v = (torch.zeros_like(t, dtype=wide) for t in (k, v))
    row_bytes = max(heads * num_keys * q.element_size(), 1)
    blocks = _blocks(num_queries, max(BACKWARD_BYTES // row_bytes, 1))
    most = heads * num_keys * (blocks[0].stop if blocks else 0)
    memory = [q.new_empty(most) for _ in range(3)]  # new memory for each block is slow
    for rows in blocks:
        shape = (heads, len(range(num_queries)[rows]), num_keys)
        scores, weights, change = (
            table[: math.prod(shape)].view(shape) for table in memory)
        _times(product, q[:, rows], k, scores)
        torch.softmax(scores, dim=-1, out=weights)
        _times(product, grad[:, rows], v, change)
        change.sub_(mean[:, rows]).mul_(weights)
        grad_v += weights.mT @ grad[:, rows]
        grad_k += change.mT @ q[:, rows]
        grad_q[:, rows] = change @ k
    return grad_q, grad_k, grad_v


def _times(product: Product, a: Tensor, b: Tensor, out: Tensor) -> None:
    """``a @ b.T`` of every head into `out` (G, n, M), by the chosen product."""
    if product is functional.linear:
        torch.bmm(a, b.mT, out=out)
        return
    for head, rows in enumerate(a):
        out[head] = product(rows, b[head])


def _heads(q: Tensor) -> list[tuple[int, int]]:
    return [(b, h) for b in range(q.shape[0]) for h in range(q.shape[1])]


def _blocks(count: int, size: int) -> list[slice]:
    """`count` rows in even blocks of at most `size`."""
    size = -(-count // -(-count // size)) if count else size
    return [slice(first, first + size) for first in range(0, count, size)]


def _weights(q: Tensor, k: Tensor, product: Product) -> Tensor:
    """Attention weights of one block of one head, (n, M)."""
    return product(q, k).softmax(dim=-1)
