"""Probabilities averaged over flips and quarter turns of the crop (test-time augmentation).

A crop is turned together with its boxes: mirroring an axis reverses the pixels and, because a
box is symmetric about its own centre, moves the box to its mirror place about the centre of the
coarsest box, as augmentation does in training.

Axis letters: B batch, L levels, C channels, S spatial extent, A spatial axes, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.errors import InputError
from napari_muvit.inference.predictor import FloatImage, Predictor
from napari_muvit.inference.spec import ModelSpec


@dataclass(frozen=True)
class Turn:
    """Swap y and x, then mirror the axes in `flips` (negative axis numbers)."""

    swap: bool = False
    flips: tuple[int, ...] = ()

    def apply(self, image: NDArray[Any]) -> NDArray[Any]:
        """The turned image, spatial axes last."""
        turned = np.swapaxes(image, -1, -2) if self.swap else image
        return np.ascontiguousarray(np.flip(turned, self.flips) if self.flips else turned)

    def undo(self, image: NDArray[Any]) -> NDArray[Any]:
        """The image whose turned form is given."""
        back = np.flip(image, self.flips) if self.flips else image
        return np.ascontiguousarray(np.swapaxes(back, -1, -2) if self.swap else back)

    def apply_boxes(self, bbox: NDArray[np.float64]) -> NDArray[np.float64]:
        """Boxes (B, L, 2, A) of the turned crops, about the centre of the coarsest one."""
        boxes: NDArray[np.float64]
        centre = bbox[:, -1].mean(axis=1)[:, None, None]
        boxes = bbox - centre
        if self.swap:
            boxes = boxes[..., [*range(boxes.shape[-1] - 2), -1, -2]]
        for axis in self.flips:
            boxes[..., axis] = -boxes[..., ::-1, axis]
        boxes += centre
        return boxes


FLIPS = (Turn(), Turn(flips=(-1,)), Turn(flips=(-2,)), Turn(flips=(-2, -1)))
TURNS = FLIPS + tuple(Turn(True, turn.flips) for turn in FLIPS)


class AveragedPredictor:
    """The mean of a predictor over the first `average` of eight flips and turns.

    Raises
    ------
    InputError
        If `average` is not 1, 2, 4 or 8, or is 8 for tiles that are not square.
    """

    def __init__(self, predictor: Predictor, average: int) -> None:
        if average not in {1, 2, 4, 8}:
            raise InputError(
                f"average is {average}; probabilities are averaged over 1, 2 or 4 flips, or 8 "
                "flips and quarter turns."
            )
        size = predictor.spec.crop_size
        if average == 8 and size[-1] != size[-2]:
            raise InputError(
                f"average is 8, but tiles of {size} pixels cannot be turned by 90 degrees. "
                "Take 4, which only mirrors."
            )
        self.predictor = predictor
        self.spec: ModelSpec = predictor.spec
        self.turns = TURNS[:average]

    @property
    def device(self) -> Any:
        """Where it runs."""
        return getattr(self.predictor, "device", "cpu")

    def __call__(
        self, x: FloatImage, bbox: NDArray[np.float64], valid: NDArray[np.bool_]
    ) -> FloatImage:
        parts = [
            turn.undo(self.predictor(turn.apply(x), turn.apply_boxes(bbox), turn.apply(valid)))
            for turn in self.turns
        ]
        mean: FloatImage = np.mean(parts, axis=0, dtype=np.float32)
        return mean
