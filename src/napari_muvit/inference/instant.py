"""A first prediction before any training: a linear head on frozen features.

What is painted is fitted within a moment, everywhere in view: class scores are a ridge
regression from features to classes, each class weighted alike. Features are kept, so a stroke
costs the fit and one product. Knows no viewer, and needs torch only where a model is given.

Axis letters: n labelled pixels, F features, K classes, H, W pixels of the view.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.errors import InputError
from napari_muvit.geometry import FloatArray, aligned_offset
from napari_muvit.inference.cache import ByteCache
from napari_muvit.inference.instant_features import (
    TILE,
    EncoderFeatures,
    FeatureMap,
    filter_maps,
)

FEATURE_BYTES = 1 << 30
SAMPLES_PER_CLASS = 400
"""Pixels of one class that one tile teaches with."""

MOST_TILES = 64
"""Labelled tiles that teach, the nearest to the view first."""

RIDGE = 0.1
SHARPNESS = 4.0
"""Scores are differences of regressed indicators; this makes probabilities of them."""

Tile = tuple[int, int]


@dataclass(frozen=True, eq=False)
class InstantResult:
    """A prediction of a view.

    Attributes
    ----------
    labels
        (H, W) class values in pixels of `level`.
    confidence
        (H, W) float32, the probability of the chosen class.
    level, start
        Downsampling factor, and the first pixel in pixels of the level.
    """

    labels: NDArray[Any]
    confidence: NDArray[np.float32]
    level: int
    start: tuple[int, int]

    def most_uncertain(self, side: int = 128) -> FloatArray:
        """Centre, world px (y, x), of the block of the view that is least certain."""
        height, width = self.confidence.shape
        places = [
            (float(self.confidence[y : y + side, x : x + side].mean()), y, x)
            for y in range(0, height, side) for x in range(0, width, side)
        ]
        _, y, x = min(places)
        middle = np.array([min(y + side / 2, height / 2 + y / 2), min(x + side / 2, width)])
        centre: FloatArray = (np.asarray(self.start) + middle) * self.level - 0.5
        return centre


@dataclass(frozen=True, eq=False)
class _Samples:
    """Features (n, F) and class indices (n,) of one tile's labelled pixels."""

    features: NDArray[np.float32]
    classes: NDArray[np.int64]


class InstantPrediction:
    """Learns from an annotation store and predicts what is looked at.

    Parameters
    ----------
    pyramid
        The image.
    store
        Its annotation store.
    model
        A loaded encoder, autoencoder or segmenter whose features are added, or None.
    """

    def __init__(self, pyramid: Any, store: Any, model: Any = None) -> None:
        self._pyramid, self._store = pyramid, store
        self._encoder = None if model is None else EncoderFeatures(model, pyramid)
        self._maps: ByteCache[list[FeatureMap]] = ByteCache(FEATURE_BYTES)
        self._samples: dict[tuple[int, Tile], tuple[bytes, _Samples]] = {}
        self._lock = threading.Lock()

    def predict(
        self, level: int, start: Sequence[int], size: Sequence[int]
    ) -> InstantResult:
        """Labels of a view, learned from all that is painted.

        Parameters
        ----------
        level, start, size
            The view: first pixel and number of pixels (y, x), in pixels of `level`.

        Raises
        ------
        InputError
            If fewer than two classes are painted.
        """
        with self._lock:
            head = self._fit(level, np.asarray(start) + np.asarray(size) / 2)
            values = np.asarray(self._store.classes.values)
            labels = np.zeros(tuple(size), self._store.arrays.dtype)
            confidence = np.zeros(tuple(size), np.float32)
            for tile in _tiles_of(start, size):
                cut, place, extent = _overlap(tile, start, size)
                probabilities = head(self._tile_maps(level, tile), level, place, extent)
                best = probabilities.argmax(axis=-1)
                labels[cut] = values[head.classes[best]]
                confidence[cut] = probabilities.max(axis=-1)
        low, left = (int(n) for n in start)
        return InstantResult(labels, confidence, level, (low, left))

    def _fit(self, level: int, centre: FloatArray) -> _Head:
        parts = [self._tile_samples(level, tile) for tile in self._labelled_tiles(level, centre)]
        parts = [part for part in parts if len(part.classes)]
        present = {value for part in parts for value in part.classes.tolist()}
        if len(present) < 2:
            raise InputError(
                "an instant prediction needs strokes of at least two classes. Paint a little of "
                "another class, background for example."
            )
        features = np.concatenate([part.features for part in parts])
        return _Head.fit(features, np.concatenate([part.classes for part in parts]))

    def _labelled_tiles(self, level: int, centre: FloatArray) -> list[Tile]:
        found: set[Tile] = set()
        for box in self._store.labelled_boxes():
            low = np.floor((box[0, -2:] + 0.5) / level / TILE).astype(int)
            high = np.ceil((box[1, -2:] + 0.5) / level / TILE).astype(int)
            found.update((y, x) for y in range(low[0], high[0]) for x in range(low[1], high[1]))
        nearest = sorted(
            found, key=lambda tile: float(np.sum(((np.asarray(tile) + 0.5) * TILE - centre) ** 2))
        )
        labelled = (tile for tile in nearest if self._labels(level, tile).any())
        return list(itertools.islice(labelled, MOST_TILES))

    def _labels(self, level: int, tile: Tile) -> NDArray[Any]:
        labels: NDArray[Any] = self._store.read(level, (tile[0] * TILE, tile[1] * TILE),
                                                (TILE, TILE))
        return labels

    def _tile_samples(self, level: int, tile: Tile) -> _Samples:
        labels = self._labels(level, tile)
        mark = labels.tobytes() + repr(self._store.classes.values).encode()
        known = self._samples.get((level, tile))
        if known is not None and known[0] == mark:
            return known[1]
        index = self._store.classes.to_index(labels)
        rng = np.random.default_rng([level, *tile])
        chosen = []
        for value in range(len(self._store.classes)):
            places = np.argwhere(index == value)
            if len(places) > SAMPLES_PER_CLASS:
                places = places[rng.choice(len(places), SAMPLES_PER_CLASS, replace=False)]
            chosen.append(places)
        places = np.concatenate(chosen)
        points = _world(level, places + np.asarray(tile) * TILE)
        features = _features_at(self._tile_maps(level, tile), points)
        samples = _Samples(features, index[tuple(places.T)].astype(np.int64))
        self._samples[level, tile] = (mark, samples)
        return samples

    def _tile_maps(self, level: int, tile: Tile) -> list[FeatureMap]:
        start = (tile[0] * TILE, tile[1] * TILE)
        maps = self._cached(("filter", level, *tile),
                            lambda: filter_maps(self._pyramid, level, start, (TILE, TILE)))
        encoder = self._encoder
        if encoder is None:
            return maps
        place = encoder.place(level, _world(level, np.asarray(start) + TILE / 2))
        first = encoder.index_for(level)
        return maps + self._cached(("encoder", first, *place), lambda: encoder.maps(level, place))

    def _cached(self, key: tuple[Any, ...], make: Any) -> list[FeatureMap]:
        maps = self._maps.get(key)
        if maps is None:
            maps = make()
            self._maps.put(key, maps, sum(item.num_bytes for item in maps))
        return maps


