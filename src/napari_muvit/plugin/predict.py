"""What the Predict widget does, without Qt: models, regions and stores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.errors import InputError
from napari_muvit.geometry import FloatArray, aligned_offset
from napari_muvit.plugin.layers import NUM_AXES, ResolvedImage

Slices = tuple[slice, ...]


@dataclass(frozen=True)
class LoadedModel:
    """A segmenter in memory and what a person wants to know about it.

    Attributes
    ----------
    folder
        Run or model folder.
    module
        What ``api.load_model`` gave.
    table
        ``ClassTable``, or None where the folder has none.
    """

    folder: str
    module: Any
    levels: tuple[float, ...]
    crop_size: tuple[int, ...]
    table: Any
    num_channels: int
    pixel_size: tuple[float, ...] | None = None

    @property
    def label_dtype(self) -> np.dtype[Any]:
        """Smallest type that holds every class value."""
        values = (0,) if self.table is None else self.table.values
        return np.min_scalar_type(max(255, *values))

    def factor_in(self, pyramid: Any) -> float:
        """World px of `pyramid` in one pixel of its prediction."""
        return float(self.levels[0]) * unit_in(self.pixel_size, pyramid)

    def grid_shape(self, pyramid: Any) -> tuple[int, ...]:
        """Size of a whole prediction: the grid of the finest level."""
        factor = self.factor_in(pyramid)
        return tuple(int(np.ceil(round(n / factor, 6))) for n in pyramid.spatial_shape)

    def summary(self) -> str:
        """One line: levels, crop size, classes."""
        levels = ", ".join(f"{level:g}" for level in self.levels)
        size = " × ".join(str(n) for n in self.crop_size)
        names = "" if self.table is None else ": " + ", ".join(self.table.names)
        count = "" if self.table is None else f"; {len(self.table.names)} classes{names}"
        return f"Levels {levels}; crops of {size} px{count}."


def load(backend: Any, folder: str) -> LoadedModel:
    """Load the segmenter in a run or model folder (runs in a thread).

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
    return LoadedModel(
        folder, module, tuple(encoder.levels), tuple(int(n) for n in sizes), table,
        int(encoder.in_channels), tuple(pixel_size) if pixel_size else None,
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


def check_fit(model: LoadedModel, image: ResolvedImage) -> None:
    """Refuse an image that the model cannot read.

    Raises
    ------
    InputError
        Naming both numbers of channels.
    """
    channels = image.pyramid.shape[0]
    if channels != model.num_channels:
        raise InputError(
            f"{image.name!r} has {channels} channels; the model was trained on "
            f"{model.num_channels}. Choose the image, or the channels, that it was trained on."
        )


@dataclass(frozen=True)
class Region:
    """Part of a prediction: its blocks, and where it lies.

    Attributes
    ----------
    start, shape
        First pixel and size on the prediction's grid.
    blocks
        Slices of the prediction's grid, nearest to the middle first.
    factor
        World px of one pixel of the grid.
    """

    start: tuple[int, ...]
    shape: tuple[int, ...]
    blocks: tuple[Slices, ...]
    factor: float

    def offset(self) -> FloatArray:
        """World position of the centre of the region's first pixel, (A,)."""
        offset: FloatArray = aligned_offset(self.factor) + self.factor * np.asarray(self.start)
        return offset

    def local(self, block: Slices) -> Slices:
        """`block` counted from the region's first pixel."""
        return tuple(
            slice(part.start - low, part.stop - low)
            for part, low in zip(block, self.start, strict=True)
        )


def plan_region(
    box: FloatArray, shape: Sequence[int], factor: float, block: int = 256
) -> Region:
    """The blocks of a prediction that lie in a world px box.

    Parameters
    ----------
    box
        (2, A) world px.
    shape
        Size of the whole prediction.
    factor
        World px of one of its pixels (``levels[0]``).
    block
        Side of a block, px of the prediction.

    Raises
    ------
    InputError
        If the box lies outside the image.
    """
    low = np.clip(np.floor((box[0] + 0.5) / factor), 0, shape).astype(int)
    high = np.clip(np.ceil((box[1] + 0.5) / factor), 0, shape).astype(int)
    if np.any(high <= low):
        raise InputError("the view shows no part of the image. Move the image into the view.")
    spans = [
        [slice(at, min(at + block, stop)) for at in range(start, stop, block)]
        for start, stop in zip(low.tolist(), high.tolist(), strict=True)
    ]
    grid = np.stack(np.meshgrid(*[range(len(s)) for s in spans], indexing="ij"), -1)
    blocks = [
        tuple(axis[i] for axis, i in zip(spans, index, strict=True))
        for index in grid.reshape(-1, len(spans)).tolist()
    ]
    middle = (low + high) / 2
    blocks.sort(key=lambda b: sum((m - (s.start + s.stop) / 2) ** 2
                                  for s, m in zip(b, middle, strict=True)))
    return Region(tuple(low.tolist()), tuple((high - low).tolist()), tuple(blocks), factor)


@dataclass(frozen=True)
class BlockDone:
    """One block of a region: where, and its labels."""

    block: Slices
    labels: NDArray[Any]
    done: int
    total: int


def predict_region(
    backend: Any, image: ResolvedImage, model: LoadedModel, region: Region, device: str
) -> Iterator[BlockDone]:
    """Labels of a region, block by block (runs in a thread)."""
    labels = backend.predict(image.pyramid, model.module, device=device)
    for number, block in enumerate(region.blocks, start=1):
        values = np.asarray(labels[block].compute(scheduler="synchronous"))
        yield BlockDone(block, values, number, len(region.blocks))


def place_labels(image: Any, labels: Any) -> tuple[float, FloatArray]:
    """World px of one pixel of a label store, and the world position of its pixel 0.

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
    factor = size / unit
    return float(factor[-1]), (place - zero) / unit


def default_output(image: ResolvedImage, model_folder: str) -> Path:
    """Where a whole-image prediction goes unless told otherwise: into the model's run folder."""
    stem = Path(image.path).name.split(".")[0] if image.path else image.name.replace(" ", "_")
    folder = Path(model_folder)
    return folder / "predictions" / f"{stem}.ome.zarr"


def remaining_text(seconds: float | None) -> str:
    """Time left, as a person says it."""
    if seconds is None or not np.isfinite(seconds):
        return ""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s left"
    if seconds < 5400:
        return f"about {round(seconds / 60)} min left"
    return f"about {seconds / 3600:.1f} h left"
