"""Stage 2 of 7: nested crops vary. One shared draw moves image, boxes, labels and validity.

Flips and quarter turns act on the whole nested crop about the centre of its coarsest box, so
that every level's pixels still lie where its box says (MuViT, A.2). Box shift and scale are
noise on the boxes alone. Stain jitter follows the HED scheme of Tellez et al. (2018), in
optical density, so that factors of one leave the image as it was.

Axis letters: L levels, C channels, S spatial extent, A spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.config import CropOptions
from napari_muvit.geometry import FloatArray

HED_FROM_RGB = np.array(
    [[1.87798274, -1.00767869, -0.55611582],
     [-0.06590806, 1.13473037, -0.1355218],
     [-0.60190736, -0.48041419, 1.57358807]]
)
"""Inverse of Ruifrok and Johnston's stain matrix (2001), rows R, G, B, columns H, E, DAB."""


@dataclass(frozen=True)
class Draw:
    """One draw of every augmentation, to be applied to all parts of one sample.

    Attributes
    ----------
    flips
        Axes that are mirrored, counted from the first spatial axis.
    turns
        Quarter turns in the plane of the last two axes, from y towards x.
    gain, bias
        (C,) factor and offset on normalised intensities.
    stain
        (3,) factor of each HED stain.
    shift
        (L, A) shift of each box, px of the level.
    stretch
        (L, 1) factor on each box's size.
    """

    flips: tuple[int, ...]
    turns: int
    gain: FloatArray
    bias: FloatArray
    stain: FloatArray
    shift: FloatArray
    stretch: FloatArray


def draw_augmentation(
    options: CropOptions, rng: np.random.Generator, num_levels: int, num_channels: int,
    num_axes: int, can_turn: bool = True,
) -> Draw:
    """One draw. Every number is always drawn, so that one option never changes the others.

    Parameters
    ----------
    can_turn
        Whether y and x have the same number of pixels and scale; else only half turns.
    """
    plane = (num_axes - 2, num_axes - 1)
    mirrored = rng.random(2) < 0.5
    turns = int(rng.integers(4)) * (1 if can_turn else 2) % 4
    intensity = rng.uniform(-1, 1, (2, num_channels)) * options.intensity_jitter
    stain = rng.uniform(-1, 1, 3) * options.stain_jitter
    shift = rng.standard_normal((num_levels, num_axes)) * options.box_shift
    stretch = rng.standard_normal((num_levels, 1)) * options.box_scale
    return Draw(
        flips=tuple(axis for axis, hit in zip(plane, mirrored, strict=True)
                    if hit and options.flip),
        turns=turns if options.rotate else 0,
        gain=1 + intensity[0], bias=intensity[1], stain=1 + stain, shift=shift,
        stretch=np.clip(1 + stretch, 0.25, 4),
    )


def move_pixels(draw: Draw, array: NDArray[Any], num_axes: int) -> NDArray[Any]:
    """Flip and turn an array whose last `num_axes` axes are spatial; contiguous copy."""
    first = array.ndim - num_axes
    moved = np.flip(array, tuple(first + axis for axis in draw.flips)) if draw.flips else array
    if draw.turns:
        moved = np.rot90(moved, draw.turns, axes=(array.ndim - 2, array.ndim - 1))
    return np.ascontiguousarray(moved)


def move_boxes(draw: Draw, bbox: FloatArray) -> FloatArray:
    """Boxes (L, 2, A) of the pixels that `move_pixels` gives, world px."""
    middle = (bbox[-1, 0] + bbox[-1, 1]) / 2
    offset = bbox - middle
    for axis in draw.flips:
        offset[..., axis] = -offset[..., axis]
    for _ in range(draw.turns):
        y, x = offset[..., -2].copy(), offset[..., -1].copy()
        offset[..., -2], offset[..., -1] = -x, y
    moved: FloatArray = np.sort(offset, axis=1) + middle
    return moved


def jitter_boxes(draw: Draw, bbox: FloatArray, pixel: FloatArray) -> FloatArray:
    """Shift and stretch each box; `pixel` (L, A) is the side of a level's pixel, world px."""
    centre = bbox.mean(axis=1, keepdims=True)
    shifted = centre + (draw.shift * pixel)[:, None, :]
    jittered: FloatArray = shifted + (bbox - centre) * draw.stretch[:, :, None]
    return jittered


def jitter_intensity(draw: Draw, image: NDArray[np.float32], num_axes: int) -> NDArray[np.float32]:
    """Scale and shift normalised intensities (L, C, *S), each channel alike at every level."""
    shape = (-1, *(1,) * num_axes)
    gain, bias = (v.astype(np.float32).reshape(shape) for v in (draw.gain, draw.bias))
    jittered: NDArray[np.float32] = image * gain + bias
    return jittered


def jitter_stain(draw: Draw, image: NDArray[Any]) -> NDArray[Any]:
    """Change the strength of each stain of RGB crops (L, 3, *S), same dtype.

    White is the highest value of an integer dtype, and 1 for floats.
    """
    if np.allclose(draw.stain, 1):
        return image
    is_whole = image.dtype.kind in "ui"
    top = float(np.iinfo(image.dtype).max) if is_whole else 1.0
    mixing = HED_FROM_RGB @ np.diag(draw.stain) @ np.linalg.inv(HED_FROM_RGB)
    density = -np.log(np.clip(image.astype(np.float32) / top, 1e-6, None))
    changed = np.einsum("lc...,cd->ld...", density, mixing.astype(np.float32))
    rgb = np.clip(np.exp(-changed), 0, 1) * top
    jittered: NDArray[Any] = (np.rint(rgb) if is_whole else rgb).astype(image.dtype)
    return jittered


def can_turn(size: Sequence[int], scales: FloatArray) -> bool:
    """Whether quarter turns keep the sample's shape and grid: square pixels, square crops."""
    same_scale = bool(np.allclose(scales[:, -1], scales[:, -2]))
    return len(size) >= 2 and size[-1] == size[-2] and same_scale
