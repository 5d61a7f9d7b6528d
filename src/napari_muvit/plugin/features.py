"""What the encoder makes of a place, without Qt: colours, groups, likeness.

Axis letters: D width, S' patches along y and x.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_muvit.errors import InputError
from napari_muvit.geometry import FloatArray
from napari_muvit.plugin.layers import ResolvedImage
from napari_muvit.plugin.predict import Region, plan_region, unit_in

ITERATIONS = 20
FITTED = 4096
"""Patches that colours and groups are fitted to, at most."""
MOST_PATCHES = 16_384
"""Patches of one level in view that are computed; wider views wait until one zooms in."""
KEPT_BYTES = 512 * 2**20
WHO = "computing features"
"""As what features are told of where devices are shared out."""

MODES = COLOURS, GROUPS = "Colours", "Groups"


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """Features of one level in one region.

    Attributes
    ----------
    values
        (D, *S') float32.
    region
        Where they lie; its factor is the world px of one patch.
    is_whole
        Whether all of the region is there yet.
    """

    level: float
    values: NDArray[np.float32]
    region: Region
    is_whole: bool = True

    def patch_at(self, place: ArrayLike) -> tuple[int, int] | None:
        """Row and column of the patch at a world px place, None outside of the map."""
        index = (np.asarray(place) - self.region.offset()) / self.region.factor
        row, column = np.round(index).astype(int).tolist()
        height, width = self.values.shape[1:]
        return (row, column) if 0 <= row < height and 0 <= column < width else None


@dataclass(frozen=True)
class TooWide:
    """A level of which the view shows too many patches to compute."""

    level: float


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
    device: Callable[[], str],
) -> list[AttendedLevel]:
    """Where the patch at a world px place looked, coarsest level first (runs in a thread)."""
    view = backend.attention_view(
        image.pyramid, model.module, place, layer=layer, device=device())
    found = []
    for level, share, weights, box in zip(
        view.levels, view.shares(), view.weights, view.boxes, strict=True
    ):
        factor = (box[1] - box[0]) / np.asarray(weights.shape)
        found.append(AttendedLevel(level, share, weights, factor, box[0] + factor / 2))
    return found[::-1]


class FeatureCache:
    """Features of one image by one model, computed block by block as they are looked at.

    Blocks that were looked at are kept, the newest `KEPT_BYTES` of them. Used by one thread.

    Parameters
    ----------
    device
        Says where the next block is computed.
    """

    def __init__(
        self, backend: Any, image: ResolvedImage, model: LoadedEncoder,
        device: Callable[[], str],
    ) -> None:
        self.image, self.model = image, model
        self._backend, self._device = backend, device
        self._arrays: dict[tuple[float, str], Any] = {}
        self._blocks: dict[tuple[float, int, int], NDArray[np.float32]] = {}

    def maps(self, box: FloatArray) -> Iterator[FeatureMap | TooWide]:
        """Features of every level inside a world px box, the coarsest first (in a thread)."""
        unit = unit_in(self.model.pixel_size, self.image.pyramid)
        for level in reversed(self.model.levels):
            lazy = self._array(level)
            region = plan_region(box, lazy.shape[1:], level * unit * self.model.patch)
            if int(np.prod(region.shape)) > MOST_PATCHES:
                yield TooWide(level)
                continue
            values = np.empty((lazy.shape[0], *region.shape), np.float32)
            for index, target, inside in _blocks_in(region, lazy.chunks[1:]):
                values[(slice(None), *target)] = self._block(level, index)[(slice(None), *inside)]
                yield FeatureMap(level, values, region, is_whole=False)
            yield FeatureMap(level, values, region)

    def _array(self, level: float) -> Any:
        device = self._device()
        if (level, device) not in self._arrays:
            self._arrays[level, device] = self._backend.features(
                self.image.pyramid, self.model.module, level=level, device=device)
        return self._arrays[level, device]

    def _block(self, level: float, index: tuple[int, int]) -> NDArray[np.float32]:
        key = (level, *index)
        found = self._blocks.pop(key, None)
        if found is None:
            block = self._array(level).blocks[(0, *index)]
            found = np.asarray(block.compute(scheduler="synchronous"), np.float32)
        self._blocks[key] = found
        while sum(block.nbytes for block in self._blocks.values()) > KEPT_BYTES:
            del self._blocks[next(iter(self._blocks))]
        return found


def _blocks_in(
    region: Region, chunks: Sequence[Sequence[int]]
) -> Iterator[tuple[tuple[int, int], tuple[slice, ...], tuple[slice, ...]]]:
    """Number of each block that `region` touches, its place in the region, and the part of it."""
    edges = [np.concatenate([[0], np.cumsum(sizes)]) for sizes in chunks]
    for part in region.blocks(chunks):
        index = [int(np.searchsorted(edge, one.start, side="right")) - 1
                 for edge, one in zip(edges, part, strict=True)]
        lows = [int(edge[i]) for edge, i in zip(edges, index, strict=True)]
        inside = tuple(slice(one.start - low, one.stop - low)
                       for one, low in zip(part, lows, strict=True))
        yield (index[0], index[1]), region.local(part), inside


class Painter:
    """Pictures of features whose colours and groups keep their meaning while the view moves.

    They are fitted to the first map of a level, and again after `forget`.
    """

    def __init__(self) -> None:
        self._fits: dict[tuple[str, float, int], Any] = {}

    def forget(self) -> None:
        """Fit anew from the next map on."""
        self._fits.clear()

    def paint(self, maps: Sequence[FeatureMap], mode: str, count: int) -> list[Painting]:
        """A picture of each map (in a thread)."""
        return [Painting(found, mode, self._picture(found, mode, count)) for found in maps]

    def _picture(self, found: FeatureMap, mode: str, count: int) -> NDArray[np.uint8]:
        key = (mode, found.level, count if mode == GROUPS else 0)
        if key not in self._fits:
            fit = fit_groups(found.values, count) if mode == GROUPS else fit_colours(found.values)
            self._fits[key] = fit
        picture: NDArray[np.uint8] = self._fits[key].apply(found.values)
        return picture


@dataclass(frozen=True, eq=False)
class Painting:
    """The picture of a map: (*S', 3) colours, or (*S') groups."""

    found: FeatureMap
    mode: str
    picture: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Colours:
    """The three strongest directions of features: `mean` (D,), `axes` (3, D), range of each."""

    mean: FloatArray
    axes: FloatArray
    low: FloatArray
    high: FloatArray

    def apply(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Features (D, *S') as RGB, (*S', 3)."""
        parts = (values.reshape(len(values), -1).T - self.mean) @ self.axes.T
        scaled = np.clip((parts - self.low) / np.maximum(self.high - self.low, 1e-9), 0, 1)
        colours: NDArray[np.uint8] = (scaled * 255).round().astype(np.uint8)
        return colours.reshape(*values.shape[1:], 3)


def fit_colours(values: NDArray[np.float32]) -> Colours:
    """The colours of features (D, *S')."""
    flat = _sample(values)
    mean = flat.mean(axis=0)
    _, _, directions = np.linalg.svd(flat - mean, full_matrices=False)
    axes = np.zeros((3, len(values)))
    axes[: len(directions[:3])] = directions[:3]
    low, high = np.percentile((flat - mean) @ axes.T, [2, 98], axis=0)
    return Colours(mean, axes, low, high)


def likeness(values: NDArray[np.float32], chosen: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine similarity, -1 to 1, of every patch of (D, *S') to the features (D,), (*S')."""
    lengths = np.linalg.norm(values, axis=0) * np.linalg.norm(chosen)
    similarity: NDArray[np.float32] = (
        np.tensordot(chosen, values, axes=1) / np.maximum(lengths, 1e-9)).astype(np.float32)
    return similarity


@dataclass(frozen=True, eq=False)
class Groups:
    """Centres (k, D) of k-means groups."""

    centres: NDArray[np.float32]

    def apply(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The group 1..k of each patch of (D, *S'), (*S')."""
        flat = values.reshape(len(values), -1).T
        nearest = _distances(flat, self.centres).argmin(axis=1) + 1
        groups: NDArray[np.uint8] = nearest.astype(np.uint8).reshape(values.shape[1:])
        return groups


def fit_groups(values: NDArray[np.float32], count: int, seed: int = 0) -> Groups:
    """k-means groups of features (D, *S'); the first is the largest."""
    flat = _sample(values)
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
    return Groups(centres[order])


def _sample(values: NDArray[np.float32], seed: int = 0) -> NDArray[np.float32]:
    """Up to `FITTED` of the patches of (D, *S'), (n, D)."""
    flat = values.reshape(len(values), -1).T
    if len(flat) <= FITTED:
        return flat
    return flat[np.random.default_rng(seed).choice(len(flat), FITTED, replace=False)]


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

