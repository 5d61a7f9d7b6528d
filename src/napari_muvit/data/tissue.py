"""Where tissue is, found on a coarse view of the image, or read from a mask of any resolution.

Glass and dark field are flat, tissue is not: Otsu's threshold on a coarse view is believed only
where what lies below it is flat. An image without empty places is tissue throughout, so that
the threshold never separates nuclei from stroma.

Axis letters: C channels, A spatial axes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.data.annotation_place import image_stem, source_stem
from napari_muvit.data.places import PlaceMap, mark_cells
from napari_muvit.data.sources import images_in
from napari_muvit.data.sources.stores import METADATA_FILES
from napari_muvit.data.stored_chunks import array_blocks
from napari_muvit.errors import InputError
from napari_muvit.geometry import FloatArray

if TYPE_CHECKING:
    from napari_muvit.data.pyramid import Pyramid

VIEW_PIXELS = 1 << 20
"""Pixels per channel of the coarse view on which tissue is looked for."""

READ_PIXELS = 1 << 24
"""Pixels of the largest array that is read whole to make a coarse view, larger ones are probed;
and about the most cells of a given mask."""

PROBES = 48
"""Probes along the longest axis of an image that has no coarse array."""

PROBE_SIDE = 32


def tissue_places(
    option: str, pyramid: Pyramid, view_pixels: int | None = None
) -> PlaceMap:
    """Where crops may be drawn: found (``auto``), everywhere (``none``), or a mask's path.

    Parameters
    ----------
    view_pixels
        Pixels per channel of the view on which tissue is looked for; see `find_tissue`.

    Raises
    ------
    InputError
        If a given mask has another aspect ratio than the image, or marks nothing.
    """
    if option == "none":
        return PlaceMap.everywhere(pyramid.extent)
    if option == "auto":
        return find_tissue(pyramid, view_pixels)
    return read_tissue(option, pyramid)


def find_tissue(pyramid: Pyramid, view_pixels: int | None = None) -> PlaceMap:
    """Where tissue is, by Otsu's threshold on a coarse view; everywhere if nothing is empty.

    Parameters
    ----------
    view_pixels
        Pixels per channel of the view, `VIEW_PIXELS` by default: fewer are quicker, and show
        the outline more coarsely.
    """
    view, origin, cell = coarse_view(pyramid, view_pixels)
    bright = is_brightfield(view, pyramid.is_rgb, pyramid.dtype)
    view = view.max(axis=0)[None] if pyramid.is_rgb and not bright else view
    mask = find_foreground(view, bright)
    if mask is None:
        return PlaceMap.everywhere(pyramid.extent)
    return PlaceMap(mask, cell, np.asarray(pyramid.extent), origin)


def read_tissue(source: str, pyramid: Pyramid) -> PlaceMap:
    """Tissue where the mask image `source` is not 0.

    The mask covers the whole image at any resolution. A folder of masks is searched for the
    one that bears the name of the image's file, or else its title.

    Raises
    ------
    InputError
        If no mask or several bear the name, or the mask does not fit the image.
    """
    from napari_muvit.data.pyramid import open_pyramid

    mask = open_pyramid(_mask_path(source, pyramid))
    index = next(
        (i for i, shape in enumerate(mask.shapes) if math.prod(shape) <= READ_PIXELS),
        len(mask.shapes) - 1,
    )
    if not _covers(mask.spatial_shape, pyramid.spatial_shape):
        raise InputError(
            f"tissue mask {mask.name!r} has the shape {mask.spatial_shape}, image "
            f"{pyramid.name!r} {tuple(pyramid.spatial_shape)}; a mask covers the whole image, at "
            "any resolution. Give a mask of the same aspect ratio, or auto, or none."
        )
    found, step = _shrink_mask(mask, index)
    if not found.any():
        raise InputError(
            f"tissue mask {mask.name!r} is 0 everywhere, so there is no place to draw crops "
            "from. Tissue is where the mask is not 0."
        )
    box = np.asarray(pyramid.extent)
    cell = (box[1] - box[0]) / np.asarray(mask.shapes[index]) * np.asarray(step)
    return PlaceMap(found, cell, box, box[0])


def _shrink_mask(mask: Pyramid, index: int) -> tuple[NDArray[np.bool_], tuple[int, ...]]:
    """Where array `index` of a mask is not 0, in cells, and pixels of a cell along each axis.

    At most about `READ_PIXELS` cells: of a larger array a cell holds what any of its pixels
    holds, and it is read block by block.
    """
    shape = mask.shapes[index]
    step = _reduction(shape, READ_PIXELS)
    is_small = math.prod(shape) <= READ_PIXELS
    blocks = [((0,) * len(shape), shape)] if is_small else array_blocks(shape)
    found = np.zeros([-(-n // k) for n, k in zip(shape, step, strict=True)], dtype=bool)
    for start, size in blocks:
        held: NDArray[np.bool_] = np.any(mask.read(index, start, size), axis=0)
        mark_cells(found, held, start, step)
    return found, step


def _covers(mask: tuple[int, ...], image: tuple[int, ...]) -> bool:
    """Whether a mask of this shape can be the image's at another resolution."""
    if len(mask) != len(image):
        return False
    ratios = np.asarray(image) / np.asarray(mask)
    return bool(np.ptp(ratios) <= ratios.max() / min(mask) + 0.01 * ratios.max())


