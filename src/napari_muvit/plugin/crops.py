"""What the Crops widget shows, without Qt: boxes, table, thumbnails and code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.errors import InputError
from napari_muvit.geometry import (
    FloatArray,
    crop_extents,
    parse_levels,
    parse_size,
    place_boxes,
)
from napari_muvit.plugin.layers import ChannelDisplay
from napari_muvit.plugin.preferences import preference
from napari_muvit.plugin.remembered import recall_own

LEVEL_COLORS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#0072b2")
"""One colour per position in `levels`: the Okabe-Ito set, told apart with any colour vision."""


@dataclass(frozen=True)
class CropChoice:
    """Which nested crop: levels, crop size and the centre of the finest, world px.

    The size is one number for an image, or one for each axis (z, y, x) of a volume.
    """

    levels: tuple[float, ...] = (1, 4, 16)
    size: int | tuple[int, ...] = 256
    center: tuple[float, ...] = (0.0, 0.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", parse_levels(self.levels))
        parse_size(self.size, len(self.center))

    def moved(self, center: Sequence[float]) -> CropChoice:
        return replace(self, center=tuple(float(value) for value in center))

    def boxes(self) -> FloatArray:
        """Outer edges of each level's crop before snapping, (L, 2, A), world px."""
        extents = crop_extents(self.levels, self.size, len(self.center))
        return place_boxes(extents, center=self.center)

    def code(
        self, source: str | None, plane: Mapping[str, int] | None = None,
        channels: Sequence[str] = (), layers: Sequence[str] = (),
    ) -> str:
        """Python that reads the same crop.

        Parameters
        ----------
        source
            Path of the image; None where it is only in memory, to be read from its `layers`.
        plane
            Index along the axes before the crop's.
        """
        chosen = f", channels={list(channels)}" if channels else ""
        chosen += "".join(f", {axis}={index}" for axis, index in (plane or {}).items())
        opened = f"muvit.open_pyramid({source!r}{chosen})"
        if not source:
            read = [f"viewer.layers[{name!r}]" for name in layers]
            image = read[0] if len(read) == 1 else f"[{', '.join(read)}]"
            opened = f"muvit.open_pyramid({image}{chosen})  # in napari's console"
        center = ", ".join(f"{value:.1f}" for value in self.center)
        return (
            f"import napari_muvit as muvit\n\npyramid = {opened}\n"
            f"crop = pyramid.crop(center=({center}), levels={self.levels}, size={self.size})\n"
            "crop.image, crop.bbox, crop.valid\n"
        )


def parse_levels_text(text: str) -> tuple[int | float, ...]:
    """Levels from what a person types, ``"1, 4, 16"``.

    Raises
    ------
    InputError
        If a part is no number, or the numbers are no ascending levels.
    """
    parts = [part for part in text.replace(",", " ").replace(";", " ").split() if part]
    try:
        values = [float(part) for part in parts]
    except ValueError:
        raise InputError(
            f"levels are {text!r}; they must be numbers. Type for example 1, 4, 16."
        ) from None
    return parse_levels(values)


def levels_text(levels: Sequence[float]) -> str:
    return ", ".join(f"{level:g}" for level in levels)


def box_corners(boxes: FloatArray) -> list[FloatArray]:
    """Corners of each box, L arrays of (4, A), world px, clockwise from the lower.

    Those of a volume lie in the middle plane.
    """
    corners = []
    middle = boxes[0, :, :-2].mean(axis=0)
    for (y0, x0), (y1, x1) in boxes[:, :, -2:]:
        flat = np.array([[y0, x0], [y0, x1], [y1, x1], [y1, x0]])
        corners.append(np.hstack([np.tile(np.round(middle), (4, 1)), flat]))
    return corners


def box_rows(
    levels: Sequence[float], boxes: FloatArray, pixel_size: Sequence[float] | None
) -> list[tuple[str, ...]]:
    """One row of text per level: level, first pixel, side in px, side in um.

    Parameters
    ----------
    boxes
        (L, 2, A) world px.
    pixel_size
        um of a full-resolution pixel for each axis, None where unknown.
    """
    rows: list[tuple[str, ...]] = []
    for level, (lower, upper) in zip(levels, boxes, strict=True):
        place = ", ".join(f"{low + 0.5:.0f}" for low in lower)
        sides = upper - lower
        width = _sides(sides)
        micrometres = "unknown" if pixel_size is None else _sides(sides * np.asarray(pixel_size))
        rows.append((f"{level:g}", place, width, micrometres))
    return rows


