"""Matching physical pixel sizes: a model trained at one size meets an image with another."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from napari_muvit.data.crop import SAME, parse_scaled_axes
from napari_muvit.data.pyramid import Pyramid
from napari_muvit.errors import InputError, MuvitWarning
from napari_muvit.geometry import FloatArray


@dataclass(frozen=True)
class PixelMatch:
    """Levels of this image that look as the model's levels did in training.

    Attributes
    ----------
    levels
        What to ask of `Pyramid.crop`; below 1 where the image is coarser than the model.
    scale
        World px of the model in one world px of the image, per spatial axis.
    """

    levels: tuple[int | float, ...]
    scale: tuple[float, ...]

    def to_model(self, boxes: ArrayLike) -> FloatArray:
        """Boxes (..., A) of the image in the world px of the model."""
        moved: FloatArray = np.asarray(boxes, np.float64) * np.asarray(self.scale)
        return moved


def match_pixel_size(
    levels: Sequence[int | float], model_pixel_size: Sequence[float] | None, pyramid: Pyramid,
    scaled_axes: Sequence[int | str] | None = None,
) -> PixelMatch:
    """Rescale a model's levels so that an image is read at the physical size of training.

    Parameters
    ----------
    levels
        The model's, relative to its training images.
    model_pixel_size
        um of each spatial axis of the training images at full resolution; None where unknown.

    Raises
    ------
    InputError
        If the model's pixel size has another number of axes than the image.

    Warns
    -----
    MuvitWarning
        If only one of the two sizes is known, or the image is coarser than the finest level.
    """
    same = PixelMatch(tuple(levels), (1.0,) * pyramid.ndim)
    sizes = _both_sizes(model_pixel_size, pyramid)
    if sizes is None:
        return same
    ours, theirs = sizes
    scaled = list(parse_scaled_axes(scaled_axes, pyramid.axes[1:]))
    ratio = pixel_ratio(theirs[scaled], ours[scaled])
    if np.all(np.abs(theirs / ours - 1) <= SAME):
        return same
    if abs(ratio - 1) <= SAME:
        return PixelMatch(tuple(levels), tuple((ours / theirs).tolist()))
    matched = tuple(float(level * ratio) for level in levels)
    if matched[0] < 1 - SAME:
        _warn_of_magnifying(pyramid.name, float(ours[scaled].max()), matched[0])
    return PixelMatch(matched, tuple((ours / theirs).tolist()))


def pixel_ratio(sizes: ArrayLike, others: ArrayLike) -> float:
    """How many times as large pixels are as others, the mean of all axes; (A,) um each."""
    return float(np.exp(np.mean(np.log(np.asarray(sizes) / np.asarray(others)))))


def _warn_of_magnifying(name: str, size: float, level: float) -> None:
    warnings.warn(
        f"{name!r} has pixels of {size:.4g} um; the model's finest level needs "
        f"{size * level:.4g} um. The image is magnified, which adds no detail.",
        MuvitWarning, stacklevel=3,
    )


def _both_sizes(
    model_pixel_size: Sequence[float] | None, pyramid: Pyramid
) -> tuple[FloatArray, FloatArray] | None:
    """Pixel sizes of the image and of the model, (A,) um each; None where one is unknown."""
    known = pyramid.pixel_size is not None
    if model_pixel_size is None or pyramid.pixel_size is None:
        if known != (model_pixel_size is not None):
            who = "the model was trained without one" if known else "the image has none"
            warnings.warn(
                f"physical pixel size of {pyramid.name!r}: {who}, so levels are taken in pixels. "
                "Results are only right if both have the same size.", MuvitWarning, stacklevel=3,
            )
        return None
    ours, theirs = np.asarray(pyramid.pixel_size[0]), np.asarray(model_pixel_size, np.float64)
    if theirs.shape != ours.shape:
        raise InputError(
            f"the model's pixel size {tuple(model_pixel_size)} has {theirs.size} axes, the image "
            f"{pyramid.name!r} has {ours.size}. Choose z to use one plane, or another model."
        )
    return ours, theirs
