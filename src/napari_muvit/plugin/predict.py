"""What the Predict widget does, without Qt: models, regions and stores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_muvit.api import image_stem
from napari_muvit.errors import InputError
from napari_muvit.geometry import FloatArray, aligned_offset, default_scaled_axes
from napari_muvit.plugin.image_choices import NUM_AXES
from napari_muvit.plugin.layers import ResolvedImage
from napari_muvit.plugin.stored_images import is_zarr

Slices = tuple[slice, ...]


FOLDER = "predictions"
"""Folder in a run's where predictions go unless told otherwise."""


@dataclass(frozen=True)
class LoadedModel:
    """A segmenter on disk and what a person wants to know about it.

    Attributes
    ----------
    folder
        Run or model folder. The engine is given this, as the command line does, so that both
        mean the same model and one continues what the other began.
    table
        ``ClassTable``, or None where the folder has none.
    """

    folder: str
    levels: tuple[float, ...]
    crop_size: tuple[int, ...]
    table: Any
    num_channels: int
    pixel_size: tuple[float, ...] | None = None
    ndim: int = NUM_AXES
    scaled_axes: tuple[int, ...] | None = None

    @property
    def label_dtype(self) -> np.dtype[Any]:
        """Smallest type that holds every class value."""
        values = (0,) if self.table is None else self.table.values
        return np.min_scalar_type(max(255, *values))

    def factors_in(self, pyramid: Any) -> FloatArray:
        """World px of `pyramid` in one pixel of its prediction, (A,)."""
        factors = np.ones(len(pyramid.spatial_shape))
        scaled = self.scaled_axes or default_scaled_axes(self.ndim)
        lead = len(factors) - self.ndim
        factors[[lead + axis for axis in scaled]] = (
            float(self.levels[0]) * unit_in(self.pixel_size, pyramid))
        return factors

    def grid_shape(self, pyramid: Any) -> tuple[int, ...]:
        """Size of a whole prediction: the grid of the finest level."""
        counts = np.asarray(pyramid.spatial_shape) / self.factors_in(pyramid)
        return tuple(np.ceil(np.round(counts, 6)).astype(int).tolist())

    def summary(self) -> str:
        """One line: levels, crop size, classes."""
        levels = ", ".join(f"{level:g}" for level in self.levels)
        size = " × ".join(str(n) for n in self.crop_size)
        names = "" if self.table is None else ": " + ", ".join(self.table.names)
        count = "" if self.table is None else f"; {len(self.table.names)} classes{names}"
        return f"Levels {levels}; crops of {size} px{count}."


def load(backend: Any, folder: str) -> LoadedModel:
    """Look at the segmenter in a run or model folder (runs in a thread).

    Raises
    ------
    InputError
        If no folder is named, or its model does not segment.
    """
    if not folder.strip():
        raise InputError("no model folder is chosen. Choose the folder of a fine-tuning run.")
    module = backend.load_model(folder)
    meta = getattr(module, "meta", None)
    encoder = getattr(module, "encoder", None)
    if encoder is None or not hasattr(module, "num_classes"):
        raise InputError(
            f"the model in {folder!r} does not segment; it was only pretrained. Fine-tune it "
            "first, and choose the folder of that run."
        )
    classes = getattr(meta, "classes", None)
    table = backend.ClassTable.from_dict(classes) if classes else None
    size = getattr(meta, "crop_size", None) or ()
    sizes = (size,) if isinstance(size, int) else tuple(size)
    pixel_size = getattr(meta, "pixel_size", None)
    ndim = int(getattr(encoder, "ndim", NUM_AXES))
    scaled = getattr(meta, "scaled_axes", None)
    return LoadedModel(
        folder, tuple(encoder.levels), tuple(int(n) for n in sizes), table,
        int(encoder.in_channels), tuple(pixel_size) if pixel_size else None,
        ndim, tuple("zyx"[-ndim:].index(axis) for axis in scaled) if scaled else None,
    )


