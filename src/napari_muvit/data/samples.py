"""Stage 2 of 7: pyramids become training samples, as plain arrays.

Sample ``index`` depends on the seed and the index alone, so any number of worker processes
gives the same samples in the same order.

Axis letters: L levels, C channels, K classes, S spatial extent, A spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.config import FinetuneConfig, RunConfig
from napari_muvit.data.augment import (
    can_turn,
    draw_augmentation,
    jitter_boxes,
    jitter_intensity,
    jitter_stain,
    move_boxes,
    move_pixels,
)
from napari_muvit.data.crop import parse_scaled_axes
from napari_muvit.data.fractions import class_fractions
from napari_muvit.data.labels import ClassTable, infer_class_table
from napari_muvit.data.levels import advise_levels
from napari_muvit.data.sampling import (
    Placing,
    Split,
    draw_corners,
    image_weights,
    is_due,
    sample_rng,
)
from napari_muvit.data.training_image import TrainingImage, prepare_images
from napari_muvit.errors import ChannelError, InputError
from napari_muvit.geometry import FloatArray, parse_size

if TYPE_CHECKING:
    from napari_muvit.data.pyramid import Pyramid

STREAMS: dict[Split, int] = {"all": 0, "train": 0, "val": 1}
"""Random streams: validation never repeats the crops of training."""

MAX_TRIES = 10
"""Draws after which a crop is taken even if it holds no annotation."""

ENOUGH_COVERAGE = 0.25
"""Labelled share of the images from which supervision at every level is on by default, and
below which foreground is drawn more often."""

FOREGROUND_SHARE = 0.5
"""Least share of crops with foreground where little is labelled."""


@dataclass(frozen=True, eq=False)
class _Crop:
    """One drawn place and, where there are labels, class indices (L or 1, *S) of its pixels."""

    corners: FloatArray
    labels: NDArray[np.int16] | None


class SampleSource:
    """Random nested crops of pyramids, augmented and normalised.

    Parameters
    ----------
    pyramids
        Images to draw from.
    labels
        One label image for each image, or None to draw crops for pretraining.
    config
        Levels, crop size, sampling, augmentation, normalisation and seed.
    class_table
        What label values mean; by default the labels' own, or found in them.
    split
        ``train`` or ``val`` take their part of every image (``val_fraction``); ``all`` takes
        all of it.
    augment
        Whether samples are augmented, and hold foreground as often as the config asks for; by
        default all but those of ``val``.
    seed, stream
        Where randomness comes from; by default the config's seed and the split.
    fractions
        Whether samples hold class fractions for every patch of every level; by default where
        the config asks for supervision at every level.
    pixel_size
        um of each axis that levels refer to, such as that of the training images for those of
        validation; by default that of the first image that knows its own.

    Raises
    ------
    InputError
        If images and labels do not fit together, or nothing can be drawn.
    """

    def __init__(
        self, pyramids: Sequence[Pyramid], labels: Sequence[Pyramid] | None = None, *,
        config: RunConfig, class_table: ClassTable | None = None, split: Split = "all",
        augment: bool | None = None, seed: int | None = None, stream: int | None = None,
        fractions: bool | None = None, pixel_size: tuple[float, ...] | None = None,
    ) -> None:
        pyramids = list(pyramids)
        check_alike(pyramids, config)
        self.config = config
        self.class_table = _resolve_table(labels, class_table, config)
        self.split: Split = split
        self.augment = split != "val" if augment is None else augment
        self.seed = config.seed if seed is None else seed
        self.stream = STREAMS[split] if stream is None else stream
        first = pyramids[0]
        self.ndim = int(first.ndim)
        self.num_channels = int(first.shape[0])
        self.scaled_axes = parse_scaled_axes(config.scaled_axes, first.axes[1:])
        sizes = config.crop_size
        self.size = parse_size(sizes[0] if len(sizes) == 1 else sizes, self.ndim)
        self.advice = self._advise(pyramids)
        self.images: tuple[TrainingImage, ...] = prepare_images(
            pyramids, labels, self.class_table, config, self.size, self.scaled_axes, split,
            pixel_size,
        )
        areas = [image.places.area for image in self.images]
        self._chances = np.cumsum(image_weights(areas, config.image_weighting))
        held = [0.0 if image.foreground is None else area
                for image, area in zip(self.images, areas, strict=True)]
        self.foreground_fraction = 0.0
        if self.augment and any(held):
            self.foreground_fraction = self._choose_share(config)
            self._foreground = np.cumsum(image_weights(held, config.image_weighting))
        self.fractions = self._wants_fractions(config) if fractions is None else fractions

    def _advise(self, pyramids: Sequence[Pyramid]) -> list[str]:
        """What is likely to be a mistake, one sentence each."""
        sentences = (advise_levels(p, self.config.levels, self.size, self.scaled_axes)
                     for p in pyramids)
        advice = [sentence for sentence in sentences if sentence]
        if self.class_table is not None and len(self.class_table.values) == 1:
            advice.append(
                f"the labels hold one class only, {self.class_table.classes[0].name!r}, so there "
                "is nothing to tell apart. Label a second one, background for example."
            )
        return advice

    @property
    def num_classes(self) -> int:
        """Number of classes K of the targets; 0 without labels."""
        return 0 if self.class_table is None else len(self.class_table)

    @property
    def label_coverage(self) -> float:
        """Share of the images' area that is labelled, 0..1."""
        areas = np.asarray([float(np.prod(i.pyramid.spatial_shape)) for i in self.images])
        covered = np.asarray([image.coverage for image in self.images])
        return float((areas * covered).sum() / areas.sum())

    def _choose_share(self, config: RunConfig) -> float:
        """Among few labels, large areas of background would drown the rest."""
        share: float | None = getattr(config, "foreground_fraction", None)
        if share is not None:
            return share
        return FOREGROUND_SHARE if self.label_coverage < ENOUGH_COVERAGE else 0.0

    def _wants_fractions(self, config: RunConfig) -> bool:
        if not isinstance(config, FinetuneConfig) or self.class_table is None:
            return False
        if config.level_supervision is not None:
            return config.level_supervision > 0
        return self.label_coverage >= ENOUGH_COVERAGE

    def sample(self, index: int) -> dict[str, Any]:
        """Sample `index`: arrays, and the number of its image.

        Returns
        -------
        dict
            ``img`` (L, C, *S) float32, ``bbox`` (L, 2, A) float64 world px, ``valid`` (L, *S)
            bool, ``image_index`` int; with labels ``target`` (*S) int64, -1 where not judged;
            where wanted ``fractions`` (L, K, *grid) and ``fraction_valid`` (L, *grid), float32.
        """
        rng = sample_rng(self.seed, self.stream, index)
        needs_foreground = is_due(index, self.foreground_fraction)
        chances = self._foreground if needs_foreground else self._chances
        number = min(int(np.searchsorted(chances, rng.random(), "right")), len(chances) - 1)
        image = self.images[number]
        crop = self._draw(image, rng, needs_foreground)
        sample = self._build(image, crop, rng)
        sample["image_index"] = image.index
        return sample

    def _draw(
        self, image: TrainingImage, rng: np.random.Generator, needs_foreground: bool
    ) -> _Crop:
        """A place that holds what it must; after `MAX_TRIES` draws the last one is taken."""
        foreground = image.foreground if needs_foreground else None
        places = foreground or image.places
        for _ in range(MAX_TRIES):
            point = places.draw(rng) if image.is_limited or needs_foreground else None
            placing: Placing = "within" if image.labels is not None else "centre"
            corners = draw_corners(rng, image.grids, image.bounds, point, placing, image.block)
            labels = self._read_labels(image, corners)
            if labels is None or self._holds(labels[0], needs_foreground):
                break
        return _Crop(corners, labels)

    def _holds(self, target: NDArray[np.int16], needs_foreground: bool) -> bool:
        if not needs_foreground or self.class_table is None:
            return bool((target >= 0).any())
        return bool(np.isin(target, self.class_table.foreground).any())

    def _read_labels(self, image: TrainingImage, corners: FloatArray) -> NDArray[np.int16] | None:
        """Class indices of the finest crop, and of all where fractions are wanted."""
        if image.labels is None:
            return None
        count = len(corners) if self.fractions else 1
        upper = corners + image.grids.extents
        return np.stack([
            image.labels.read(np.stack([corners[i], upper[i]]), self.size) for i in range(count)
        ])

    def _build(
        self, image: TrainingImage, crop: _Crop, rng: np.random.Generator
    ) -> dict[str, Any]:
        """The sample at a drawn place: read, normalise, augment."""
        options, num_axes = self.config, self.ndim
        nested = image.pyramid.crop(
            corner=crop.corners, levels=image.match.levels, size=self.size,
            scaled_axes=self.scaled_axes,
        )
        draw = draw_augmentation(
            options, rng, len(options.levels), self.num_channels, num_axes,
            can_turn(self.size, image.grids.factor),
        )
        pixels, valid = nested.image, nested.valid
        bbox = image.match.to_model(nested.bbox)
        labels = crop.labels
        if self.augment:
            # Moved before they become floats: a quarter of the bytes.
            pixels = jitter_stain(draw, pixels) if options.stain_jitter else pixels
            pixels, valid = (move_pixels(draw, part, num_axes) for part in (pixels, valid))
            labels = None if labels is None else move_pixels(draw, labels, num_axes)
            pixel = image.match.to_model(image.grids.factor)
            bbox = jitter_boxes(draw, move_boxes(draw, bbox), pixel)
        values, valid = image.normalization.apply_where(pixels, valid)
        if self.augment and options.intensity_jitter:
            jittered = jitter_intensity(draw, values, num_axes)
            values = np.where(valid[:, None], jittered, np.float32(0))
        check_boxes(bbox)
        sample: dict[str, Any] = {
            "img": values, "bbox": bbox, "valid": np.ascontiguousarray(valid),
        }
        return sample if labels is None else {**sample, **self._targets(labels, valid)}

    def _targets(self, labels: NDArray[np.int16], valid: NDArray[np.bool_]) -> dict[str, Any]:
        """Target (*S) of the finest crop and, where wanted, class fractions of all patches."""
        labels = np.where(valid[: len(labels)], labels, np.int16(-1))
        targets: dict[str, Any] = {"target": labels[0].astype(np.int64)}
        if self.fractions:
            targets["fractions"], targets["fraction_valid"] = class_fractions(
                labels, self.num_classes, self._patch()
            )
        return targets

    def _patch(self) -> tuple[int, ...]:
        patch = self.config.model_sizes()["patch_size"]
        single = patch[0] if not isinstance(patch, int) and len(patch) == 1 else patch
        return parse_size(single, self.ndim)


