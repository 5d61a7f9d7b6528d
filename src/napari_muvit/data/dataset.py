"""Stage 2 of 7: pyramids become training samples. The one part of ``data`` that needs torch.

`MuViTDataset` is the official project's contract, checked by a running sample when a dataset
is made. `PyramidDataset` draws nested crops from pyramids; sample ``index`` depends on the
seed and the index alone, so any number of workers gives the same samples in the same order.

Axis letters: L levels, C channels, K classes, S spatial extent, A spatial axes.
"""

from __future__ import annotations

from abc import ABC, ABCMeta, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

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
from napari_muvit.data.sampling import (
    Placing,
    Split,
    advise_levels,
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


class _CheckedWhenMade(ABCMeta):
    """Runs `_sanity_check` on every dataset as soon as it is made, subclasses' ``__init__`` included."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__call__(*args, **kwargs)
        made._sanity_check()
        return made


class MuViTDataset(Dataset[dict[str, Any]], ABC, metaclass=_CheckedWhenMade):
    """Base of datasets that MuViT can train on; the official project's contract.

    A subclass gives ``__len__``, ``ndim`` (spatial axes), ``levels`` (ascending), ``n_channels``
    and ``__getitem__``, which returns a dict with at least

    ``img``
        (L, C, *S) float tensor, one crop for each level.
    ``bbox``
        (L, 2, A) float tensor of [min, max] outer edges in world px, or None.

    Raises
    ------
    ValueError
        When a dataset is made whose first sample is not like that.
    """

    @abstractmethod
    def __getitem__(self, idx: int) -> dict[str, Any]: ...

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def ndim(self) -> int:
        """Number of spatial axes: 2, 3 or 4."""

    @property
    @abstractmethod
    def levels(self) -> tuple[int | float, ...]:
        """Downsampling factors, ascending."""

    @property
    @abstractmethod
    def n_channels(self) -> int:
        """Number of channels of every crop."""

    @property
    def n_levels(self) -> int:
        """Number of levels."""
        return len(self.levels)

    def _sanity_check(self) -> None:
        """Compare the first sample with what the properties promise."""
        if self.ndim not in (2, 3, 4):
            raise InputError(f"ndim is {self.ndim}; it must be 2, 3 or 4 spatial axes.")
        if len(self) == 0:
            raise InputError("the dataset is empty; it needs at least one sample.")
        sample = self[0]
        missing = [key for key in ("img", "bbox") if key not in sample]
        if missing:
            raise InputError(
                f"the sample has the keys {', '.join(sample)}; {' and '.join(missing)} must be "
                "there too."
            )
        check_sample_shapes(sample["img"], sample["bbox"], self)

    def visualize_sample(
        self, idx: int = 0, save_file: Any = None, view: str = "yx",
        continuous_label_cmap: Any = None,
    ) -> NDArray[np.uint8]:
        """A picture (H, W, 3) of one sample: each level's crop, boxes of finer levels drawn in.

        Parameters
        ----------
        save_file
            Where to write the picture as well.
        view
            Plane of a volume that is shown: yx, zx or zy.
        continuous_label_cmap
            matplotlib's name of a colour map for a ``label`` that is no class.
        """
        from napari_muvit.data.sample_picture import draw_sample, save_picture

        picture = draw_sample(self[idx], self.ndim, view, continuous_label_cmap)
        if save_file is not None:
            save_picture(picture, save_file)
        return picture


def check_sample_shapes(img: Any, bbox: Any, dataset: MuViTDataset) -> None:
    """Refuse a sample whose shapes are not those that its dataset promises."""
    num_levels, num_axes = dataset.n_levels, dataset.ndim
    if bbox is not None and tuple(bbox.shape) != (num_levels, 2, num_axes):
        raise InputError(
            f"bbox has the shape {tuple(bbox.shape)}; levels {tuple(dataset.levels)} and ndim "
            f"{num_axes} need ({num_levels}, 2, {num_axes}). Pass one box per level, e.g. "
            "crop.bbox."
        )
    if img.ndim != num_axes + 2:
        raise InputError(
            f"img has {img.ndim} axes, {tuple(img.shape)}; ndim {num_axes} needs "
            f"{num_axes + 2}: levels, channels, then space."
        )
    if img.shape[0] != num_levels:
        raise InputError(
            f"img has the shape {tuple(img.shape)}, so {img.shape[0]} levels; the dataset says "
            f"levels {tuple(dataset.levels)}."
        )
    if img.shape[1] != dataset.n_channels:
        raise ChannelError(
            f"img has {img.shape[1]} channels; the dataset says n_channels {dataset.n_channels}."
        )


def check_boxes(bbox: FloatArray, name: str = "bbox") -> None:
    """Refuse boxes (L, 2, A) that are not finite, or whose maximum is not above the minimum."""
    if not np.all(np.isfinite(bbox)):
        raise InputError(f"{name} holds values that are not finite: {bbox.tolist()}.")
    if np.any(bbox[:, 1] <= bbox[:, 0]):
        raise InputError(
            f"{name} is {bbox.tolist()}; index 0 holds the minimum and index 1 the maximum of "
            "each axis, so 1 must be greater everywhere."
        )


@dataclass(frozen=True, eq=False)
class _Crop:
    """One drawn place and, where there are labels, class indices (L or 1, *S) of its pixels."""

    corners: FloatArray
    labels: NDArray[np.int16] | None


class PyramidDataset(MuViTDataset):
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
    length
        Samples that count as the dataset's length; any index is allowed.
    augment
        Whether samples are augmented; by default all but those of ``val``.
    seed, stream
        Where randomness comes from; by default the config's seed and the split.
    fractions
        Whether samples hold class fractions for every patch of every level; by default where
        the config asks for supervision at every level.

    Raises
    ------
    InputError
        If images and labels do not fit together, or nothing can be drawn.
    """

    def __init__(
        self, pyramids: Sequence[Pyramid], labels: Sequence[Pyramid] | None = None, *,
        config: RunConfig, class_table: ClassTable | None = None, split: Split = "all",
        length: int | None = None, augment: bool | None = None, seed: int | None = None,
        stream: int | None = None, fractions: bool | None = None,
    ) -> None:
        pyramids = list(pyramids)
        check_alike(pyramids, config)
        self.config = config
        self.class_table = _resolve_table(labels, class_table, config)
        self.split: Split = split
        self.length = config.epoch_size if length is None else length
        self.augment = split != "val" if augment is None else augment
        self.seed = config.seed if seed is None else seed
        self.stream = STREAMS[split] if stream is None else stream
        first = pyramids[0]
        self._ndim = int(first.ndim)
        self._num_channels = int(first.shape[0])
        self.scaled_axes = parse_scaled_axes(config.scaled_axes, first.axes[1:])
        sizes = config.crop_size
        self.size = parse_size(sizes[0] if len(sizes) == 1 else sizes, self._ndim)
        self.advice = [
            advice for p in pyramids
            if (advice := advise_levels(p, config.levels, self.size, self.scaled_axes))
        ]
        self.images: tuple[TrainingImage, ...] = prepare_images(
            pyramids, labels, self.class_table, config, self.size, self.scaled_axes, split
        )
        areas = [image.places.area for image in self.images]
        self._chances = np.cumsum(image_weights(areas, config.image_weighting))
        self.fractions = self._wants_fractions(config) if fractions is None else fractions

    def __len__(self) -> int:
        return self.length

    @property
    def ndim(self) -> int:
        return self._ndim

    @property
    def levels(self) -> tuple[int | float, ...]:
        return tuple(self.config.levels)

    @property
    def n_channels(self) -> int:
        return self._num_channels

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

    def _wants_fractions(self, config: RunConfig) -> bool:
        if not isinstance(config, FinetuneConfig) or self.class_table is None:
            return False
        if config.level_supervision is not None:
            return config.level_supervision > 0
        return self.label_coverage >= 0.25

    def __getitem__(self, idx: int) -> dict[str, Any]:
        rng = sample_rng(self.seed, self.stream, idx)
        chance = rng.random()
        number = min(int(np.searchsorted(self._chances, chance, "right")), len(self.images) - 1)
        image = self.images[number]
        crop = self._draw(image, rng, idx)
        sample = self._build(image, crop, rng)
        sample["image_index"] = image.index
        return sample

    def _draw(self, image: TrainingImage, rng: np.random.Generator, index: int) -> _Crop:
        """A place that holds what it must; after `MAX_TRIES` draws the last one is taken."""
        share = getattr(self.config, "foreground_fraction", 0.0)
        needs_foreground = image.foreground is not None and is_due(index, share)
        places = image.foreground if needs_foreground and image.foreground else image.places
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
        options, num_axes = self.config, self._ndim
        nested = image.pyramid.crop(
            corner=crop.corners, levels=options.levels, size=self.size,
            scaled_axes=self.scaled_axes,
        )
        draw = draw_augmentation(
            options, rng, len(options.levels), self._num_channels, num_axes,
            can_turn(self.size, image.grids.factor),
        )
        pixels, bbox, valid = nested.image, nested.bbox, nested.valid
        labels = crop.labels
        if self.augment and options.stain_jitter:
            pixels = jitter_stain(draw, pixels)
        values = image.normalization.apply(pixels)
        if pixels.dtype.kind == "f":
            finite = np.isfinite(values).all(axis=1)
            valid = valid & finite
        if self.augment:
            values = jitter_intensity(draw, values, num_axes)
            values, valid = (move_pixels(draw, part, num_axes) for part in (values, valid))
            bbox = jitter_boxes(draw, move_boxes(draw, bbox), image.grids.factor)
            labels = None if labels is None else move_pixels(draw, labels, num_axes)
        values = np.where(valid[:, None], values, np.float32(0))
        check_boxes(bbox)
        sample: dict[str, Any] = {
            "img": torch.from_numpy(values), "bbox": torch.from_numpy(bbox),
            "valid": torch.from_numpy(np.ascontiguousarray(valid)),
        }
        return sample if labels is None else {**sample, **self._targets(labels, valid)}

    def _targets(self, labels: NDArray[np.int16], valid: NDArray[np.bool_]) -> dict[str, Any]:
        """Target (*S) of the finest crop and, where wanted, class fractions of all patches."""
        labels = np.where(valid[: len(labels)], labels, np.int16(-1))
        targets = {"target": torch.from_numpy(labels[0].astype(np.int64))}
        if self.fractions:
            fractions, known = class_fractions(labels, self.num_classes, self._patch())
            targets["fractions"] = torch.from_numpy(fractions)
            targets["fraction_valid"] = torch.from_numpy(known)
        return targets

    def _patch(self) -> tuple[int, ...]:
        patch = self.config.model_sizes()["patch_size"]
        single = patch[0] if not isinstance(patch, int) and len(patch) == 1 else patch
        return parse_size(single, self._ndim)


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
