"""Frozen features of a place, for answers before any training: filters and encoder tokens.

Features are maps of their own resolution: filter responses at three scales around the view's
level, and, where a model is given, its tokens at its own patches. A linear head never needs
them on one grid, since interpolating a map and weighting its features commute.

Axis letters: C channels, F features, h, w pixels of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.data.normalize import finite_pixels
from napari_muvit.geometry import FloatArray, aligned_offset

TILE = 256
"""Side of the tiles in which features are kept, pixels of the view's level."""

RATIOS = (1, 4, 16)
"""Levels at which filters look around, relative to the view's."""

MARGIN = 16
"""Pixels around a tile that filters see."""

SIGMAS = (1.0, 2.0, 4.0)
SPREADS = (2.0, 6.0)
"""Widths, px, in which intensity is smoothed, and in which its spread and edges are summed."""


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """Features on a regular grid.

    Attributes
    ----------
    values
        (h, w, F) float32.
    lower, factor
        World position of the centre of pixel 0, and world px of one pixel, (2,) each.
    """

    values: NDArray[np.float32]
    lower: FloatArray
    factor: FloatArray

    @classmethod
    def in_box(cls, values: NDArray[np.float32], box: FloatArray) -> FeatureMap:
        """A map whose pixels fill `box`, (2, 2) outer edges, world px."""
        factor = (box[1] - box[0]) / np.asarray(values.shape[:2])
        return cls(values, box[0] + factor / 2, factor)

    def at(self, points: FloatArray) -> NDArray[np.float32]:
        """Features (n, F) at world positions (n, 2), interpolated; the edge goes on outside."""
        place = (points - self.lower) / self.factor
        limit = np.asarray(self.values.shape[:2]) - 1
        place = np.clip(place, 0, limit)
        low = np.minimum(np.floor(place).astype(np.int64), np.maximum(limit - 1, 0))
        high = np.minimum(low + 1, limit)
        part = (place - low).astype(np.float32)[..., None]
        (y0, x0), (y1, x1), (py, px) = low.T, high.T, part.transpose(1, 0, 2)
        values = self.values
        top = values[y0, x0] * (1 - px) + values[y0, x1] * px
        bottom = values[y1, x0] * (1 - px) + values[y1, x1] * px
        found: NDArray[np.float32] = top * (1 - py) + bottom * py
        return found

    def on_grid(self, rows: FloatArray, columns: FloatArray) -> NDArray[np.float32]:
        """Features (H, W, F) where rows (H,) and columns (W,), world px, cross; as `at` has them.

        One axis after the other, which takes a small part of the time.
        """
        along_y = _interpolate(self.values, (rows - self.lower[0]) / self.factor[0])
        across = _interpolate(
            along_y.transpose(1, 0, 2), (columns - self.lower[1]) / self.factor[1])
        found: NDArray[np.float32] = across.transpose(1, 0, 2)
        return found

    def weighted(self, weights: NDArray[np.float32]) -> FeatureMap:
        """The map's features times `weights` (F, K), on the same grid."""
        return FeatureMap(self.values @ weights, self.lower, self.factor)

    @property
    def num_bytes(self) -> int:
        return self.values.nbytes


def _interpolate(values: NDArray[np.float32], place: FloatArray) -> NDArray[np.float32]:
    """Values (H, ...) of `values` (h, ...) at places (H,) along its first axis."""
    limit = len(values) - 1
    place = np.clip(place, 0, limit)
    low = np.minimum(np.floor(place).astype(np.int64), max(limit - 1, 0))
    part = (place - low).astype(np.float32).reshape(-1, *[1] * (values.ndim - 1))
    found: NDArray[np.float32] = (
        values[low] * (1 - part) + values[np.minimum(low + 1, limit)] * part)
    return found


