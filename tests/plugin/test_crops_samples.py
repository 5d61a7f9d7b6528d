"""Training samples as the Crops widget shows them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from napari_muvit import api
from napari_muvit.plugin.crops import CropChoice
from napari_muvit.plugin.crops_samples import SampleDrawer
from napari_muvit.plugin.layers import ChannelDisplay


def likeness(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Correlation of two pictures, at best of all turns and mirrorings."""
    turned = [np.rot90(part, k) for part in (first, first.T) for k in range(4)]
    return max(float(np.corrcoef(part.ravel(), second.ravel())[0, 1]) for part in turned)


def test_the_boxes_show_where_the_pictures_were_taken() -> None:
    noise = np.random.default_rng(0).random((512, 512))
    smooth = gaussian_filter(noise, 4)
    pixels = (255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)
    pyramid = api.pyramid_from_arrays([pixels], axes="yx", name="noise")
    image: Any = SimpleNamespace(
        pyramid=pyramid, path=None, name="noise", display=[ChannelDisplay((0, 1), (1, 1, 1))])
    drawer = SampleDrawer()
    for number in range(6):
        shown = drawer.draw(api, image, CropChoice((1, 4), 64), number)
        crop = pyramid.crop(corner=shown.boxes[:, 0], levels=(1, 4), size=64)
        assert np.allclose(crop.bbox, shown.boxes)
        for picture, taken in zip(shown.pictures, crop.image, strict=True):
            assert likeness(picture[..., 0].astype(float), taken[0].astype(float)) > 0.97