def _mask_path(source: str, pyramid: Pyramid) -> str:
    """`source`, or the file in the folder `source` that is named like the image."""
    folder = Path(source)
    is_store = any((folder / name).exists() for name in METADATA_FILES)
    if not folder.is_dir() or is_store:
        return source
    names = _mask_names(pyramid)
    masks = images_in(folder)
    fitting = ([path for path in masks if image_stem(path.name) == name] for name in names)
    found = next(filter(None, fitting), [])
    if not found:
        raise InputError(
            f"folder {source!r} has no tissue mask for image {pyramid.name!r}; masks in a folder "
            f"bear the images' names. Add {names[0]}.png, or give tissue as auto or none."
        )
    if len(found) > 1:
        raise InputError(
            f"folder {source!r} has {len(found)} tissue masks for image {pyramid.name!r}: "
            f"{', '.join(path.name for path in found)}. Keep one of them, or give its path."
        )
    return str(found[0])


def _mask_names(pyramid: Pyramid) -> list[str]:
    """What the mask of an image may be called, without ending, in the order of preference."""
    names = [] if pyramid.source is None else [
        source_stem(pyramid.source), PurePath(pyramid.source).name]
    return list(dict.fromkeys([*names, image_stem(pyramid.name), pyramid.name]))


def coarse_view(
    pyramid: Pyramid, view_pixels: int | None = None
) -> tuple[NDArray[np.float32], FloatArray, FloatArray]:
    """A small version of the whole image, float32 (C, *cells), and where it lies.

    Returns
    -------
    view, origin, cell
        `origin` (A,) is the lower outer edge and `cell` (A,) the side of a view's pixel,
        world px.
    """
    limit = VIEW_PIXELS if view_pixels is None else view_pixels
    index = next(
        (i for i, shape in enumerate(pyramid.shapes) if math.prod(shape) <= limit),
        len(pyramid.shapes) - 1,
    )
    shape = tuple(pyramid.shapes[index])
    if math.prod(shape) > READ_PIXELS:
        return _probe(pyramid)
    factor, offset = np.asarray(pyramid.factors[index]), np.asarray(pyramid.offsets[index])
    step = _reduction(shape, limit)
    view = np.concatenate([
        _block_mean(channel[None].astype(np.float32), step)
        for part in _channel_groups(pyramid, math.prod(shape))
        for channel in part.read(index, (0,) * len(shape), shape)
    ])
    return view, offset - factor / 2, factor * np.asarray(step)