@dataclass(frozen=True, eq=False)
class _Head:
    """Linear class scores: weights (F, K), bias (K,), and the index of each class."""

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    classes: NDArray[np.int64]

    @classmethod
    def fit(cls, features: NDArray[np.float32], classes: NDArray[np.int64]) -> _Head:
        """Ridge regression to class indicators, with equal weight for every class."""
        present, target = np.unique(classes, return_inverse=True)
        share = (1.0 / np.bincount(target))[target]
        share /= share.sum()
        mean = share @ features
        deviation = np.sqrt(share @ (features - mean) ** 2) + 1e-6
        scaled = (features - mean) / deviation
        indicators = np.eye(len(present))[target]
        centred = indicators - 1 / len(present)
        gram = (scaled * share[:, None]).T @ scaled + RIDGE * np.eye(scaled.shape[1])
        solved = np.linalg.solve(gram, (scaled * share[:, None]).T @ centred)
        weights = SHARPNESS * solved / deviation[:, None]
        return cls(weights.astype(np.float32), (-mean @ weights).astype(np.float32), present)

    def __call__(
        self, maps: Sequence[FeatureMap], level: int, start: Tile, size: Tile
    ) -> NDArray[np.float32]:
        """Class probabilities (h, w, K) of a block in pixels of `level`."""
        grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1).reshape(-1, 2)
        points = _world(level, grid + np.asarray(start))
        scores = np.tile(self.bias, (len(points), 1))
        begin = 0
        for item in maps:
            end = begin + item.values.shape[-1]
            scores += item.weighted(self.weights[begin:end]).at(points)
            begin = end
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        probabilities: NDArray[np.float32] = scores / scores.sum(axis=1, keepdims=True)
        return probabilities.reshape(*size, -1)


def _features_at(maps: Sequence[FeatureMap], points: FloatArray) -> NDArray[np.float32]:
    return np.concatenate([item.at(points) for item in maps], axis=1)


def _world(level: int, pixels: Any) -> FloatArray:
    """World positions of the centres of pixels of `level`."""
    world: FloatArray = np.asarray(pixels, np.float64) * level + aligned_offset(level)
    return world


def _tiles_of(start: Sequence[int], size: Sequence[int]) -> list[Tile]:
    """Tiles that a block touches, from its middle outwards."""
    middle = (np.asarray(start) + np.asarray(size) / 2) / TILE - 0.5
    rows, columns = (
        range(s // TILE, -(-(s + n) // TILE)) for s, n in zip(start, size, strict=True)
    )
    tiles = [(row, column) for row in rows for column in columns]
    return sorted(tiles, key=lambda tile: float(np.sum((np.asarray(tile) - middle) ** 2)))


def _overlap(
    tile: Tile, start: Sequence[int], size: Sequence[int]
) -> tuple[tuple[slice, ...], Tile, Tile]:
    """Where a tile lies in the block, and its part there: first pixel and size."""
    low = [max(t * TILE, s) for t, s in zip(tile, start, strict=True)]
    high = [min((t + 1) * TILE, s + n) for t, s, n in zip(tile, start, size, strict=True)]
    cut = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
    return cut, (low[0], low[1]), (high[0] - low[0], high[1] - low[1])
