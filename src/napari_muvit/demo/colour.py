"""What colour alone can do: the two baselines beside which the demo prints its scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

IndexArray = NDArray[np.int64]


def majority(target: IndexArray, num_pixels: int) -> IndexArray:
    """The most frequent class of `target`, `num_pixels` times."""
    return np.full(num_pixels, np.bincount(target).argmax(), dtype=np.int64)


def logistic_regression(
    colours_NC: NDArray[np.float32], target_N: IndexArray, test_MC: NDArray[np.float32]
) -> IndexArray:
    """Classes (M,) of `test_MC` by multinomial logistic regression on the colours of pixels.

    Fitted by L-BFGS on standardised colours with a small ridge penalty.
    """
    import torch

    mean, std = colours_NC.mean(0), colours_NC.std(0) + 1e-6
    x_NC = torch.from_numpy((colours_NC - mean) / std)
    target = torch.from_numpy(target_N)
    model = torch.nn.Linear(x_NC.shape[1], int(target_N.max()) + 1)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(model(x_NC), target)
        value = value + 1e-4 * model.weight.square().sum()
        torch.autograd.backward(value)
        return float(value.detach())

    optimizer.step(loss)
    with torch.no_grad():
        logits = model(torch.from_numpy((test_MC - mean) / std))
    return np.asarray(logits.argmax(1).numpy(), dtype=np.int64)