def unit_in(pixel_size: Sequence[float] | None, pyramid: Any) -> float:
    """World px of `pyramid` in one full-resolution pixel of the training images.

    1 where a pixel size is unknown or both are equal within 2 %, as the engine has it.
    """
    if pixel_size is None or pyramid.pixel_size is None:
        return 1.0
    pairs = zip(pixel_size[-NUM_AXES:], pyramid.pixel_size[0][-NUM_AXES:], strict=True)
    ratio = float(np.exp(np.mean([np.log(trained / here) for trained, here in pairs])))
    return 1.0 if abs(ratio - 1) < 0.02 else ratio


def roi_of(box: FloatArray | None, pyramid: Any, model: LoadedModel) -> FloatArray | None:
    """World px box (2, A) along the model's axes of a region of the image, all planes of it."""
    if box is None:
        return None
    if box.shape[1] > NUM_AXES:
        box[:, 0] = np.asarray(pyramid.extent)[:, 0]
    return box[:, -model.ndim:]


def check_fit(model: LoadedModel, image: ResolvedImage) -> None:
    """Refuse an image that the model cannot read.

    Raises
    ------
    InputError
        Naming both numbers of channels, or of axes.
    """
    if model.ndim > len(image.pyramid.spatial_shape):
        raise InputError(
            f"{image.name!r} is a plane; the model was trained on volumes. Choose a stack of "
            "planes (z), or a model that was trained on planes."
        )
    channels = image.pyramid.shape[0]
    if channels != model.num_channels:
        raise InputError(
            f"{image.name!r} has {channels} channels; the model was trained on "
            f"{model.num_channels}. Choose the image, or the channels, that it was trained on."
        )


@dataclass(frozen=True)
class Region:
    """Part of a prediction, and where it lies.

    Attributes
    ----------
    start, shape
        First pixel and size on the prediction's grid.
    factor
        World px of one pixel of the grid, one number or (A,).
    """

    start: tuple[int, ...]
    shape: tuple[int, ...]
    factor: Any

    def offset(self) -> FloatArray:
        """World position of the centre of the region's first pixel, (A,)."""
        factor = np.asarray(self.factor, np.float64)
        offset: FloatArray = aligned_offset(factor) + factor * np.asarray(self.start)
        return offset

    def box(self) -> FloatArray:
        """World px of the region's outer edges, (2, A)."""
        corners = np.stack([self.start, np.add(self.start, self.shape)])
        box: FloatArray = corners * self.factor - 0.5
        return box

    def blocks(self, chunks: Sequence[Sequence[int]]) -> list[Slices]:
        """The parts of the region that lie in one chunk each, nearest to the middle first.

        Parameters
        ----------
        chunks
            Sizes of the chunks of the prediction's grid, along each axis.
        """
        stops = np.add(self.start, self.shape).tolist()
        spans = []
        for sizes, low, high in zip(chunks, self.start, stops, strict=True):
            edges = [0, *np.cumsum(sizes).tolist()]
            spans.append([slice(max(a, low), min(b, high))
                          for a, b in pairwise(edges) if a < high and b > low])
        middle = np.add(self.start, stops) / 2
        blocks = list(product(*spans))
        blocks.sort(key=lambda block: sum(
            (m - (s.start + s.stop) / 2) ** 2 for s, m in zip(block, middle, strict=True)))
        return blocks

    def local(self, block: Slices) -> Slices:
        """`block` counted from the region's first pixel."""
        return tuple(
            slice(part.start - low, part.stop - low)
            for part, low in zip(block, self.start, strict=True)
        )


def plan_region(box: FloatArray, shape: Sequence[int], factor: ArrayLike) -> Region:
    """The part of a prediction that lies in a world px box.

    Parameters
    ----------
    box
        (2, A) world px.
    shape
        Size of the whole prediction.
    factor
        World px of one of its pixels (``levels[0]``), one number or (A,).

    Raises
    ------
    InputError
        If the box lies outside the image.
    """
    factor = np.asarray(factor, np.float64)
    low = np.clip(np.floor((box[0] + 0.5) / factor), 0, shape).astype(int)
    high = np.clip(np.ceil((box[1] + 0.5) / factor), 0, shape).astype(int)
    if np.any(high <= low):
        raise InputError(
            f"no part of the image, which has {tuple(shape)} px, lies between {box[0].tolist()} "
            f"and {box[1].tolist()}. Move the image into the view, or choose another region.")
    return Region(tuple(low.tolist()), tuple((high - low).tolist()), factor)


