"""Exact attention, a block of queries at a time, as ordinary matrix products.

On processors where the fused attention runs on a slow matrix library this is faster: one
head's scores of a block fit into the cache, and each product can take the faster route. The
backward pass computes the scores again, so nothing of size N x M is kept.

Axis letters: B batch, H heads, N queries, M keys, E head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

BLOCK = 512
"""Queries in a block; 512 x 3072 scores in float32 are 6 MB."""

Product = Callable[[Tensor, Tensor], Tensor]
"""(N, K) and (M, K) to (N, M): ``a @ b.T``."""


def blocked_attention(q: Tensor, k: Tensor, v: Tensor, product: Product) -> Tensor:
    """``softmax(q k^T / sqrt(E)) v``, (B, H, N, E), differentiable.

    Parameters
    ----------
    q, k, v
        (B, H, N, E) and twice (B, H, M, E).
    product
        How to take the two products of each block.
    """
    return cast(Tensor, BlockedAttention.apply(q, k, v, product))  # type: ignore[no-untyped-call]


class BlockedAttention(torch.autograd.Function):
    """``softmax(q k^T / sqrt(E)) v`` for q (B, H, N, E) and k, v (B, H, M, E)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, product: Product) -> Tensor:
        """(B, H, N, E); products are taken by `product`."""
        ctx.save_for_backward(q, k, v)
        ctx.product = product
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        for at in _heads(q):
            columns = v[at].t().contiguous()
            for rows in _blocks(q):
                out[at][rows] = product(_weights(q[at][rows], k[at], product), columns)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of q, k, v (Dao et al., FlashAttention, 2022, appendix B.2)."""
        (grad,) = grads
        q, k, v = ctx.saved_tensors
        dtype = torch.promote_types(q.dtype, torch.float32)
        grad_q, grad_k, grad_v = (torch.zeros_like(t, dtype=dtype) for t in (q, k, v))
        for at in _heads(q):
            keys_T = k[at].t().contiguous()
            for rows in _blocks(q):
                block_grad = grad[at][rows]
                weights = _weights(q[at][rows], k[at], ctx.product)
                change = ctx.product(block_grad.contiguous(), v[at])
                change = weights * (change - (weights * change).sum(-1, keepdim=True))
                grad_v[at] += weights.t() @ block_grad
                grad_q[at][rows] = ctx.product(change, keys_T)
                grad_k[at] += change.t() @ q[at][rows]
        scale = q.shape[-1] ** -0.5
        return (grad_q * scale).to(q.dtype), (grad_k * scale).to(k.dtype), grad_v.to(v.dtype), None


def _heads(q: Tensor) -> list[tuple[int, int]]:
    return [(b, h) for b in range(q.shape[0]) for h in range(q.shape[1])]


def _blocks(q: Tensor) -> list[slice]:
    return [slice(first, first + BLOCK) for first in range(0, q.shape[2], BLOCK)]


def _weights(q: Tensor, k: Tensor, product: Product) -> Tensor:
    """Attention weights of one block of one head, (n, M)."""
    return product(q * q.shape[-1] ** -0.5, k).softmax(dim=-1)