def _channel_groups(pyramid: Pyramid, pixels: int) -> Iterator[Pyramid]:
    """The image in parts of few channels, so that memory does not grow with their number.

    Colours stay together, since they lie side by side in files.
    """
    from napari_muvit.data.pyramid import Pyramid

    channels = pyramid._selection.channels
    count = max(1, 3 * READ_PIXELS // pixels)
    if channels is None or len(channels) <= count:
        yield pyramid
        return
    for first in range(0, len(channels), count):
        chosen = replace(pyramid._selection, channels=channels[first:first + count])
        yield Pyramid(pyramid._raw, chosen, pyramid.is_labels).uncached()


def _reduction(shape: tuple[int, ...], view_pixels: int) -> tuple[int, ...]:
    """Pixels to average along each axis, y and x alike, to come near `view_pixels`."""
    excess = math.prod(shape) / view_pixels
    step = max(1, math.ceil(math.sqrt(excess)))
    return tuple(min(step, n) if i >= len(shape) - 2 else 1 for i, n in enumerate(shape))


def _block_mean(values: NDArray[np.float32], step: tuple[int, ...]) -> NDArray[np.float32]:
    """Mean of whole blocks, (C, *S) to (C, *S // step)."""
    if all(k == 1 for k in step):
        return values
    cells = [n // k for n, k in zip(values.shape[1:], step, strict=True)]
    cut = values[(slice(None), *(slice(0, n * k) for n, k in zip(cells, step, strict=True)))]
    pairs = itertools.chain.from_iterable(zip(cells, step, strict=True))
    blocks = cut.reshape(len(values), *pairs)
    mean: NDArray[np.float32] = blocks.mean(axis=tuple(range(2, blocks.ndim, 2)), dtype=np.float32)
    return mean


def _probe(pyramid: Pyramid) -> tuple[NDArray[np.float32], FloatArray, FloatArray]:
    """A coarse view of an image too large to read: the mean of one small block in each cell."""
    extent = np.asarray(pyramid.extent)
    shape = np.asarray(pyramid.shapes[-1])
    side = max(1, math.ceil(shape[-2:].max() / PROBES))
    cells = [min(int(n), 8) for n in shape[:-2]] + [max(1, int(n) // side) for n in shape[-2:]]
    view = np.empty((pyramid.shape[0], *cells), dtype=np.float32)
    for place in np.ndindex(*cells):
        middle = (np.asarray(place) + 0.5) / cells * shape
        block = np.minimum(np.where(np.arange(len(cells)) < len(cells) - 2, 1, PROBE_SIDE), shape)
        start = np.clip(np.floor(middle - block / 2).astype(int), 0, shape - block)
        values = pyramid.read(len(pyramid.factors) - 1, tuple(start), tuple(block))
        view[(slice(None), *place)] = values.reshape(len(values), -1).mean(axis=1)
    return view, extent[0], (extent[1] - extent[0]) / np.asarray(cells)


def is_brightfield(view: NDArray[np.float32], is_rgb: bool, dtype: np.dtype[Any]) -> bool:
    """Whether empty places are bright: RGB with its commonest grey in the upper half."""
    if not is_rgb:
        return False
    top = float(np.iinfo(dtype).max) if dtype.kind in "ui" else 1.0
    counts, edges = np.histogram(view.mean(axis=0), bins=64, range=(0.0, top))
    return bool(edges[int(counts.argmax())] > 0.5 * top)


def find_foreground(view: NDArray[np.float32], bright: bool) -> NDArray[np.bool_] | None:
    """Tissue in a coarse view (C, *cells), or None where nothing in it is empty."""
    from scipy import ndimage
    from skimage.filters import threshold_otsu

    signal = _signal(view, bright)
    # Fluorescent nuclei lie apart in dark tissue: a wider blur makes one region of them.
    blur = 1.0 if bright else max(1.0, max(signal.shape) / 120)
    signal = ndimage.gaussian_filter(signal, (0.0,) * (signal.ndim - 2) + (blur, blur))
    if signal.size < 64 or not np.ptp(signal) > 0:
        return None
    threshold = threshold_otsu(signal)
    if not _is_believable(signal, threshold):
        return None
    parts, _ = ndimage.label(signal > threshold)
    counts = np.bincount(parts.ravel())
    large = counts >= min(2e-4 * signal.size, counts[1:].max())
    large[0] = False
    grown = ndimage.binary_dilation(large[parts], iterations=2)
    found: NDArray[np.bool_] = ndimage.binary_fill_holes(grown)
    return None if found.all() else found


def _signal(view: NDArray[np.float32], bright: bool) -> NDArray[np.float32]:
    """One channel in which empty places are near 0: darkness, or the brightest channel."""
    clean = np.nan_to_num(view)
    if bright:
        darkest: NDArray[np.float32] = clean.max() - clean.min(axis=0)
        return darkest
    flat = clean.reshape(len(clean), -1)
    low, high = np.percentile(flat, (0.5, 99.5), axis=1)
    shape = (-1,) + (1,) * (clean.ndim - 1)
    scaled = (clean - low.reshape(shape)) / np.maximum(high - low, 1e-9).reshape(shape)
    signal: NDArray[np.float32] = np.sqrt(np.clip(scaled.max(axis=0), 0, 1)).astype(np.float32)
    return signal


def _is_believable(signal: NDArray[np.float32], threshold: float) -> bool:
    """Whether what lies below the threshold is flat compared with its distance from the rest."""
    below, above = signal[signal <= threshold], signal[signal > threshold]
    if below.size < 0.01 * signal.size or above.size < 1e-4 * signal.size:
        return False
    low, middle, high = np.percentile(below, (10, 50, 90))
    return bool(high - low < 0.35 * (np.median(above) - middle))
