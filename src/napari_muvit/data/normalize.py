"""Stage 2 of 7: raw intensities become the values a model sees.

A model keeps a rule, not numbers: each new image gets its own offset and scale, measured inside
its foreground, from sample blocks of the finest array (MuViT, A.2: percentiles 1 and 99.8).

Axis letters: C channels, S spatial extent, A spatial axes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from napari_muvit.data.places import PlaceMap
from napari_muvit.data.tissue import find_tissue
from napari_muvit.errors import ChannelError, InputError
from napari_muvit.geometry import FloatArray

if TYPE_CHECKING:
    from napari_muvit.config import SourceOptions
    from napari_muvit.data.pyramid import Pyramid

Kind = Literal["percentile", "constant", "none"]

WHOLE_PIXELS = 1 << 21
"""Images up to this many pixels per channel are measured whole."""

NUM_BLOCKS = 64
BLOCK_SIDE = 192

_measured: dict[tuple[str, NormalizationRule], Normalization] = {}


@dataclass(frozen=True)
class NormalizationRule:
    """How intensities are scaled: percentiles of each image, one constant, or not at all."""

    kind: Kind = "percentile"
    percentiles: tuple[float, float] = (1.0, 99.8)
    constant: float = 255.0

    def __post_init__(self) -> None:
        low, high = self.percentiles
        if self.kind not in get_args(Kind):
            raise InputError(
                f"normalization is {self.kind!r}; it must be one of {', '.join(get_args(Kind))}."
            )
        if not 0 <= low < high <= 100:
            raise InputError(
                f"percentiles are {self.percentiles}; they must ascend between 0 and 100. Pass "
                "for example (1, 99.8)."
            )

    @classmethod
    def from_config(cls, config: SourceOptions) -> NormalizationRule:
        """The rule that a config asks for."""
        return cls(config.normalization, config.percentiles, config.normalization_constant)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for YAML and JSON."""
        return {
            "kind": self.kind, "percentiles": list(self.percentiles), "constant": self.constant,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NormalizationRule:
        """The rule that `to_dict` wrote; missing keys take the defaults."""
        low, high = data.get("percentiles", (1.0, 99.8))
        return cls(data.get("kind", "percentile"), (float(low), float(high)),
                   float(data.get("constant", 255.0)))


@dataclass(frozen=True, eq=False)
class Normalization:
    """One image's own numbers: ``(image - offset) / scale`` for each channel.

    Attributes
    ----------
    offset, scale
        (C,) float64, in the image's intensity units.
    num_axes
        Number of spatial axes A, which stand behind the channel axis.
    """

    offset: FloatArray
    scale: FloatArray
    num_axes: int = 2

    def apply(self, image: NDArray[Any]) -> NDArray[np.float32]:
        """Normalised float32 copy of an image (..., C, *S).

        Raises
        ------
        ChannelError
            If the image has another number of channels.
        """
        num_channels = image.shape[-self.num_axes - 1]
        if num_channels != len(self.offset):
            raise ChannelError(
                f"the image has {num_channels} channels and was measured with "
                f"{len(self.offset)}; choose the same channels."
            )
        shape = (-1, *(1,) * self.num_axes)
        factor = (1 / self.scale).astype(np.float32).reshape(shape)
        if image.dtype.itemsize > 2:
            scaled: NDArray[np.float32] = (
                (image - self.offset.reshape(shape)).astype(np.float32) * factor
            )
            return scaled
        scaled = image.astype(np.float32)
        scaled -= self.offset.astype(np.float32).reshape(shape)
        scaled *= factor
        return scaled

    def apply_where(
        self, image: NDArray[Any], valid: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """What a model reads of an image: normalised values, 0 on padding, and what is none.

        Parameters
        ----------
        image, valid
            (..., C, *S), and (..., *S), False on padding.

        Returns
        -------
        values, valid
            Of the same shapes; pixels that are no numbers are padding, too.
        """
        values = self.apply(image)
        if image.dtype.kind == "f":
            valid = finite_pixels(values, valid, self.num_axes)
        if not valid.all():
            shown = np.expand_dims(valid, -self.num_axes - 1)
            values = np.where(shown, values, np.float32(0))
        return values, valid

    def undo(self, image: NDArray[Any]) -> NDArray[np.float32]:
        """Intensities of a normalised image (..., C, *S)."""
        shape = (-1, *(1,) * self.num_axes)
        raw = image * self.scale.reshape(shape) + self.offset.reshape(shape)
        return raw.astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for YAML and JSON."""
        return {
            "offset": self.offset.tolist(), "scale": self.scale.tolist(),
            "num_axes": self.num_axes,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Normalization:
        """The numbers that `to_dict` wrote."""
        return cls(np.asarray(data["offset"], dtype=np.float64),
                   np.asarray(data["scale"], dtype=np.float64), int(data.get("num_axes", 2)))


def finite_pixels(
    image: NDArray[Any], valid: NDArray[np.bool_], num_axes: int = 2
) -> NDArray[np.bool_]:
    """Pixels (..., *S) of `valid` where all channels of `image` (..., C, *S) are numbers."""
    found: NDArray[np.bool_] = valid & np.isfinite(image).all(axis=-num_axes - 1)
    return found


def measure(
    rule: NormalizationRule, pyramid: Pyramid, tissue: PlaceMap | None = None,
    num_blocks: int = NUM_BLOCKS,
) -> Normalization:
    """One image's offset and scale under a rule; the same at every call, and cached.

    Parameters
    ----------
    tissue
        Where the foreground is; by default it is looked for, as training does.
    num_blocks
        Blocks of a large image that are looked at.
    """
    num_channels = int(pyramid.shape[0])
    if rule.kind != "percentile":
        divisor = rule.constant if rule.kind == "constant" else 1.0
        return Normalization(np.zeros(num_channels), np.full(num_channels, divisor), pyramid.ndim)
    key = (str(pyramid.fingerprint), rule)
    if tissue is not None or key not in _measured:
        places = find_tissue(pyramid) if tissue is None else tissue
        values = sample_values(pyramid, places, num_blocks)
        low, high = np.percentile(values, rule.percentiles, axis=1)
        spread = high - low
        smallest = 1.0 if pyramid.dtype.kind in "iub" else 1e-12
        scale = np.where(spread > 0, np.maximum(spread, smallest), 1.0)
        found = Normalization(low.astype(np.float64), scale.astype(np.float64), pyramid.ndim)
        if tissue is not None:
            return found
        _measured[key] = found
    return _measured[key]


def sample_values(
    pyramid: Pyramid, places: PlaceMap, num_blocks: int = NUM_BLOCKS
) -> NDArray[Any]:
    """Pixels of the finest array inside `places`, (C, n); non-finite pixels are left out.

    Small images give all of them, large ones those of `num_blocks` blocks at places that
    depend on nothing but the image's shape and its foreground.
    """
    shape = np.asarray(pyramid.spatial_shape)
    if math.prod(pyramid.spatial_shape) <= WHOLE_PIXELS or places.is_empty:
        corners = _raster(shape)
    else:
        corners = _scatter(shape, places, num_blocks)
    kept = [_block_values(pyramid, places, corner, size) for corner, size in corners]
    values = np.concatenate(kept, axis=1)
    if not values.shape[1]:
        kept = [_block_values(pyramid, None, corner, size) for corner, size in corners]
        values = np.concatenate(kept, axis=1)
    finite = np.isfinite(values).all(axis=0)
    return values[:, finite] if finite.any() else np.zeros((len(values), 1))


def _raster(shape: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Blocks that cover a small image, or the first of a large one."""
    rows = min(int(shape[-2]), max(1, WHOLE_PIXELS // int(shape[-1])))
    size = np.concatenate([np.ones(len(shape) - 2, dtype=np.int64), [rows, shape[-1]]])
    planes = list(np.ndindex(*shape[:-2]))[: max(1, WHOLE_PIXELS // int(size.prod()))]
    return [(np.asarray([*plane, 0, 0]), size) for plane in planes]


def _scatter(
    shape: NDArray[np.int64], places: PlaceMap, num_blocks: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Blocks around points drawn from `places`, always the same ones."""
    rng = np.random.default_rng(0)
    side = np.where(np.arange(len(shape)) < len(shape) - 2, 1, BLOCK_SIDE)
    size = np.minimum(side, shape)
    points = [places.draw(rng) for _ in range(num_blocks)]
    starts = [np.floor(point - size / 2 + 0.5).astype(np.int64) for point in points]
    return [(np.clip(start, 0, shape - size), size) for start in starts]


def _block_values(
    pyramid: Pyramid, places: PlaceMap | None, start: NDArray[np.int64], size: NDArray[np.int64]
) -> NDArray[Any]:
    """Pixels (C, n) of one block of the finest array that lie in `places`."""
    block = pyramid.read(0, tuple(int(v) for v in start), tuple(int(v) for v in size))
    if places is None:
        every: NDArray[Any] = block.reshape(len(block), -1)
        return every
    lines = [s + np.arange(n, dtype=np.float64) for s, n in zip(start, size, strict=True)]
    values: NDArray[Any] = block[:, places.holds_grid(lines)]
    return values
