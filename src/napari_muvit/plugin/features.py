"""What the encoder makes of a place, without Qt: colours, groups, likeness.

Axis letters: D width, S' patches along y and x.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_muvit.errors import InputError
from napari_muvit.geometry import FloatArray
from napari_muvit.plugin.layers import ResolvedImage
from napari_muvit.plugin.predict import Region, plan_region, unit_in

ITERATIONS = 20


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """Features of one level in one region.

    Attributes
    ----------
    values
        (D, *S') float32.
    region
        Where they lie; its factor is the world px of one patch.
    """

    level: float
    values: NDArray[np.float32]
    region: Region

    def patch_at(self, place: ArrayLike) -> tuple[int, int] | None:
        """Row and column of the patch at a world px place, None outside of the map."""
        index = (np.asarray(place) - self.region.offset()) / self.region.factor
        row, column = np.round(index).astype(int).tolist()
        height, width = self.values.shape[1:]
        return (row, column) if 0 <= row < height and 0 <= column < width else None


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder in memory: levels, patch size, layers, and the pixel size it was trained at."""

    module: Any
    levels: tuple[float, ...]
    patch: int
    pixel_size: tuple[float, ...] | None
    num_layers: int = 1


def load(backend: Any, folder: str) -> LoadedEncoder:
    """Load the encoder in a run or model folder (runs in a thread).

    Raises
    ------
    InputError
        If no folder is named.
    """
    if not folder.strip():
        raise InputError("no model folder is chosen. Choose the folder of a run.")
    module = backend.load_model(folder)
    encoder = getattr(module, "encoder", module)
    patch = encoder.patch_size
    side = patch if isinstance(patch, int) else int(tuple(patch)[-1])
    size = getattr(getattr(module, "meta", None), "pixel_size", None)
    return LoadedEncoder(
        module, tuple(encoder.levels), side, tuple(size) if size else None,
        int(encoder.num_layers),
    )


@dataclass(frozen=True, eq=False)
class AttendedLevel:
    """What a place attended to at one level: `weights` (*S') and their place in the world.

    `share` is what the level got of all attention, `factor` (A,) the world px of one patch,
    `offset` (A,) the world position of the centre of the first.
    """

    level: float
    share: float
    weights: NDArray[np.float32]
    factor: FloatArray
    offset: FloatArray


def attended(
    backend: Any, image: ResolvedImage, model: LoadedEncoder, place: FloatArray, layer: int,
    device: str,
) -> list[AttendedLevel]:
    """Where the patch at a world px place looked, coarsest level first (runs in a thread)."""
    view = backend.attention_view(image.pyramid, model.module, place, layer=layer, device=device)
    found = []
    for level, share, weights, box in zip(
        view.levels, view.shares(), view.weights, view.boxes, strict=True
    ):
        factor = (box[1] - box[0]) / np.asarray(weights.shape)
        found.append(AttendedLevel(level, share, weights, factor, box[0] + factor / 2))
    return found[::-1]


def compute_maps(
    backend: Any, image: ResolvedImage, model: LoadedEncoder, box: FloatArray, device: str
) -> Iterator[FeatureMap]:
    """Features of every level inside a world px box (runs in a thread)."""
    unit = unit_in(model.pixel_size, image.pyramid)
    for level in model.levels:
        lazy = backend.features(image.pyramid, model.module, level=level, device=device)
        region = plan_region(box, lazy.shape[1:], level * unit * model.patch)
        part = tuple(slice(a, a + n) for a, n in zip(region.start, region.shape, strict=True))
        values = lazy[(slice(None), *part)].compute(scheduler="synchronous")
        yield FeatureMap(level, np.asarray(values, np.float32), region)


def pca_colours(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The three strongest directions of features (D, *S') as RGB, (*S', 3)."""
    flat = values.reshape(len(values), -1).T
    centred = flat - flat.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    parts = centred @ directions[:3].T
    parts = np.pad(parts, ((0, 0), (0, 3 - parts.shape[1])))
    low, high = np.percentile(parts, [2, 98], axis=0)
    scaled = np.clip((parts - low) / np.maximum(high - low, 1e-9), 0, 1)
    colours: NDArray[np.uint8] = (scaled * 255).round().astype(np.uint8)
    return colours.reshape(*values.shape[1:], 3)


def likeness(values: NDArray[np.float32], patch: Sequence[int]) -> NDArray[np.float32]:
    """Cosine similarity, -1 to 1, of every patch to the one at `patch`, (*S')."""
    lengths = np.linalg.norm(values, axis=0)
    unit = values / np.maximum(lengths, 1e-9)
    chosen = unit[(slice(None), *patch)]
    similarity: NDArray[np.float32] = np.tensordot(chosen, unit, axes=1).astype(np.float32)
    return similarity


def groups(values: NDArray[np.float32], count: int, seed: int = 0) -> NDArray[np.uint8]:
    """k-means groups 1..count of features (D, *S'), (*S'); the largest group is 1."""
    flat = values.reshape(len(values), -1).T
    rng = np.random.default_rng(seed)
    count = min(count, len(flat))
    centres = _spread_centres(flat, count, rng)
    nearest = np.zeros(len(flat), int)
    for _ in range(ITERATIONS):
        nearest = _distances(flat, centres).argmin(axis=1)
        for number in range(count):
            members = flat[nearest == number]
            if len(members):
                centres[number] = members.mean(axis=0)
    order = np.argsort(-np.bincount(nearest, minlength=count))
    rank = np.empty(count, np.uint8)
    rank[order] = np.arange(1, count + 1)
    return rank[nearest].reshape(values.shape[1:])


def _spread_centres(
    flat: NDArray[np.float32], count: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Starting points far from each other (k-means++, Arthur and Vassilvitskii 2007)."""
    centres = [flat[rng.integers(len(flat))]]
    while len(centres) < count:
        distance = np.clip(_distances(flat, np.stack(centres)).min(axis=1), 0, None)
        total = float(distance.sum())
        chances = distance / total if total > 0 else None
        centres.append(flat[rng.choice(len(flat), p=chances)])
    return np.stack(centres)


def _distances(flat: NDArray[np.float32], centres: NDArray[np.float32]) -> FloatArray:
    """Squared distance of each point to each centre."""
    points, others = flat.astype(np.float64), centres.astype(np.float64)
    squares = (points**2).sum(axis=1)[:, None] + (others**2).sum(axis=1)[None]
    distances: FloatArray = squares - 2 * points @ others.T
    return distances

