"""Random nested crops exactly as pretraining would read them: augmented and normalised."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.config import PretrainConfig, parse_config
from napari_muvit.geometry import FloatArray
from napari_muvit.plugin.crops import CropChoice, render_crop
from napari_muvit.plugin.layers import ChannelDisplay, ResolvedImage


@dataclass(frozen=True, eq=False)
class ShownSample:
    """One training sample as pictures.

    Attributes
    ----------
    boxes
        (L, 2, A) world px, where the crops were taken. The model gets them turned and mirrored
        as the pictures are.
    pictures
        (H, W, 3) uint8 for each level: the normalised values 0 to 1.
    """

    number: int
    choice: CropChoice
    boxes: FloatArray
    pictures: list[NDArray[np.uint8]]


class SampleDrawer:
    """Draws samples of one image after the other; what an image needs once is kept."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._source: Any = None
        self._plain: Any = None

    def draw(
        self, backend: Any, image: ResolvedImage, choice: CropChoice, number: int
    ) -> ShownSample:
        """Sample `number` of the image (runs in a thread).

        Raises
        ------
        MuvitError
            If training could not draw from the image either.
        """
        key = (image.pyramid.fingerprint, choice.levels, choice.size)
        if key != self._key:
            config = parse_config(PretrainConfig, {
                "images": (image.path or image.name,), "levels": choice.levels,
                "crop_size": np.atleast_1d(choice.size).tolist(), "output": "unused",
            })
            self._source = backend.SampleSource([image.pyramid], config=config)
            self._plain = copy.copy(self._source)
            self._plain.augment = False
            self._key = key
        sample = self._source.sample(number)
        display = [ChannelDisplay((0.0, 1.0), shown.color) for shown in image.display]
        pictures = [
            render_crop(pixels, valid, display)
            for pixels, valid in zip(sample["img"], sample["valid"], strict=True)
        ]
        # Places are drawn before they are augmented, so both have the same.
        boxes = self._plain.sample(number)["bbox"]
        return ShownSample(number, choice, boxes, pictures)
