"""How two label images of one place lie on each other, whatever their resolutions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_muvit.errors import InputError
from napari_muvit.geometry import FloatArray

if TYPE_CHECKING:
    from napari_muvit.data.pyramid import Pyramid


def align(prediction: Pyramid, truth: Pyramid) -> list[NDArray[np.int64]]:
    """For each axis the prediction's pixel at the centre of every pixel of the truth.

    Raises
    ------
    InputError
        If the two do not cover the same place.
    """
    if prediction.ndim != truth.ndim:
        raise InputError(
            f"the prediction has {prediction.ndim} spatial axes and the truth {truth.ndim}; they "
            "must show the same image."
        )
    ratio, shift = relative_scale(prediction, truth)
    places = []
    for axis, size in enumerate(truth.spatial_shape):
        centre = (np.arange(size) - shift[axis]) / ratio[axis]
        index = np.floor(np.round(centre + 0.5, 6)).astype(np.int64)
        places.append(np.clip(index, 0, prediction.spatial_shape[axis] - 1))
    return places


def relative_scale(prediction: Pyramid, truth: Pyramid) -> tuple[FloatArray, FloatArray]:
    """Truth pixels in one of the prediction's, and the place of its pixel 0, along each axis.

    From the scales of both where both know their pixel size; else from their shapes, which must
    then be those of one image at whole-numbered levels.
    """
    ours = np.asarray(truth.spatial_shape, np.float64)
    theirs = np.asarray(prediction.spatial_shape, np.float64)
    for ratio, shift in _candidates(prediction, truth):
        ends = shift - ratio / 2 + theirs * ratio
        slack = np.maximum(ratio, 1) - 1e-6  # less than one pixel of the coarser image
        begins = np.abs(shift - ratio / 2 + 0.5) < slack / 2 + 1e-5
        if (begins & (np.abs(ends - (ours - 0.5)) < slack)).all():
            return ratio, shift
    raise InputError(
        f"the prediction has {_text(prediction)} and the truth {_text(truth)}; they do not cover "
        "the same place at any level. Compare a prediction with the truth of its own image."
    )


def _candidates(prediction: Pyramid, truth: Pyramid) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Possible alignments, the best founded first."""
    spacing, ours = np.asarray(prediction.spacing), np.asarray(truth.spacing)
    place, origin = np.asarray(prediction.origin), np.asarray(truth.origin)
    if prediction.pixel_size is not None and truth.pixel_size is not None:
        um, um_truth = np.asarray(prediction.pixel_size[0]), np.asarray(truth.pixel_size[0])
        yield um / um_truth, (place / spacing * um - origin / ours * um_truth) / um_truth
        if prediction.spatial_shape != truth.spatial_shape:
            return  # sizes that do not fit are an error, no reason to guess
    elif prediction.pixel_size is None and truth.pixel_size is None:
        yield spacing / ours, (place - origin) / ours
    ratio = _ratio_of_shapes(prediction.spatial_shape, truth.spatial_shape)
    if ratio is not None:
        yield ratio, (ratio - 1) / 2


def _ratio_of_shapes(given: Sequence[int], wanted: Sequence[int]) -> FloatArray | None:
    """Truth pixels in a predicted one if one image is the other at a whole-numbered level.

    A level scales y and x alike, other axes likewise or not at all; powers of two come first.
    """
    is_coarser = math.prod(given) <= math.prod(wanted)
    fine, coarse = (wanted, given) if is_coarser else (given, wanted)
    most = math.ceil(fine[-1] / coarse[-1]) + 1
    levels = sorted(range(1, most + 1), key=lambda k: (k & (k - 1) != 0, k))
    for level in levels:
        fits = [
            (level if -(-n // level) == m else 1 if n == m and axis < len(fine) - 2 else 0)
            for axis, (n, m) in enumerate(zip(fine, coarse, strict=True))
        ]
        if all(fits):
            ratio = np.asarray(fits, np.float64)
            return ratio if is_coarser else 1 / ratio
    return None


def _text(pyramid: Pyramid) -> str:
    shape = " x ".join(str(n) for n in pyramid.spatial_shape)
    if pyramid.pixel_size is None:
        return f"{shape} px"
    return f"{shape} px of {pyramid.pixel_size[0][-1]:.4g} um"
