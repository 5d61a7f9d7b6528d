"""Stage 6 of 7: tiles are read, each coarse crop once for all the tiles that share it.

Axis letters: B batch, L levels, C channels, S spatial extent, A spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from napari_muvit.inference.cache import ByteCache
from napari_muvit.inference.tiles import Tile, TilePlan

if TYPE_CHECKING:
    from napari_muvit.data.normalize import Normalization
    from napari_muvit.data.pyramid import Pyramid

FloatImage = NDArray[np.float32]
Level = tuple[FloatImage, NDArray[np.float64], NDArray[np.bool_]]

COARSE_BYTES = 96 * 2**20
"""Memory for coarse crops that neighbouring tiles share."""


@dataclass(frozen=True)
class TileBatch:
    """Model input of several tiles.

    Attributes
    ----------
    tiles
        B tiles.
    x
        (B, L, C, *S) float32, normalised, 0 on padding.
    bbox
        (B, L, 2, A) float64, in full-resolution pixels of the training images.
    valid
        (B, L, *S), False on padding.
    image
        Fingerprint of the image that they were read from.
    """

    tiles: tuple[Tile, ...]
    x: FloatImage
    bbox: NDArray[np.float64]
    valid: NDArray[np.bool_]
    image: str = ""

    def padded(self, size: int) -> TileBatch:
        """The batch with its last tile repeated up to `size` tiles.

        A model then always sees the same shapes, and with them the same kernels.
        """
        missing = size - len(self.tiles)
        if missing <= 0:
            return self
        order = [*range(len(self.tiles)), *[len(self.tiles) - 1] * missing]
        tiles = tuple(self.tiles[i] for i in order)
        return TileBatch(
            tiles, self.x[order], self.bbox[order], self.valid[order], self.image
        )


class ReadJob(Protocol):
    """What reading needs of a job; see `Job`."""

    @property
    def pyramid(self) -> Pyramid: ...
    @property
    def plan(self) -> TilePlan: ...
    @property
    def normalization(self) -> Normalization: ...
    @property
    def to_model(self) -> tuple[float, ...]: ...
    @property
    def scaled_axes(self) -> tuple[int, ...]: ...
    @property
    def plan_mark(self) -> str: ...


class TileReader:
    """Reads the nested crops of tiles as a model wants them."""

    def __init__(self, job: ReadJob) -> None:
        self.job = job
        self._image = job.pyramid.fingerprint + job.plan_mark
        self._coarse: ByteCache[Level] = ByteCache(COARSE_BYTES)

    def read(self, tiles: Sequence[Tile]) -> TileBatch:
        """Model input of `tiles`; raises what the image's store raises."""
        crops = [self._read_tile(tile) for tile in tiles]
        images, boxes, masks = zip(*crops, strict=True)
        boxes_model = np.stack(boxes) * np.asarray(self.job.to_model)
        return TileBatch(
            tuple(tiles), np.stack(images), boxes_model, np.stack(masks), self._image
        )

    def _read_tile(self, tile: Tile) -> Level:
        levels = [self._read_level(0, tile.corners[0])]
        for number, corner in enumerate(tile.corners[1:], start=1):
            key = (number, tile.context[number - 1])
            level = self._coarse.get(key)
            if level is None:
                level = self._read_level(number, corner)
                self._coarse.put(key, level, level[0].nbytes + level[2].nbytes)
            levels.append(level)
        images, boxes, masks = zip(*levels, strict=True)
        return np.stack(images), np.stack(boxes), np.stack(masks)

    def _read_level(self, number: int, corner: NDArray[np.float64]) -> Level:
        """One level's crop: (C, *S) normalised, box (2, A) world px, valid (*S)."""
        job = self.job
        crop: Any = job.pyramid.crop(
            corner=corner[None], levels=(job.plan.levels[number],), size=job.plan.size,
            scaled_axes=job.scaled_axes,
        )
        image, valid = job.normalization.apply_where(crop.image[0], crop.valid[0])
        return image, crop.bbox[0], valid
