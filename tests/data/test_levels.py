"""Levels that suit an image, and a word where the chosen ones do not."""

from __future__ import annotations

import numpy as np
import pytest

from napari_muvit.api import open_pyramid, pyramid_from_arrays
from napari_muvit.data.levels import advise_levels, suggest_crops, suggest_levels
from napari_muvit.data.pyramid import Pyramid


def flat(*shape: int, arrays: int = 6) -> Pyramid:
    """An image of zeros with `arrays` arrays, each a quarter of the one before; takes no memory."""
    zero = np.zeros((), np.uint8)
    sizes = [(*shape[:-2], *(max(1, n // 2**i) for n in shape[-2:])) for i in range(arrays)]
    return pyramid_from_arrays([np.broadcast_to(zero, size) for size in sizes],
                               axes="zyx"[-len(shape):])


@pytest.mark.parametrize(
    ("shape", "crop_size", "levels"),
    [((13000, 9000), 256, (1, 8, 32)), ((512, 512), 128, (1, 4)), ((100, 100), 128, (1,)),
     ((3, 4864, 3968), 256, (1, 4, 16)), ((10000, 600), 256, (1, 4))],
)
def test_suggested_levels_reach_from_detail_to_the_whole(
    shape: tuple[int, ...], crop_size: int, levels: tuple[int, ...]
) -> None:
    image = flat(*shape)
    assert suggest_crops(image) == (crop_size, levels)
    if max(shape) > crop_size and len(shape) == 2:
        assert advise_levels(image, levels, crop_size) is None


def test_levels_far_beyond_the_stored_ones_are_not_suggested() -> None:
    assert suggest_levels(flat(80_000, 80_000, arrays=1), 256) == (1, 4, 16)
    assert suggest_levels(flat(80_000, 80_000, arrays=2), 256) == (1, 8, 32)


def test_advice_names_better_levels() -> None:
    pyramid = open_pyramid(np.zeros((512, 600), np.uint8)).renamed("slide")
    advice = advise_levels(pyramid, (1, 8, 32), 256)
    assert advice is not None
    assert "slide" in advice
    assert "8192 x 8192" in advice
    assert "levels (1, 2)" in advice
    assert advise_levels(pyramid, (1, 2), 256) is None
    tiny = advise_levels(open_pyramid(np.zeros((64, 64), np.uint8)), (1,), 256)
    assert tiny is not None
    assert "smaller crop size" in tiny