@dataclass(frozen=True)
class BlockDone:
    """One block of a region: where, and its labels."""

    block: Slices
    labels: NDArray[Any]
    done: int
    total: int
    remaining: float | None = None


def predict_region(
    backend: Any, image: ResolvedImage, model: LoadedModel, region: Region, device: str
) -> Iterator[BlockDone]:
    """Labels of a region, block by block (runs in a thread).

    Each part is one chunk of the lazy prediction, cut to the region's own tiles: nothing is
    computed twice, and nothing beside the region. A model of planes predicts those of a volume
    that the region touches.
    """
    roi = region.box()[:, -model.ndim:]
    labels = backend.predict(image.pyramid, model.folder, device=device, roi=roi)
    blocks = region.blocks(labels.chunks)
    for number, block in enumerate(blocks, start=1):
        values = np.asarray(labels[block].compute(scheduler="synchronous"))
        yield BlockDone(block, values, number, len(blocks))


def place_labels(image: Any, labels: Any) -> tuple[FloatArray, FloatArray]:
    """World px of one pixel of a label store, and the world position of its pixel 0, (A,) each.

    Parameters
    ----------
    image, labels
        Pyramids of the image and of its prediction, which keeps the image's own units.
    """
    has_unit = image.pixel_size is not None and labels.pixel_size is not None
    unit = np.asarray(image.pixel_size[0] if has_unit else image.spacing)
    size = np.asarray(labels.pixel_size[0] if has_unit else labels.spacing)
    zero = np.asarray(image.origin) / np.asarray(image.spacing) * unit
    place = np.asarray(labels.origin) / np.asarray(labels.spacing) * size
    return size / unit, (place - zero) / unit


def default_output(
    image: ResolvedImage, model_folder: str, region: FloatArray | None = None
) -> Path:
    """Where a prediction to disk goes unless told otherwise: into the model's run folder.

    That of a `region`, a world px box (2, A), is named by where it begins and ends, and each time
    point of a series has its own.
    """
    stem = image_stem(Path(image.path).name) if image.path else image.name.replace(" ", "_")
    t = image.plane.get("t")
    # Of an image in memory the number of time points is not known, and copies have the time point
    # in their names.
    if t is not None and (image.path is None or image.pyramid.num_times > 1):
        stem = f"{stem}_t{t}"
    if region is not None:
        low, high = (",".join(f"{value:.0f}" for value in corner) for corner in region)
        stem = f"{stem}_{low}_to_{high}"
    folder = Path(model_folder)
    return folder / FOLDER / f"{stem}.ome.zarr"


def output_in(path: str, own: Path) -> Path:
    """The store that is meant by `path`: itself, or one in it if it is a folder of something else.

    Parameters
    ----------
    own
        What the store is called unless told otherwise.
    """
    given = Path(path)
    is_store = given.suffix == ".zarr" or is_zarr(given)
    return given / own.name if given.is_dir() and not is_store else given


def failed_text(failed: int, num_images: int = 1) -> str:
    """What to do about tiles, or images of several, that failed; "" where there are none."""
    if not failed:
        return ""
    if num_images > 1:
        return f"{failed} of {num_images} images failed; predict again to try them once more."
    which = "1 part is" if failed == 1 else f"{failed:,} parts are"
    return f"{which} missing; predict again to try them once more."


def remaining_text(seconds: float | None) -> str:
    """Time left, as a person says it."""
    if seconds is None or not np.isfinite(seconds):
        return ""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s left"
    if seconds < 5400:
        return f"about {round(seconds / 60)} min left"
    return f"about {seconds / 3600:.1f} h left"
