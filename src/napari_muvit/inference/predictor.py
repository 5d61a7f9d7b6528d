"""Stage 5 of 7, for prediction: nested crops become class probabilities.

Any callable with a `ModelSpec` can take a model's place. One lock for each process lets one
thread at a time use a model.

Axis letters: B batch, L levels, C channels, S spatial extent, A spatial axes, K classes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from napari_muvit.inference.device import (
    Computing,
)
from napari_muvit.inference.spec import (
    ModelSpec,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

FloatImage = NDArray[np.float32]
_MODEL_LOCK = threading.Lock()


class Predictor(Protocol):
    """Anything that turns nested crops into probabilities.

    Called with `x` (B, L, C, *S) float32, `bbox` (B, L, 2, A) float64 world px of the model,
    and `valid` (B, L, *S) bool; returns (B, K, *S) float32.
    """

    @property
    def spec(self) -> ModelSpec:
        """What it reads and means."""
        ...

    def __call__(
        self, x: FloatImage, bbox: NDArray[np.float64], valid: NDArray[np.bool_]
    ) -> FloatImage: ...


@dataclass(frozen=True)
class FunctionPredictor:
    """A plain function in a model's place: for tests, rules and foreign models."""

    function: Callable[..., Any]
    spec: ModelSpec

    def __call__(
        self, x: FloatImage, bbox: NDArray[np.float64], valid: NDArray[np.bool_]
    ) -> FloatImage:
        return np.asarray(self.function(x, bbox, valid), np.float32)


class ModelPredictor:
    """A segmenter on a device.

    Parameters
    ----------
    model
        Called with (x, bbox); returns logits (B, K, *S).
    spec
        What it reads and means.
    computing
        Where and how it runs.
    """

    def __init__(self, model: nn.Module, spec: ModelSpec, computing: Computing) -> None:
        self.spec = spec
        self.computing = computing
        self.model = model.to(computing.device).eval()

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.computing.device

    def __call__(
        self, x: FloatImage, bbox: NDArray[np.float64], valid: NDArray[np.bool_]
    ) -> FloatImage:
        import torch

        with torch.inference_mode(), self.computing():
            logits = self.model(*self.to_tensors(x, bbox))
            return to_probabilities(logits)

    def to_tensors(
        self, x: FloatImage, bbox: NDArray[np.float64]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both on the device, the boxes about the centre of the coarsest one.

        Float32 holds differences of positions to a millionth of the widest view only if the
        positions themselves are small.
        """
        import torch

        origin = bbox[:, -1].mean(axis=1)[:, None, None]
        boxes = torch.from_numpy((bbox - origin).astype(np.float32))
        return torch.from_numpy(x).to(self.device), boxes.to(self.device)


def to_probabilities(logits: torch.Tensor) -> FloatImage:
    """Softmax over the classes of logits (B, K, *S), as a float32 array."""
    probabilities: FloatImage = logits.float().softmax(dim=1).cpu().numpy()
    return probabilities


def model_lock() -> threading.Lock:
    """The lock that a thread of this process holds while a model runs."""
    return _MODEL_LOCK
