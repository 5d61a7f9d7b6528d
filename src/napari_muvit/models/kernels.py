"""The two products every layer is made of, computed by the fastest kernel measured here.

``linear`` and ``attention`` are the only places of the model where a matrix product is taken.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``, (..., In) to (..., Out), differentiable."""
    return functional.linear(x, weight, bias)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention of `q` (B, H, N, E) to `k` and `v` (B, H, M, E), scaled by E ** -0.5.

    Parameters
    ----------
    mask
        None, or boolean broadcastable to (B, H, N, M), True where a query may look at a key.
    """
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
