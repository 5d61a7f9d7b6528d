"""One image as training sees it: its pixels, labels, normalisation, and where crops may lie.

All of this is found once, before the first sample, in the process that trains; workers get it
ready-made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from napari_muvit.config import RunConfig
from napari_muvit.data.label_reader import LabelReader, label_places
from napari_muvit.data.labels import ClassTable
from napari_muvit.data.normalize import (
    NUM_BLOCKS,
    Normalization,
    NormalizationRule,
    measure,
)
from napari_muvit.data.physical import PixelMatch, match_pixel_size
from napari_muvit.data.places import PlaceMap
from napari_muvit.data.sampling import Blocks, LevelGrids, Split, level_grids, split_blocks
from napari_muvit.data.tissue import VIEW_PIXELS, find_tissue, tissue_places
from napari_muvit.errors import InputError
from napari_muvit.geometry import FloatArray

if TYPE_CHECKING:
    from napari_muvit.data.pyramid import Pyramid


FEW_PLANES = 8
"""Planes of one volume that are each looked at as closely as an image of its own."""

FEWEST_VIEW_PIXELS = 1 << 15
FEWEST_BLOCKS = 16


@dataclass(frozen=True, eq=False)
class TrainingImage:
    """An image that crops are drawn from.

    Attributes
    ----------
    index
        Its place in the list of images that was given.
    match
        Levels and scale at which this image has the physical pixel size of the first one.
    bounds
        (2, A) outer edges of the image, world px, that coarser crops stay inside.
    block
        (2, A) part of it in which the finest crops lie.
    places
        Where crops are drawn, inside the block.
    foreground
        Where a foreground class is, where that was asked for.
    is_limited
        Whether `places` is less than the whole block.
    coverage
        Share of the image that is labelled, 0..1.
    """

    index: int
    pyramid: Pyramid
    normalization: Normalization
    match: PixelMatch
    grids: LevelGrids
    bounds: FloatArray
    block: FloatArray
    places: PlaceMap
    foreground: PlaceMap | None
    is_limited: bool
    labels: LabelReader | None
    coverage: float


def reference_pixel_size(pyramids: Sequence[Pyramid]) -> tuple[float, ...] | None:
    """um per pixel of the first image that knows it: what levels mean in a run."""
    sizes = (pyramid.pixel_size for pyramid in pyramids)
    known = next((size for size in sizes if size is not None), None)
    return None if known is None else tuple(float(v) for v in known[0])


def prepare_images(
    pyramids: Sequence[Pyramid], labels: Sequence[Pyramid] | None, table: ClassTable | None,
    config: RunConfig, size: tuple[int, ...], scaled_axes: tuple[int, ...], split: Split,
    pixel_size: tuple[float, ...] | None = None,
) -> tuple[TrainingImage, ...]:
    """The images that have something to draw in this split.

    Parameters
    ----------
    pixel_size
        um of each axis that levels refer to; by default those of `reference_pixel_size`.

    Raises
    ------
    InputError
        If there is no such image, or images and labels differ in number.
    """
    if labels is not None and len(labels) != len(pyramids):
        raise InputError(
            f"{len(pyramids)} images are given with {len(labels)} labels; each image needs its "
            "own label image, in the same order."
        )
    rule = NormalizationRule.from_config(config)
    reference = reference_pixel_size(pyramids) if pixel_size is None else pixel_size
    planes = Counter(pyramid.source for pyramid in pyramids)
    images = []
    for index, pyramid in enumerate(pyramids):
        reader = None
        if labels is not None and table is not None:
            reader = LabelReader(labels[index], pyramid, table)
        match = match_pixel_size(config.levels, reference, pyramid, scaled_axes)
        grids = level_grids(pyramid, match.levels, size, scaled_axes)
        num_planes = 1 if pyramid.source is None else planes[pyramid.source]
        image = _prepare(
            index, pyramid, reader, (match, grids), config, rule, split, num_planes)
        if image is not None:
            images.append(image)
    if not images:
        raise InputError(_nothing_message(config, split))
    return tuple(images)


def _nothing_message(config: RunConfig, split: Split) -> str:
    if split == "val":
        return (
            f"no image is large enough to keep {config.val_fraction:.0%} of it for validation, "
            "apart from training by the coarsest crop. Pass validation images, smaller levels, "
            "or val_fraction 0."
        )
    return (
        "there is no place to draw crops from: no image has tissue, or annotations. Annotate "
        "something, or set tissue to none."
    )


def _prepare(
    index: int, pyramid: Pyramid, reader: LabelReader | None,
    placed: tuple[PixelMatch, LevelGrids], config: RunConfig, rule: NormalizationRule,
    split: Split, num_planes: int,
) -> TrainingImage | None:
    """One image, or None where it has no place for this split.

    Of many planes of one volume, each is looked at more coarsely: hundreds would otherwise
    take minutes before the first sample.
    """
    match, grids = placed
    part = min(1.0, FEW_PLANES / num_planes)
    view_pixels = max(FEWEST_VIEW_PIXELS, int(part * VIEW_PIXELS))
    tissue = tissue_places(config.tissue, pyramid, view_pixels)
    measured = tissue if config.tissue == "auto" else None
    if part < 1 and measured is None and rule.kind == "percentile":
        measured = find_tissue(pyramid, view_pixels)
    found = measure(rule, pyramid, measured, max(FEWEST_BLOCKS, int(part * NUM_BLOCKS)))
    share = getattr(config, "foreground_fraction", None) or 0.0
    places, foreground, coverage = _label_limits(tissue, reader, config.tissue, share)
    bounds = np.asarray(pyramid.extent, dtype=np.float64)
    block = bounds
    if split != "all" and config.val_fraction > 0 and not places.is_empty:
        blocks = split_blocks(
            places, config.val_fraction, grids.extents[-1], grids.extents[0],
            at_end=bool((config.seed + index) % 2 == 0),
        )
        if blocks is None and split == "val":
            return None
        block = bounds if blocks is None else _block_of(blocks, split)
    places = places.within(block)
    if places.is_empty:
        return None
    foreground = None if foreground is None else foreground.within(block)
    return TrainingImage(
        index=index, pyramid=pyramid, normalization=found, match=match, grids=grids,
        bounds=bounds, block=block, places=places,
        foreground=None if foreground is None or foreground.is_empty else foreground,
        is_limited=places.mask.size > 1, labels=reader, coverage=coverage,
    )


def _block_of(blocks: Blocks, split: Split) -> FloatArray:
    return blocks.val if split == "val" else blocks.train


def _label_limits(
    tissue: PlaceMap, reader: LabelReader | None, option: str, share: float
) -> tuple[PlaceMap, PlaceMap | None, float]:
    """Where crops may lie once labels are known, where foreground is, and labelled share.

    What was annotated is drawn from even where no tissue was found, because whoever painted
    there meant it; only a mask that was given by hand still counts.
    """
    if reader is None:
        return tissue, None, 0.0
    is_dense = reader.table.unlabelled is None
    if is_dense and not share:
        return tissue, None, 1.0
    annotated, foreground, coverage = label_places(reader)
    if is_dense:
        return tissue, foreground, 1.0
    places = annotated if option in {"auto", "none"} else annotated.also_in(tissue)
    return places, foreground, coverage