def check_boxes(bbox: FloatArray, name: str = "bbox") -> None:
    """Refuse boxes (L, 2, A) that are not finite, or whose maximum is not above the minimum."""
    if not np.all(np.isfinite(bbox)):
        raise InputError(f"{name} holds values that are not finite: {bbox.tolist()}.")
    if np.any(bbox[:, 1] <= bbox[:, 0]):
        raise InputError(
            f"{name} is {bbox.tolist()}; index 0 holds the minimum and index 1 the maximum of "
            "each axis, so 1 must be greater everywhere."
        )


def check_alike(pyramids: Sequence[Pyramid], config: RunConfig) -> None:
    """Refuse images that differ in axes or channels, or that a jitter is not made for."""
    if not pyramids:
        raise InputError("there are no images to draw crops from. Pass at least one.")
    first = pyramids[0]
    for other in pyramids:
        if other.ndim != first.ndim:
            raise InputError(
                f"image {other.name!r} has the axes {other.axes}, {first.name!r} {first.axes}; "
                "images of one run have the same. Choose a plane with z."
            )
        if other.shape[0] != first.shape[0]:
            raise ChannelError(
                f"image {other.name!r} has {other.shape[0]} channels, {first.name!r} "
                f"{first.shape[0]}; images of one run have the same. Choose some with channels."
            )
        if config.stain_jitter and not (other.is_rgb and other.shape[0] == 3):
            raise InputError(
                f"stain_jitter is {config.stain_jitter}, and image {other.name!r} is not RGB; "
                "it is made for stained RGB histology. Set it to 0."
            )


def _resolve_table(
    labels: Sequence[Pyramid] | None, given: ClassTable | None, config: RunConfig
) -> ClassTable | None:
    if labels is None:
        return None
    if given is not None:
        return given
    return infer_class_table(
        labels, getattr(config, "unlabelled", None), getattr(config, "background", None)
    )
