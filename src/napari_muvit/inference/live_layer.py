"""Stage 7 of 7, live: what a viewer gets of a live prediction."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.data.live_cache import CacheLayout, LiveCache
from napari_muvit.geometry import FloatArray
from napari_muvit.inference.job import Job
from napari_muvit.inference.planes import Planes
from napari_muvit.inference.tiles import Index, Region


@dataclass(frozen=True)
class LiveUpdate:
    """Tiles that are new in the cache.

    Attributes
    ----------
    plane
        Place along the axes in front.
    regions
        Output pixels of each tile's cell; its neighbours' rims may have changed, too.
    pending
        Visible tiles that are still to come.
    """

    plane: Index
    regions: tuple[Region, ...]
    pending: int


@dataclass(frozen=True)
class UncertainPlace:
    """A tile that is worth annotating: its box (2, A) in world px, entropy 0 to 1, plane."""

    box: FloatArray
    entropy: float
    plane: Index


class LiveArray:
    """One level of a live prediction: reads what is there, never computes.

    Has what viewers ask of an array: shape, dtype, ndim, chunks, and slicing.
    """

    def __init__(self, cache: LiveCache, level: int, *, is_confidence: bool = False) -> None:
        self._level = level
        self._read = cache.read_confidence if is_confidence else cache.read
        self.shape = cache.level_shape(level)
        self.chunks = cache.level_chunks(level)
        self.dtype = np.dtype(np.uint8 if is_confidence else cache.layout.dtype)
        self.ndim = len(self.shape)
        self.size = int(np.prod(self.shape))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> NDArray[Any]:
        return self._read(self._level, index)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[...], dtype)


def make_cache_layout(planes: Planes, job: Job) -> CacheLayout:
    """The cache of an image: its planes in front, one chunk for each tile."""
    plan, table = job.plan, job.spec.class_table
    mark = hashlib.sha256(repr([
        [pyramid.fingerprint for pyramid in planes.pyramids], plan, table.to_dict(),
        np.packbits(job.cells).tobytes(), "confidence",
    ]).encode()).hexdigest()
    return CacheLayout(
        shape=(*planes.shape, *plan.shape), cell=plan.step,
        axes=planes.axes + "zyx"[-plan.ndim:], dtype=table.dtype.name,
        fill=int(table.to_values(np.array(-1))), image=mark,
    )
