"""Label files as they were downloaded, served as label images: masks, numbers or colours.

Axis letters: C channels, S spatial extent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit import api
from napari_muvit.data.label_reader import label_ratio
from napari_muvit.data.labels import ClassTable, LabelClass, find_values, make_classes
from napari_muvit.data.pyramid import Pyramid
from napari_muvit.data.stored_chunks import scan_blocks
from napari_muvit.errors import InputError

MOST_COLOURS = 64
"""A picture with more has smooth edges or was saved as JPEG: its colours mean nothing."""

SCAN_PIXELS = 1 << 28
MASK = ClassTable((LabelClass(0, "background", "#808080"), LabelClass(1, "glomerulus", "#e41a1c")),
                  background=0)

Rule = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True, eq=False)
class PixelView:
    """One array of a pyramid with a rule applied to what is read: (C, *S) to ``shape[-2:]``."""

    source: Pyramid
    rule: Rule
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    name: str

    @property
    def chunks(self) -> tuple[int, ...] | None:
        return self.source.chunks[0]

    def __getitem__(self, index: tuple[slice, ...]) -> NDArray[Any]:
        places = index[-2:]
        pixels = self.source.read(
            0, [place.start for place in places], [p.stop - p.start for p in places])
        return self.rule(pixels)


def with_pixel_size(image: Pyramid, size: float | None) -> Pyramid:
    """The image with a pixel size in um, where its file says none."""
    if size is None or image.pixel_size is not None:
        return image
    view = PixelView(image, lambda pixels: pixels, image.shape, image.dtype,
                     f"{image.fingerprint} {size}")
    return api.pyramid_from_arrays(
        [view], axes="cyx", pixel_size=(size, size), channel_names=image.channel_names,
        name=image.name)


def open_mask(path: Path, image: Pyramid) -> Pyramid:
    """A mask of 0 and anything else (1, or 255) as labels 0 and 1."""
    return _labels(path, image, "mask", lambda pixels: (pixels != 0).any(0).astype(np.uint8),
                   np.dtype(np.uint8))


def open_regions(path: Path, image: Pyramid, classes: ClassTable) -> Pyramid:
    """A picture of regions as labels: its numbers, or the values of its colours in `classes`."""
    pixels = api.open_pyramid(path)
    if pixels.shape[0] < 3:
        return _labels(path, image, "numbers", lambda pixels: pixels[0], pixels.dtype)
    return _labels(path, image, str(classes.to_dict()), partial(colour_values, classes),
                   classes.dtype)


def _labels(
    path: Path, image: Pyramid, kind: str, rule: Rule, dtype: np.dtype[Any]
) -> Pyramid:
    """Labels on their image; a file that does not say its pixel size covers the whole image."""
    source = api.open_pyramid(path).uncached()
    shape, own, around = source.spatial_shape, source.pixel_size, image.pixel_size
    sizes: tuple[float, ...] | None = None
    if around is not None:
        sizes = around[0]
        if shape != image.spatial_shape:
            covering = [size * whole / part for size, whole, part in zip(
                sizes, image.spatial_shape, shape, strict=True)]
            sizes = tuple(covering) if own is None else own[0]
    view = PixelView(source, rule, shape, dtype, f"{source.fingerprint} {kind}")
    labels = api.pyramid_from_arrays(
        [view], axes="yx", pixel_size=sizes, name=path.name, is_labels=True)
    label_ratio(labels, image)  # refuses labels of another place
    return labels


def find_classes(pictures: Sequence[Path]) -> ClassTable:
    """The classes of all pictures of regions together: their numbers, or one for each colour.

    0 (of colours black, or else white) is background. Colours are numbered in the order of
    their red, green and blue.

    Raises
    ------
    InputError
        If some are numbers and others colours, or colours are not those of regions.
    """
    numbers, colours = set[int](), set[int]()
    for path in pictures:
        picture = api.open_pyramid(path)
        if picture.shape[0] < 3:
            numbers.update(find_values(picture.as_labels()))
        else:
            colours.update(find_colours(picture))
    if numbers and colours:
        raise InputError("some pictures of regions hold numbers and others colours; they must "
                         "be of one kind. Save all of them alike.")
    if numbers:
        names = {value: f"region {value}" for value in numbers if value}
        background = 0 if 0 in numbers else None
        return ClassTable(make_classes(sorted(numbers), background, names), None, background)
    empty = next((code for code in (0, 0xFFFFFF) if code in colours), None)
    rest = enumerate(sorted(colours - {empty}), start=1)
    rows = [LabelClass(value, f"region {value}", f"#{code:06x}") for value, code in rest]
    if empty is not None:
        rows.insert(0, LabelClass(0, "background", f"#{empty:06x}"))
    return ClassTable(tuple(rows), None, None if empty is None else 0)


def find_colours(picture: Pyramid) -> set[int]:
    """Colours of an RGB picture as 0xrrggbb."""
    index, blocks = scan_blocks(picture, SCAN_PIXELS)
    found = set[int]()
    for start, size in blocks:
        found.update(np.unique(_codes(picture.uncached().read(index, start, size))).tolist())
        if len(found) > MOST_COLOURS:
            raise InputError(
                f"{picture.name!r} has more than {MOST_COLOURS} colours; a picture of regions has "
                "one for each. Save it without smoothing and without JPEG."
            )
    return found


def colour_values(classes: ClassTable, pixels: NDArray[Any]) -> NDArray[Any]:
    """Label values (*S) of RGB pixels (C, *S); colours of no class are background."""
    codes = [int(item.color[1:], 16) for item in classes.classes]
    order = np.argsort(codes)
    known, values = np.asarray(codes)[order], np.asarray(classes.values)[order]
    wanted = _codes(pixels)
    place = np.clip(np.searchsorted(known, wanted), 0, len(known) - 1)
    empty = 0 if classes.background is None else classes.background
    return np.where(known[place] == wanted, values[place], empty).astype(classes.dtype)


def _codes(pixels: NDArray[Any]) -> NDArray[np.int64]:
    if pixels.dtype != np.uint8:
        raise InputError(f"a coloured picture holds {pixels.dtype}; it must have 8 bits for each "
                         "colour. Save it as RGB of 8 bits.")
    red, green, blue = pixels[:3].astype(np.int64)
    codes: NDArray[np.int64] = (red << 16) | (green << 8) | blue
    return codes