def filter_maps(
    pyramid: Any, level: int, start: Sequence[int], size: Sequence[int]
) -> list[FeatureMap]:
    """Intensity, smoothing and edges at three scales around a tile.

    Parameters
    ----------
    level, start, size
        The tile, in pixels of `level`.
    """
    maps = []
    low = (np.asarray(start) - 0.5) * level + aligned_offset(level)
    for ratio in RATIOS:
        factor = level * ratio
        pixels = [-(-n // ratio) + 2 * MARGIN for n in size]
        crop = pyramid.crop(
            corner=(low - MARGIN * factor)[None], levels=(factor,), size=pixels,
        )
        image, valid = crop.image[0], crop.valid[0]
        if image.dtype.kind == "f":  # one pixel that is no number would blot out all around it
            valid = finite_pixels(image, valid)
            image = np.where(valid, image, 0)
        image = mirror_outside(image, valid)
        maps.append(FeatureMap.in_box(filter_responses(image), crop.bbox[0]))
    return maps


def mirror_outside(image: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[Any]:
    """(C, h, w) with the image mirrored into its padding, where filters would see an edge."""
    rows, columns = np.flatnonzero(valid.any(axis=1)), np.flatnonzero(valid.any(axis=0))
    if not len(rows) or valid.all():
        return image
    inside = image[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    margins = [(int(found[0]), int(size - 1 - found[-1]))
               for found, size in zip((rows, columns), valid.shape, strict=True)]
    return np.pad(inside, [(0, 0), *margins], mode="symmetric")


def filter_responses(image: NDArray[Any]) -> NDArray[np.float32]:
    """Smoothed intensity, local spread and edge strength of (C, h, w), (h, w, F)."""
    from scipy.ndimage import gaussian_filter, sobel

    responses = []
    for channel in image.astype(np.float32):
        responses += [channel, *[gaussian_filter(channel, sigma) for sigma in SIGMAS]]
        edges = np.hypot(sobel(responses[-3], 0), sobel(responses[-3], 1))
        for sigma in SPREADS:
            mean = gaussian_filter(channel, sigma)
            spread = gaussian_filter(channel**2, sigma) - mean**2
            responses += [np.sqrt(np.maximum(spread, 0)), gaussian_filter(edges, sigma)]
    return np.stack(responses, axis=-1)


class EncoderFeatures:
    """Tokens of a frozen encoder.

    Parameters
    ----------
    model
        A loaded encoder, autoencoder or segmenter with a ``.meta``.
    pyramid
        The image.
    """

    def __init__(self, model: Any, pyramid: Any) -> None:
        from napari_muvit.data.normalize import NormalizationRule, measure

        meta = getattr(model, "meta", None)
        self._encoder = getattr(model, "encoder", model).eval()
        self._pyramid = pyramid
        self.levels = tuple(float(level) for level in self._encoder.levels)
        size = getattr(meta, "crop_size", None) or getattr(self._encoder, "crop_size", None) or 256
        self.size = int(np.atleast_1d(size)[-1])
        rule = NormalizationRule.from_dict(getattr(meta, "normalization", None) or {"kind": "none"})
        self._normalization = measure(rule, pyramid)

    def index_for(self, level: int) -> int:
        """Position of the finest of the model's levels that is no finer than the view's."""
        return next((i for i, own in enumerate(self.levels) if own >= level), len(self.levels) - 1)

    def num_features(self, level: int) -> int:
        """Number of features of a place, in all maps together."""
        return int(self._encoder.dim) * (len(self.levels) - self.index_for(level))

    def places(self, level: int, points: FloatArray) -> NDArray[np.int64]:
        """Numbers of the crops that cover world positions, (n, A) of (n, A)."""
        step = self.size * self.levels[self.index_for(level)]
        return np.floor((points + 0.5) / step).astype(np.int64)

    def maps(self, level: int, place: tuple[int, int]) -> list[FeatureMap]:
        """One map for each of the model's levels that is no finer than the view's."""
        import torch

        first = self.index_for(level)
        step = self.size * self.levels[first]
        center = (np.asarray(place) + 0.5) * step - 0.5
        crop = self._pyramid.crop(center=center, levels=self.levels, size=self.size)
        image, _ = self._normalization.apply_where(crop.image, crop.valid)
        boxes = crop.bbox - crop.bbox[-1].mean(axis=0)
        device = next(self._encoder.parameters()).device
        given = (torch.from_numpy(part)[None].to(device)
                 for part in (image, boxes.astype(np.float32)))
        with torch.inference_mode():
            found = self._encoder.compute_features(*given)[0].float().cpu().numpy()
        return [
            FeatureMap.in_box(np.ascontiguousarray(np.moveaxis(found[i], 0, -1)), crop.bbox[i])
            for i in range(first, len(self.levels))
        ]