def _sides(sides: FloatArray) -> str:
    """Sides as text; one number for a square."""
    texts = [_short(side) for side in sides]
    return texts[0] if len(set(texts)) == 1 else " × ".join(texts)


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def outside_share(boxes: FloatArray, image: FloatArray) -> FloatArray:
    """Share of each box that lies outside the image box (2, A), (L,), 0 to 1."""
    lower = np.maximum(boxes[:, 0], image[0])
    upper = np.minimum(boxes[:, 1], image[1])
    inside = np.prod(np.clip(upper - lower, 0, None), axis=1)
    share: FloatArray = 1 - inside / np.prod(boxes[:, 1] - boxes[:, 0], axis=1)
    return share


def render_crop(
    image: NDArray[Any], valid: NDArray[np.bool_], display: Sequence[ChannelDisplay]
) -> NDArray[np.uint8]:
    """A picture, (H, W, 3) uint8, of one level's crop as the viewer shows it.

    Parameters
    ----------
    image
        (C, H, W) or (C, D, H, W) pixels; of a volume the middle plane is shown, and below it
        the middle section along z.
    valid
        (H, W) or (D, H, W) bool; padding is hatched.
    display
        One entry per channel; none for RGB, whose values are shown as they are.
    """
    if image.ndim == 4:
        depth, height = image.shape[1:3]
        plane = render_crop(image[:, depth // 2], valid[depth // 2], display)
        if depth == 1:
            return plane
        section = render_crop(image[:, :, height // 2], valid[:, height // 2], display)
        # Each plane of the section as thick as a thumbnail can show.
        thick = np.repeat(section, max(1, height // (4 * depth)), axis=0)
        line = np.full((max(1, height // 64), plane.shape[1], 3), 255, np.uint8)
        return np.concatenate([plane, line, thick])
    picture = _colored(image, display)
    pixels: NDArray[np.uint8] = (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)
    rows, columns = np.indices(valid.shape)
    hatch = np.where((rows + columns) // 6 % 2, 60, 40).astype(np.uint8)
    return np.where(valid[..., None], pixels, hatch[..., None])


def _colored(image: NDArray[Any], display: Sequence[ChannelDisplay]) -> FloatArray:
    """Channels (C, H, W) in their colours, (H, W, 3), 0 to 1 and beyond."""
    if not display:
        values: FloatArray = np.moveaxis(image[:3].astype(np.float64), 0, -1)
        is_integer = np.issubdtype(image.dtype, np.integer)
        return values / (np.iinfo(image.dtype).max if is_integer else 1.0)
    picture = np.zeros((*image.shape[1:], 3))
    for channel, shown in zip(image, display, strict=True):
        low, high = shown.limits
        span = (high - low) or 1.0
        grey = np.clip((channel.astype(np.float64) - low) / span, 0, 1)
        picture += grey[..., None] * np.asarray(shown.color)
    return picture


def first_crops(backend: Any, pyramid: Any, key: str | None) -> tuple[int, tuple[float, ...]]:
    """Crop size and levels that an image begins with.

    As they were last chosen for it in Crops, else the levels of the preferences, else what
    suits it.

    Parameters
    ----------
    key
        What choices for the image are remembered under.
    """
    side = recall_own(key, "crop_size")
    known = recall_own(key, "levels") or preference("levels", "")
    size = int(side) if side else backend.suggest_crops(pyramid)[0]
    levels = parse_levels_text(str(known)) if known else backend.suggest_levels(pyramid, size)
    return size, levels


MOST_READ = 4096
"""Longest side, in pixels, of what is read for one crop without a hint that it is slow."""


def averaging_text(levels: Sequence[float], size: int, stored: float) -> str:
    """A hint where levels have to be averaged from many pixels, else nothing."""
    if max(levels) * size / stored <= MOST_READ:
        return ""
    return (
        f"This image has no smaller copies of itself beyond level {stored:g}, so level "
        f"{max(levels):g} is averaged from many pixels, which is slow. Convert it to OME-Zarr "
        "(napari-muvit convert) to make it fast."
    )
