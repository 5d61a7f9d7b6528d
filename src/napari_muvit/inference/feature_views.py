"""Features made visible: principal components as colours, clusters as labels.

Both are fitted on features from a few blocks and then applied lazily, so a whole slide costs
what is looked at.

Axis letters: D width, S' patches along each axis, n samples, k clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.errors import InputError

if TYPE_CHECKING:
    import dask.array as da

SAMPLE_BLOCKS = 8
SAMPLES = 8192
ROUNDS = 50

Matrix = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Projection:
    """Principal components: features minus `mean` (D,) times `axes` (k, D), scaled to 0..1."""

    mean: Matrix
    axes: Matrix
    low: Matrix
    high: Matrix

    def apply(self, block: Matrix) -> Matrix:
        """Features (D, *S') as k channels between 0 and 1."""
        flat = block.reshape(len(block), -1).T - self.mean
        values = (flat @ self.axes.T - self.low) / (self.high - self.low)
        shaped: Matrix = np.clip(values, 0, 1).T.reshape(len(self.axes), *block.shape[1:])
        return shaped.astype(np.float32)


@dataclass(frozen=True, eq=False)
class Clusters:
    """Cluster `centres`, (k, D)."""

    centres: Matrix

    def apply(self, block: Matrix) -> NDArray[np.uint8]:
        """Features (D, *S') as labels 1..k of the nearest centre."""
        flat = block.reshape(len(block), -1).T
        return (_nearest(flat, self.centres) + 1).astype(np.uint8).reshape(block.shape[1:])


def sample_features(features: da.Array, seed: int = 0) -> Matrix:
    """Feature vectors (n, D) from a few blocks, always the same ones."""
    rng = np.random.default_rng(seed)
    places = list(np.ndindex(*features.numblocks[1:]))
    chosen = rng.permutation(len(places))[:SAMPLE_BLOCKS]
    parts = []
    for number in chosen:
        block = np.asarray(features.blocks[(0, *places[number])].compute())
        flat = block.reshape(len(block), -1).T
        parts.append(flat[rng.permutation(len(flat))[: SAMPLES // len(chosen)]])
    return np.concatenate(parts)


def project_features(features: da.Array, count: int = 3, seed: int = 0) -> da.Array:
    """The first principal components, (count, *S') float32 between 0 and 1: three are a colour."""
    sample = sample_features(features, seed)
    _check(count, min(sample.shape), "components")
    mean = sample.mean(axis=0)
    axes = np.linalg.svd(sample - mean, full_matrices=False)[2][:count]
    axes *= np.sign(axes[np.arange(count), np.abs(axes).argmax(axis=1)])[:, None]
    low, high = np.percentile((sample - mean) @ axes.T, (1, 99), axis=0).astype(np.float32)
    found = Projection(mean, axes, low, np.maximum(high, low + 1e-6))
    chunks = ((count,), *features.chunks[1:])
    return features.map_blocks(found.apply, chunks=chunks, dtype=np.float32, meta=_empty(
        features.ndim, np.float32))


def cluster_features(features: da.Array, count: int = 8, seed: int = 0) -> da.Array:
    """Labels 1..count of k-means clusters, (*S') uint8."""
    sample = sample_features(features, seed)
    _check(count, min(len(sample), 255), "clusters")
    found = Clusters(_fit_clusters(sample, count, np.random.default_rng(seed)))
    return features.map_blocks(
        found.apply, drop_axis=0, chunks=features.chunks[1:], dtype=np.uint8,
        meta=_empty(features.ndim - 1, np.uint8),
    )


def _fit_clusters(sample: Matrix, count: int, rng: np.random.Generator) -> Matrix:
    """Lloyd's k-means from k-means++ starts."""
    centres: Matrix = sample[rng.integers(len(sample))][None]
    while len(centres) < count:
        distance = _squared(sample, centres).min(axis=1).clip(1e-12)
        centres = np.concatenate([centres, sample[rng.choice(
            len(sample), p=distance / distance.sum())][None]])
    for _ in range(ROUNDS):
        nearest = _nearest(sample, centres)
        moved = np.stack([
            sample[nearest == k].mean(axis=0) if (nearest == k).any() else centres[k]
            for k in range(count)
        ])
        if np.allclose(moved, centres):
            break
        centres = moved
    return centres


def _nearest(points: Matrix, centres: Matrix) -> NDArray[np.int64]:
    nearest: NDArray[np.int64] = _squared(points, centres).argmin(axis=1)
    return nearest


def _squared(points: Matrix, centres: Matrix) -> NDArray[np.float64]:
    """Squared distances, (n, k)."""
    p, c = points.astype(np.float64), centres.astype(np.float64)
    squared: NDArray[np.float64] = (p**2).sum(1)[:, None] - 2 * p @ c.T + (c**2).sum(1)
    return squared


def _check(count: int, most: int, what: str) -> None:
    if not 1 <= count <= most:
        raise InputError(f"count is {count}; there can be 1 to {most} {what} here.")


def _empty(ndim: int, dtype: Any) -> NDArray[Any]:
    return np.empty((0,) * ndim, dtype)
