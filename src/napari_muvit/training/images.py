"""The images of a run: opened, paired with labels, split into training and validation."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from napari_muvit.config import FinetuneConfig, RunConfig
from napari_muvit.data.cohort import CohortRow, resolve_images
from napari_muvit.data.dataset import PyramidDataset
from napari_muvit.data.labels import ClassTable
from napari_muvit.data.pyramid import Pyramid, open_pyramid
from napari_muvit.data.training_image import reference_pixel_size
from napari_muvit.errors import ConfigError, SourceNotFoundError
from napari_muvit.training.loader import Batch

PATHS = ("images", "labels", "val", "val_labels", "pretrained", "tissue")
"""Options that name files; written absolute, so that a run can be resumed from anywhere."""


@dataclass(frozen=True)
class RunImages:
    """The datasets of a run, and facts about its images."""

    training: PyramidDataset
    validation: PyramidDataset | None
    pyramids: tuple[Pyramid, ...]
    val_pyramids: tuple[Pyramid, ...] = ()
    val_labels: tuple[Pyramid, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the training images."""
        return tuple(pyramid.name for pyramid in self.pyramids)

    def pictures(self) -> PyramidDataset:
        """What previews show: validation samples, else training samples as they are."""
        if self.validation is not None:
            return self.validation
        plain = copy(self.training)
        plain.samples = copy(self.training.samples)
        plain.samples.augment = False
        return plain

    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of each training image, by its source."""
        return {str(p.source or p.name): p.fingerprint for p in self.pyramids}

    def check(self, batch: Batch) -> None:
        """Refuse a batch whose images are gone: a store without chunks reads as background.

        Raises
        ------
        SourceNotFoundError
            Naming the image.
        """
        for number in set(batch["image_index"].tolist()):
            source = self.pyramids[number].source
            if source is None or "://" in source or Path(source).exists():
                continue
            raise SourceNotFoundError(
                f"image {source!r} is gone while the run goes on. Put it back and resume; the "
                "last checkpoint is whole.", source,
            )

    def warnings(self) -> list[str]:
        """What the user should know about the images."""
        found = list(dict.fromkeys(self.training.advice))
        pyramids = (*self.pyramids, *self.val_pyramids)
        sizes = dict.fromkeys(p.pixel_size[0] if p.pixel_size else None for p in pyramids)
        if len(sizes) > 1:
            shown = ["unknown" if s is None else f"{s[-1]:g} um" for s in sizes]
            first = next((text for text in shown if text != "unknown"), "unknown")
            found.append(
                f"the images have different pixel sizes ({', '.join(shown)}). The model's is the "
                f"first one known, {first}; images of other sizes are rescaled to it, and those "
                "of unknown size are taken as they are. If a size is wrong, correct its metadata."
            )
        return found


def absolute_paths(config: RunConfig) -> RunConfig:
    """`config` with the paths of files that exist here made absolute."""
    changed: dict[str, Any] = {}
    for name in PATHS:
        value = getattr(config, name, None)
        if isinstance(value, str):
            changed[name] = _absolute(value)
        elif value is not None:
            changed[name] = tuple(_absolute(entry) for entry in value)
    return config.model_copy(update=changed)


def _absolute(source: str) -> str:
    path = Path(source).expanduser()
    return str(path.absolute()) if path.exists() else source


def open_images(config: RunConfig) -> RunImages:
    """Open what `config` names, without reading more than normalisation and tissue need.

    Raises
    ------
    ConfigError, SourceError, InputError
        If something is missing, or does not fit together.
    """
    rows = resolve_images(config.images, getattr(config, "labels", None))
    training = [row for row in rows if row.split == "train"]
    validation = [row for row in rows if row.split == "val"]
    if config.val is not None:
        validation += resolve_images(config.val, getattr(config, "val_labels", None), "val")
    if not training:
        raise ConfigError(
            "images name no training image: every row of the table has another split. Give some "
            "rows the split train.", field="images",
        )
    pyramids, labels = _open_rows(training, config, "labels")
    splits = validation == [] and config.val_fraction > 0
    reference = reference_pixel_size(pyramids)
    dataset = PyramidDataset(pyramids, labels, config=config, split="train" if splits else "all")
    if not validation:
        _check_whole(config)
        held_out = None
        if splits:
            held_out = _validation(
                pyramids, labels, config, dataset.class_table, "val", reference)
        return RunImages(dataset, held_out, tuple(pyramids))
    val_pyramids, val_labels = _open_rows(validation, config, "val_labels")
    held_out = _validation(
        val_pyramids, val_labels, config, dataset.class_table, "all", reference)
    return RunImages(
        dataset, held_out, tuple(pyramids), tuple(val_pyramids), tuple(val_labels or ()))


def _check_whole(config: RunConfig) -> None:
    if getattr(config, "validate_whole", False):
        raise ConfigError(
            "validate_whole is True without validation images; part of an image cannot be scored "
            "as a whole. Pass val and val_labels.", field="validate_whole",
        )


def _validation(
    pyramids: Sequence[Pyramid], labels: Sequence[Pyramid] | None, config: RunConfig,
    table: ClassTable | None, split: Any, pixel_size: tuple[float, ...] | None,
) -> PyramidDataset:
    return PyramidDataset(
        pyramids, labels, config=config, class_table=table, split=split,
        length=config.val_samples, augment=False, stream=1, fractions=False,
        pixel_size=pixel_size,
    )


def _open_rows(
    rows: Sequence[CohortRow], config: RunConfig, field: str
) -> tuple[list[Pyramid], list[Pyramid] | None]:
    """Images and, in fine-tuning, their labels: those of each row, or planes of its volume."""
    images = [_open_planes(row.image, config, config.channels) for row in rows]
    if not isinstance(config, FinetuneConfig):
        return list(chain.from_iterable(images)), None
    labels = _open_labels(rows, images, config, field)
    return list(chain.from_iterable(images)), list(chain.from_iterable(labels))


def _open_planes(source: str, config: RunConfig, channels: Any = None) -> list[Pyramid]:
    if isinstance(config.z, tuple):
        return [open_pyramid(source, channels=channels, t=config.t, z=z) for z in config.z]
    whole = open_pyramid(source, channels=channels, t=config.t)
    if config.z is None or whole.ndim < 3:
        return [whole]
    return [whole.plane(z) for z in range(whole.spatial_shape[0])]


def _open_labels(
    rows: Sequence[CohortRow], images: Sequence[Sequence[Pyramid]], config: RunConfig, field: str
) -> list[list[Pyramid]]:
    """The labels of each row, one for each of its images."""
    labels = []
    for row, pyramids in zip(rows, images, strict=True):
        if row.labels is None:
            raise ConfigError(
                f"image {row.image!r} has no labels; fine-tuning needs a label image for each. "
                f"Pass {field}, one for each image.", field=field,
            )
        found = [open_pyramid(row.labels)]
        if found[0].ndim != pyramids[0].ndim:  # the same planes of the labels as of the image
            found = _open_planes(row.labels, config)
        if len(found) != len(pyramids):
            raise ConfigError(
                f"{len(pyramids)} planes of {row.image!r} are to be used, and labels "
                f"{row.labels!r} have {len(found)}. Choose the labelled plane with z.", field="z",
            )
        labels.append([label.as_labels() for label in found])
    return labels
