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
SAMPLE_BYTES = 512 << 20
"""Memory for what labelled tiles taught; the 64 that teach at a time need half of it at most."""

SAMPLES_PER_CLASS = 400
"""Pixels of one class that one tile teaches with."""

MOST_TILES = 64
"""Labelled tiles that teach, the nearest to the view first."""

RIDGE = 0.1
SHARPNESS = 4.0
"""Scores are differences of regressed indicators; this makes probabilities of them."""

Tile = tuple[int, ...]
"""Plane of a volume, if it is one, then row and column of tiles."""


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
        Downsampling factor, and the first pixel (y, x) in pixels of the level.
    plane
        Index of the plane, (z,), of a volume; empty for an image.
    """

    labels: NDArray[Any]
    confidence: NDArray[np.float32]
    level: int
    start: tuple[int, int]
    plane: tuple[int, ...] = ()

    def most_uncertain(self, side: int = 128) -> FloatArray:
        """Centre, world px ((z,) y, x), of the block of the view that is least certain."""
        height, width = self.confidence.shape
        places = [
            (float(self.confidence[y : y + side, x : x + side].mean()), y, x)
            for y in range(0, height, side) for x in range(0, width, side)
        ]
        _, y, x = min(places)
        middle = np.array([min(y + side / 2, (y + height) / 2), min(x + side / 2, (x + width) / 2)])
        centre = (np.asarray(self.start) + middle) * self.level - 0.5
        return np.array([*self.plane, *centre])


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
        The image; of a volume each plane is looked at on its own, and all planes teach.
    store
        Its annotation store.
    model
        A loaded encoder, autoencoder or segmenter whose features are added, or None.
    """

    def __init__(self, pyramid: Any, store: Any, model: Any = None) -> None:
        self._pyramid, self._store, self._model = pyramid, store, model
        self._planes: dict[Tile, tuple[Any, EncoderFeatures | None]] = {}
        if model is not None and int(getattr(model, "ndim", 2)) != 2:
            raise InputError(
                "instant prediction uses features of models of planes; this one was trained on "
                "volumes. Choose another model, or none."
            )
        if len(pyramid.spatial_shape) == 2:
            self._plane(())  # so that a model that does not fit is refused here
        self._maps: ByteCache[list[FeatureMap]] = ByteCache(FEATURE_BYTES)
        self._samples: ByteCache[tuple[bytes, _Samples]] = ByteCache(SAMPLE_BYTES)
        self._lock = threading.Lock()

    def predict(
        self, level: int, start: Sequence[int], size: Sequence[int]
    ) -> InstantResult:
        """Labels of a view, learned from all that is painted.

        Parameters
        ----------
        level, start, size
            The view: first pixel and number of pixels, in pixels of `level`; of a volume one
            plane of it.

        Raises
        ------
        InputError
            If fewer than two classes are painted.
        """
        lead = tuple(int(n) for n in start[:-2])
        with self._lock:
            head = self._fit(level, (*lead, *(np.asarray(start) + np.asarray(size) / 2)[-2:]))
            values = np.asarray(self._store.classes.values)
            start, size = tuple(start[-2:]), tuple(size[-2:])
            labels = np.zeros(size, self._store.arrays.dtype)
            confidence = np.zeros(size, np.float32)
            for tile in _tiles_of(start, size):
                for low, extent in self._blocks(level, lead, *_overlap(tile, start, size)):
                    maps = self._block_maps(level, (*lead, *tile), low)
                    probabilities = head(maps, level, low, extent)
                    best = probabilities.argmax(axis=-1)
                    cut = _cut(low, extent, start)
                    labels[cut] = values[head.classes[best]]
                    confidence[cut] = probabilities.max(axis=-1)
        top, left = (int(n) for n in start)
        return InstantResult(labels, confidence, level, (top, left), lead)

    def _fit(self, level: int, centre: Sequence[float]) -> _Head:
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

    def _labelled_tiles(self, level: int, centre: Sequence[float]) -> list[Tile]:
        """Tiles with labels, nearest first: planes count before places in them."""
        found: set[tuple[Tile, int]] = set()
        for box in self._store.labelled_boxes():
            low = np.floor((box[0, -2:] + 0.5) / level / TILE).astype(int)
            high = np.ceil((box[1, -2:] + 0.5) / level / TILE).astype(int)
            first, depth = np.round(box[0, :-2] + 0.5), np.round(box[1, :-2] - box[0, :-2])
            lead = tuple(first.astype(int).tolist())
            found.update(((*lead, y, x), int(np.prod(depth)))
                         for y in range(low[0], high[0]) for x in range(low[1], high[1]))

        def distance(tile: Tile) -> tuple[float, float]:
            away = (np.asarray(tile[-2:]) + 0.5) * TILE - centre[-2:]
            return abs(sum(tile[:-2]) - sum(centre[:-2])), float(np.sum(away**2))

        blocks = sorted(found, key=lambda block: distance(block[0]))
        labelled = sorted(itertools.islice(
            (tile for block in blocks for tile in self._planes_in(level, *block)), 4 * MOST_TILES
        ), key=distance)
        return labelled[:MOST_TILES]

    def _planes_in(self, level: int, tile: Tile, depth: int) -> list[Tile]:
        """The tile in each of `depth` planes from its own on, where it has labels."""
        is_volume = len(tile) > 2
        labels = self._labels(level, tile, depth if is_volume else None)
        if not is_volume:
            return [tile] if labels.any() else []
        return [(tile[0] + i, *tile[1:]) for i, plane in enumerate(labels) if plane.any()]

    def _labels(self, level: int, tile: Tile, depth: int | None = None) -> NDArray[Any]:
        """Labels (TILE, TILE) of a tile, or of it in some planes (depth, TILE, TILE)."""
        start = (*tile[:-2], tile[-2] * TILE, tile[-1] * TILE)
        size = (*[depth or 1] * (len(tile) - 2), TILE, TILE)
        labels: NDArray[Any] = self._store.read(level, start, size)
        return labels if depth else labels.reshape(TILE, TILE)

    def _plane(self, lead: Tile) -> tuple[Any, EncoderFeatures | None]:
        """The image of a plane, and its encoder features where there is a model."""
        if lead not in self._planes:
            image = self._pyramid.plane(lead[0]) if lead else self._pyramid
            encoder = None if self._model is None else EncoderFeatures(self._model, image)
            self._planes[lead] = (image, encoder)
        return self._planes[lead]

    def _tile_samples(self, level: int, tile: Tile) -> _Samples:
        labels = self._labels(level, tile)
        mark = labels.tobytes() + repr(self._store.classes.values).encode()
        known = self._samples.get((level, tile))
        if known is not None and known[0] == mark:
            return known[1]
        pixels, classes = self._choose_pixels(level, tile, labels)
        points = _world(level, pixels + np.asarray(tile[-2:]) * TILE)
        features = _features_at(self._filter_maps(level, tile), points)
        if self._model is not None:
            features = np.concatenate([features, self._encoder_at(level, tile, points)], axis=1)
        samples = _Samples(features, classes)
        num_bytes = features.nbytes + classes.nbytes + len(mark)
        self._samples.put((level, tile), (mark, samples), num_bytes)
        return samples

    def _choose_pixels(
        self, level: int, tile: Tile, labels: NDArray[Any]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pixels (n, 2) of a tile that teach, and their class indices (n,)."""
        index = self._store.classes.to_index(labels)
        rng = np.random.default_rng([level, *tile])
        chosen = []
        for value in range(len(self._store.classes)):
            places = np.argwhere(index == value)
            if len(places) > SAMPLES_PER_CLASS:
                places = places[rng.choice(len(places), SAMPLES_PER_CLASS, replace=False)]
            chosen.append(places)
        pixels = np.concatenate(chosen)
        return pixels, index[tuple(pixels.T)].astype(np.int64)

    def _encoder_at(
        self, level: int, tile: Tile, points: FloatArray
    ) -> NDArray[np.float32]:
        """The model's features (n, F) at world positions (n, 2), of the crop that covers each."""
        encoder = self._encoder(tile[:-2])
        crops = encoder.places(level, points)
        found = np.zeros((len(points), encoder.num_features(level)), np.float32)
        for crop in np.unique(crops, axis=0):
            inside = (crops == crop).all(axis=1)
            maps = self._encoder_maps(level, tile[:-2], crop)
            found[inside] = _features_at(maps, points[inside])
        return found

    def _encoder(self, lead: Tile) -> EncoderFeatures:
        encoder = self._plane(lead)[1]
        if encoder is None:
            raise InputError("this instant prediction has no model. Make it with one.")
        return encoder

    def _blocks(self, level: int, lead: Tile, low: Tile, extent: Tile) -> list[tuple[Tile, Tile]]:
        """A block of pixels in parts that one crop of the model covers each, as (first, size)."""
        if self._model is None:
            return [(low, extent)]
        encoder = self._encoder(lead)
        rows, columns = (
            _stretches(encoder.places(level, _world(level, np.arange(a, a + n)[:, None]))[:, 0], a)
            for a, n in zip(low, extent, strict=True)
        )
        return [((y, x), (h, w)) for y, h in rows for x, w in columns]

    def _block_maps(self, level: int, tile: Tile, low: Tile) -> list[FeatureMap]:
        """Features of a part of a tile that begins at pixel `low`, see `_blocks`."""
        maps = self._filter_maps(level, tile)
        if self._model is None:
            return maps
        crop = self._encoder(tile[:-2]).places(level, _world(level, low)[None])[0]
        return maps + self._encoder_maps(level, tile[:-2], crop)

    def _filter_maps(self, level: int, tile: Tile) -> list[FeatureMap]:
        image, _ = self._plane(tile[:-2])
        start = (tile[-2] * TILE, tile[-1] * TILE)
        return self._cached(("filter", level, *tile),
                            lambda: filter_maps(image, level, start, (TILE, TILE)))

    def _encoder_maps(
        self, level: int, lead: Tile, crop: NDArray[np.int64]
    ) -> list[FeatureMap]:
        encoder = self._encoder(lead)
        row, column = (int(n) for n in crop)
        key = ("encoder", encoder.index_for(level), *lead, row, column)
        return self._cached(key, lambda: encoder.maps(level, (row, column)))

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
        rows, columns = (
            _world(level, np.arange(low, low + n)) for low, n in zip(start, size, strict=True))
        scores = np.tile(self.bias, (*size, 1))
        begin = 0
        for item in maps:
            end = begin + item.values.shape[-1]
            scores += item.weighted(self.weights[begin:end]).on_grid(rows, columns)
            begin = end
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        probabilities: NDArray[np.float32] = scores / scores.sum(axis=-1, keepdims=True)
        return probabilities


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


def _overlap(tile: Tile, start: Sequence[int], size: Sequence[int]) -> tuple[Tile, Tile]:
    """The part of a tile that lies in the block: first pixel and size."""
    low = [max(t * TILE, s) for t, s in zip(tile, start, strict=True)]
    high = [min((t + 1) * TILE, s + n) for t, s, n in zip(tile, start, size, strict=True)]
    return (low[0], low[1]), (high[0] - low[0], high[1] - low[1])


def _cut(low: Tile, extent: Tile, start: Sequence[int]) -> tuple[slice, ...]:
    """Where a block lies in an array that begins at pixel `start`."""
    return tuple(slice(a - s, a - s + n) for a, n, s in zip(low, extent, start, strict=True))


def _stretches(numbers: NDArray[np.int64], first: int) -> list[tuple[int, int]]:
    """First position, counted from `first`, and length of each stretch of equal numbers."""
    edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
    return [(first + a, b - a) for a, b in itertools.pairwise(edges)]
