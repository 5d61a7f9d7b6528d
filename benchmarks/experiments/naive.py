"""Within, models are given concentric boxes, whatever the crop's place is (MuViT, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from napari_muvit.models.mae import MAE
from napari_muvit.models.segmenter import Segmenter


@contextmanager
def naive_boxes(is_on: bool = True) -> Iterator[None]:
    """The paper's control, for training and prediction alike; does nothing where `is_on` is not.

    The images and the model stay the same; only the boxes are not true any more.
    """
    if not is_on:
        yield
        return
    segment, reconstruct = Segmenter.forward_with_tokens, MAE.forward

    def segment_without(self: Segmenter, x: Any, bbox: Any = None) -> Any:
        return segment(self, x, None)

    def reconstruct_without(self: MAE, x: Any, bbox: Any = None, *args: Any, **more: Any) -> Any:
        return reconstruct(self, x, None, *args, **more)

    Segmenter.forward_with_tokens = segment_without  # type: ignore[method-assign]
    MAE.forward = reconstruct_without  # type: ignore[method-assign]
    try:
        yield
    finally:
        Segmenter.forward_with_tokens = segment  # type: ignore[method-assign]
        MAE.forward = reconstruct  # type: ignore[method-assign]
