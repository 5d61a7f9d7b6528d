"""Stage 4 of 7, cached: the coarse crops that neighbouring tiles share are encoded once.

Models with coarse-to-fine attention compute coarse tokens from coarse tokens alone, so their
keys and values are the same for every fine tile inside one coarse crop. The result is that of
the whole model, to rounding.

Axis letters: B batch, L levels, N tokens, D width, G patch grid.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_muvit.inference.cache import ByteCache
from napari_muvit.inference.device import Computing
from napari_muvit.inference.predictor import FloatImage, ModelPredictor, to_probabilities
from napari_muvit.inference.reader import TileBatch
from napari_muvit.inference.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from napari_muvit.models.coarse_to_fine import Context

CONTEXT_BYTES = 512 * 2**20
"""Memory for encoded coarse crops; one of the base model takes about 150 MB."""


def shares_context(model: nn.Module) -> bool:
    """Whether a model's coarse crops can be encoded once for many tiles."""
    encoder = getattr(model, "encoder", None)
    levels = tuple(getattr(encoder, "levels", ()))
    return (
        getattr(encoder, "attention_mode", "") == "coarse_to_fine" and len(levels) > 1
        and levels == tuple(sorted(levels)) and hasattr(model, "forward_fine")
    )


class ContextPredictor(ModelPredictor):
    """A segmenter whose coarse crops are encoded once for all the tiles that share them."""

    def __init__(self, model: nn.Module, spec: ModelSpec, computing: Computing) -> None:
        super().__init__(model, spec, computing)
        self._contexts: ByteCache[Context] = ByteCache(CONTEXT_BYTES)

    def predict_tiles(self, batch: TileBatch) -> FloatImage:
        """Probabilities (B, K, *S); tiles with one context should follow each other."""
        parts = []
        numbers = range(len(batch.tiles))
        for _, group in groupby(numbers, key=lambda i: batch.tiles[i].context):
            rows = list(group)
            parts.append(self._predict_group(batch, rows))
        return np.concatenate(parts)

    def _predict_group(self, batch: TileBatch, rows: list[int]) -> FloatImage:
        import torch

        with torch.inference_mode(), self.computing():
            x, boxes = self.to_tensors(batch.x[rows], batch.bbox[rows])
            context = self.context((batch.image, batch.tiles[rows[0]].context), x, boxes)
            model: Any = self.model
            return to_probabilities(model.forward_fine(x[:, :1], boxes, context))

    def context(self, key: Any, x: Tensor, boxes: Tensor) -> Context:
        """The encoded coarse crops of the first sample of `x`; kept under `key`."""
        kept = self._contexts.get(key)
        if kept is not None:
            return kept
        encoder: Any = getattr(self.model, "encoder", self.model)
        made: Context = encoder.encode_context(x[:1, 1:], boxes[:1, 1:])
        self._contexts.put(key, made, _num_bytes(made))
        return made


def _num_bytes(context: Context) -> int:
    tensors = [t for pair in context.keys_values for t in pair] + list(context.outputs)
    return sum(t.numel() * t.element_size() for t in tensors)
