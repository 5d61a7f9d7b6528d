"""Pictures of what a model sees and gives, as arrays and PNG bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_muvit.data.training_image import TrainingImage
from napari_muvit.geometry import FloatArray
from napari_muvit.training.loader import Batch

GAP = 4
"""Pixels between the panels of a picture."""

Picture = NDArray[np.uint8]
"""(height, width, 3), or 4 with alpha."""


def encode_png(picture: Picture) -> bytes:
    """`picture` (height, width, 3 or 4) uint8 as the bytes of a PNG file."""
    import imagecodecs

    return bytes(imagecodecs.png_encode(np.ascontiguousarray(picture)))


Range = tuple[FloatArray, FloatArray]
"""Black and white of each channel, two arrays (C,) of normalised values."""


@dataclass(frozen=True)
class Contrast:
    """Between which values images are shown.

    Parameters
    ----------
    own
        By number of the image: the range in which it has the colours that people know.
    """

    own: Mapping[int, Range] = field(default_factory=dict)

    @classmethod
    def of_images(cls, images: Sequence[TrainingImage]) -> Contrast:
        """RGB images of whole numbers as they are, others stretched."""
        return cls({
            image.index: (-image.normalization.offset / image.normalization.scale,
                          (np.iinfo(image.pyramid.dtype).max - image.normalization.offset)
                          / image.normalization.scale)
            for image in images if image.pyramid.is_rgb and image.pyramid.dtype.kind == "u"
        })

    def of_first(self, batch: Batch) -> Range:
        """The range of a batch's first sample; percentiles of its channels if it has no own."""
        number = int(batch["image_index"][0]) if "image_index" in batch else -1
        if number in self.own:
            return self.own[number]
        image_LCS = batch["img"][0].float().cpu().numpy()
        channels = np.moveaxis(image_LCS, 1, 0).reshape(image_LCS.shape[1], -1)
        low, high = np.percentile(channels, (1, 99.8), axis=1)
        return low, high


def to_picture(image: NDArray[np.floating], low: ArrayLike, high: ArrayLike) -> Picture:
    """An image (C, *S) with `low` black and `high` white; volumes by their middle plane.

    Both are one number, or one for each channel. Three channels are shown as red, green, blue;
    two as magenta and green; else the first.
    """
    image = np.asarray(image, np.float32)
    while image.ndim > 3:
        image = image[:, image.shape[1] // 2]
    black, white = (np.asarray(v, np.float32).reshape(-1, 1, 1) for v in (low, high))
    scaled = np.clip((image - black) / np.maximum(white - black, 1e-6), 0, 1)
    if len(scaled) == 2:
        scaled = scaled[[0, 1, 0]]
    elif len(scaled) != 3:
        scaled = np.repeat(scaled[:1], 3, axis=0)
    picture: Picture = (np.moveaxis(scaled, 0, -1) * 255).round().astype(np.uint8)
    return picture


def paint_classes(index: NDArray[np.integer], colors: Sequence[str]) -> Picture:
    """Class indices (*S) in the colours of the class table; negative ones are dark grey."""
    while index.ndim > 2:
        index = index[index.shape[0] // 2]
    table = [[int(color[i:i + 2], 16) for i in (1, 3, 5)] for color in colors]
    table.append([40, 40, 40])  # what -1 takes: not judged
    painted: Picture = np.asarray(table, np.uint8)[index]
    return painted


def paint_grey(values: NDArray[np.floating]) -> Picture:
    """Values (*S) from 0 to 1 as grey."""
    while values.ndim > 2:
        values = values[values.shape[0] // 2]
    grey = (np.clip(values, 0, 1) * 255).round().astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def tile_pictures(rows: Sequence[Sequence[Picture]]) -> Picture:
    """Rows of equally large panels (height, width, 3) as one picture with alpha.

    What is between the panels, and where a row is shorter, is transparent, because viewers are
    light and dark; and white, for those who know no alpha.
    """
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    shape = (len(rows) * (height + GAP) - GAP, columns * (width + GAP) - GAP, 4)
    whole = np.full(shape, (255, 255, 255, 0), np.uint8)
    for r, row in enumerate(rows):
        for c, panel in enumerate(row):
            top, left = r * (height + GAP), c * (width + GAP)
            target = whole[top:top + height, left:left + width]
            target[..., :3], target[..., 3] = panel, 255
    return whole
