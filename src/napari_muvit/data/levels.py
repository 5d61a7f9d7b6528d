"""Stage 2 of 7: which levels suit an image, and a word where the chosen ones do not.

Axis letters: A spatial axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from napari_muvit.geometry import crop_extents, parse_levels, parse_size

if TYPE_CHECKING:
    from napari_muvit.data.pyramid import Pyramid

COARSEST = 32
"""Largest level that is proposed; the paper's, for sections of 13 000 px."""

MOST_AVERAGED = 16
"""How many times coarser than the image's smallest array a proposed level may be."""

LEAST_INSIDE = 0.5
"""Smallest share of the coarsest crop that should lie inside the image at its best place."""


def suggest_crops(pyramid: Pyramid) -> tuple[int, tuple[int, ...]]:
    """Crop size and levels that suit an image, from its full detail to about its whole side.

    Parameters
    ----------
    pyramid
        The image; of a volume, y and x alone count.

    Returns
    -------
    Side of the crops in pixels, and the levels, powers of two.
    """
    crop_size = 256 if max(pyramid.spatial_shape[-2:]) >= 1024 else 128
    return crop_size, suggest_levels(pyramid, crop_size)


def suggest_levels(pyramid: Pyramid, crop_size: int) -> tuple[int, ...]:
    """Levels that suit an image read in crops of `crop_size` px.

    The coarsest is the largest power of two, up to `COARSEST`, whose crop fits the longer side
    of the image and lies mostly inside it; one between joins where the two are far apart.
    Levels far beyond the image's smallest array would read most of its pixels, and are not
    proposed.
    """
    shape = pyramid.spatial_shape[-2:]
    widest = min(max(shape) / crop_size, COARSEST, MOST_AVERAGED * max(pyramid.factors[-1]))
    power = max(0, int(math.log2(max(1.0, widest))))
    while power and inside_share(shape, (crop_size * 2**power,) * 2) < LEAST_INSIDE:
        power -= 1
    between = {2 ** (power // 2 + power % 2)} if power >= 4 else set()
    return tuple(sorted({1, 2**power} | between))


def inside_share(extent: Sequence[float], crop: Sequence[float]) -> float:
    """Largest share of a crop, field of view `crop`, that an image of `extent` can fill."""
    ratios = np.minimum(np.asarray(extent, float) / np.asarray(crop, float), 1.0)
    return float(ratios.prod())


def advise_levels(
    pyramid: Pyramid, levels: Sequence[float], size: int | Sequence[int],
    scaled_axes: Sequence[int] | None = None, least: float = LEAST_INSIDE,
) -> str | None:
    """A sentence that names better levels where crops are mostly outside the image, or None.

    Parameters
    ----------
    least
        Smallest share of a crop that should lie inside the image at its best place.
    """
    levels = parse_levels(levels)
    spans = crop_extents(levels, size, pyramid.ndim, scaled_axes)
    shares = [inside_share(pyramid.spatial_shape, span) for span in spans]
    if shares[-1] >= least:
        return None
    kept = [level for level, share in zip(levels, shares, strict=True) if share >= least]
    better = tuple(kept) or (levels[0],)
    largest = _largest_level(pyramid, size, scaled_axes, least)
    if largest > better[-1]:
        better = (*better, largest)
    shape = " x ".join(str(n) for n in pyramid.spatial_shape)
    span = " x ".join(f"{v:g}" for v in spans[-1])
    pixels = " x ".join(str(n) for n in parse_size(size, pyramid.ndim))
    remedy = f"levels {better}" if better != levels else "a smaller crop size"
    return (
        f"crops of {pixels} px at level {levels[-1]} span {span} px, but image {pyramid.name!r} "
        f"has {shape} px: at least {1 - shares[-1]:.0%} of each would be padding. "
        f"Better here: {remedy}."
    )


def _largest_level(
    pyramid: Pyramid, size: int | Sequence[int], scaled_axes: Sequence[int] | None, least: float
) -> int:
    """The largest power of two whose crop can lie inside the image to the share `least`."""
    level = 1
    while level < 1 << 20:
        span = crop_extents((level * 2,), size, pyramid.ndim, scaled_axes)[0]
        if inside_share(pyramid.spatial_shape, span) < least:
            break
        level *= 2
    return level
