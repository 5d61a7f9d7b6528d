"""Stage 6 of 7: an image and a model become a job, everything a worker needs to compute tiles.

Axis letters: L levels, A spatial axes, K classes.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_muvit.data.normalize import Normalization, NormalizationRule, measure
from napari_muvit.data.physical import match_pixel_size
from napari_muvit.data.places import PlaceMap
from napari_muvit.data.tissue import tissue_places
from napari_muvit.errors import ChannelError, InputError, MuvitWarning
from napari_muvit.geometry import FloatArray, default_scaled_axes
from napari_muvit.inference.device import choose_device
from napari_muvit.inference.model_source import ModelSource
from napari_muvit.inference.predictor import Predictor
from napari_muvit.inference.spec import ModelSpec
from napari_muvit.inference.tiles import BoolArray, Region, TilePlan, choose_block, tile_step

if TYPE_CHECKING:
    from napari_muvit.data.pyramid import Pyramid


SMALL_BATCH = 4
"""Tiles of a small model in one call on a CPU: as fast as more, and faster than one by one."""


@dataclass(frozen=True, eq=False)
class Job:
    """What to predict, and with what; picklable.

    Attributes
    ----------
    pyramid, model
        The image, and the model or where to load it.
    plan
        Tiles, cells and blocks.
    normalization
        The image's own offset and scale.
    to_model
        World px of the training images in one of this image's, along each axis.
    cells
        Which cells to predict; the others are left unlabelled and cost nothing.
    batch_size
        Tiles in one call of the model.
    area
        A given mask or region: pixels outside it stay unlabelled in cells that are predicted,
        too. None where whole cells are wanted.
    left_out
        Share of the cells in the region asked for that are empty or outside a given mask.
    """

    pyramid: Pyramid
    model: ModelSource | Predictor
    plan: TilePlan
    normalization: Normalization
    to_model: tuple[float, ...]
    scaled_axes: tuple[int, ...]
    cells: BoolArray
    batch_size: int = 1
    area: PlaceMap | None = None
    left_out: float = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if not key.startswith("_")}

    @property
    def spec(self) -> ModelSpec:
        """What the model reads and means."""
        return self.model.spec

    @cached_property
    def fingerprint(self) -> str:
        """Equal for jobs with equal output: same image, weights, plan, cells and averaging."""
        digest = hashlib.sha256()
        average = getattr(self.model, "average", 1)
        facts = (self.pyramid.fingerprint, self.spec.fingerprint, repr(self.plan), self.to_model,
                 self.scaled_axes, repr(self.normalization.to_dict()), average)
        digest.update(repr(facts).encode())
        digest.update(np.packbits(self.cells).tobytes())
        if self.area is not None:
            area = self.area
            digest.update(repr((area.bounds.tolist(), area.origin.tolist(), area.cell.tolist(),
                                area.mask.shape)).encode())
            digest.update(np.packbits(area.mask).tobytes())
        return digest.hexdigest()[:24]

    def pixels_inside(self, region: Region) -> NDArray[np.bool_] | None:
        """Pixels of an output region that lie in `area`; None if all do."""
        if self.area is None:
            return None
        # the centre of a pixel that the image's edge cuts may lie outside the image
        last = np.nextafter(self.plan.extent[1], -np.inf)
        axes = zip(region, self.output_offset, self.output_scale, last, strict=True)
        inside = self.area.holds_grid([
            np.minimum(place + scale * np.arange(part.start, part.stop), edge)
            for part, place, scale, edge in axes
        ])
        return None if inside.all() else inside

    @cached_property
    def plan_mark(self) -> str:
        """Tells apart jobs whose coarse crops have equal numbers but lie elsewhere."""
        facts = (self.plan.levels, self.plan.scales, self.plan.lowers, self.normalization.to_dict())
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]

    @property
    def output_scale(self) -> tuple[float, ...]:
        """World px of an output pixel along each axis."""
        return self.plan.scales[0]

    @property
    def output_offset(self) -> tuple[float, ...]:
        """World position of the centre of output pixel 0."""
        pairs = zip(self.plan.lowers[0], self.plan.scales[0], strict=True)
        return tuple(lower + scale / 2 for lower, scale in pairs)


def plan_job(
    pyramid: Pyramid, model: ModelSource | Predictor, *, overlap: float = 0.25,
    blend: bool = True, tissue: str = "auto", roi: ArrayLike | None = None,
    batch_size: int | None = None,
) -> Job:
    """The job of predicting `pyramid` with `model`.

    Parameters
    ----------
    overlap
        Share of a tile that neighbours have in common.
    tissue
        ``auto`` leaves empty cells out, ``none`` predicts everything, or the path of a mask at
        any resolution: only pixels whose centre lies in it are predicted.
    roi
        (2, A) world px: only pixels whose centre lies in this box are predicted.
    batch_size
        Tiles in one call of the model; 8 by default, on a CPU 1, or 4 if the model is small.

    Raises
    ------
    InputError
        If the image has another number of spatial axes or channels than the model reads.
    """
    spec = model.spec
    check_image(pyramid, spec)
    scaled_axes = spec.scaled_axes or default_scaled_axes(spec.ndim)
    match = match_pixel_size(spec.levels, spec.pixel_size, pyramid, scaled_axes)
    levels = tuple(float(level) for level in match.levels)
    plan = make_plan(pyramid, spec, levels, scaled_axes, overlap=overlap, blend=blend)
    cells, area, left_out = _wanted(plan, pyramid, tissue, roi)
    return Job(
        pyramid, model, plan, measure_image(spec, pyramid), match.scale, tuple(scaled_axes), cells,
        default_batch(model) if batch_size is None else batch_size, area, left_out,
    )


def _wanted(
    plan: TilePlan, pyramid: Pyramid, tissue: str, roi: ArrayLike | None
) -> tuple[BoolArray, PlaceMap | None, float]:
    """Cells to predict, what they hold to the pixel, and the share that is left out."""
    places = tissue_places(tissue, pyramid)
    area = places if tissue not in {"auto", "none"} else None
    everywhere = PlaceMap.everywhere(pyramid.extent)
    if roi is not None:
        box = parse_roi(roi, pyramid)
        places, everywhere = places.within(box), everywhere.within(box)
        area = everywhere if area is None else places
    cells = cells_in(plan, places)
    left_out = 1 - cells.sum() / max(1, cells_in(plan, everywhere).sum())
    return cells, area, float(left_out)


def check_image(pyramid: Pyramid, spec: ModelSpec) -> None:
    """Refuse an image that the model cannot read.

    Warns
    -----
    MuvitWarning
        If its channels have the names of those in training, in another order.
    """
    if pyramid.ndim != spec.ndim:
        raise InputError(
            f"image {pyramid.name!r} has {pyramid.ndim} spatial axes and the model {spec.ndim}. "
            "Choose a plane with z, or a model that was trained on such images."
        )
    if int(pyramid.shape[0]) != spec.in_channels:
        names = f" ({', '.join(spec.channel_names)})" if spec.channel_names else ""
        raise ChannelError(
            f"image {pyramid.name!r} has {pyramid.shape[0]} channels; the model was trained on "
            f"{spec.in_channels}{names}. Choose as many with channels, in that order."
        )
    ours, theirs = tuple(pyramid.channel_names), spec.channel_names or ()
    has_names = not all(name.isdigit() for name in ours)  # channels without one are numbered
    if has_names and ours != theirs and sorted(ours) == sorted(theirs):
        warnings.warn(
            f"image {pyramid.name!r} has the channels {', '.join(ours)}; the model was trained on "
            f"{', '.join(theirs)}, and reads them in that order. Choose them in the model's order "
            f"when the image is opened: channels={list(theirs)}.", MuvitWarning, stacklevel=3,
        )


def make_plan(
    pyramid: Pyramid, spec: ModelSpec, levels: tuple[float, ...], scaled_axes: tuple[int, ...], *,
    overlap: float, blend: bool,
) -> TilePlan:
    """Tiles over the grid of ``levels[0]``, of size ceil(image / level)."""
    scales, lowers = level_grids(pyramid, levels, scaled_axes)
    extent = np.asarray(pyramid.extent, dtype=np.float64)
    counts = (extent[1] - extent[0]) / scales[0]
    shape = tuple(max(1, math.ceil(round(float(n), 6))) for n in counts)
    step = tile_step(spec.crop_size, overlap)
    block = choose_block(step, shape, 4 * len(spec.class_table))
    lower, upper = (tuple(float(v) for v in edge) for edge in extent)
    return TilePlan(
        levels, _rows(scales), _rows(lowers), (lower, upper), shape, spec.crop_size, step, block,
        blend,
    )


def _rows(values: FloatArray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(v) for v in row) for row in values)


def level_grids(
    pyramid: Pyramid, levels: tuple[float, ...], scaled_axes: tuple[int, ...]
) -> tuple[FloatArray, FloatArray]:
    """Pixel size, and lower outer edge of pixel 0, of each level's grid: (L, A) twice, world px.

    An array near a level serves it with its own factor, and then tiles follow that.
    """
    grids = [pyramid.level_grid(level, scaled_axes) for level in levels]
    scales = np.asarray([grid.factor for grid in grids], dtype=np.float64)
    return scales, np.asarray([grid.offset for grid in grids], dtype=np.float64) - scales / 2


def cells_in(plan: TilePlan, places: PlaceMap) -> BoolArray:
    """Cells of the plan that touch any of the places."""
    held = places.mask
    scale, lower = np.asarray(plan.scales[0]), np.asarray(plan.lowers[0])
    for axis, count in enumerate(plan.num_cells):
        edges = np.minimum(np.arange(count + 1) * plan.step[axis], plan.shape[axis])
        world = np.clip(
            lower[axis] + edges * scale[axis], places.bounds[0, axis], places.bounds[1, axis]
        )
        spots = np.round((world - places.origin[axis]) / places.cell[axis], 6)
        first = np.clip(np.floor(spots[:-1]).astype(int), 0, held.shape[axis])
        past = np.clip(np.ceil(spots[1:]).astype(int), first, held.shape[axis])
        counts = np.insert(np.cumsum(held, axis=axis, dtype=np.int64), 0, 0, axis=axis)
        held = np.take(counts, past, axis=axis) > np.take(counts, first, axis=axis)
        held = held & _along(world[1:] > world[:-1], axis, held.ndim)
    return held


def _along(values: NDArray[np.bool_], axis: int, ndim: int) -> NDArray[np.bool_]:
    return values.reshape([-1 if a == axis else 1 for a in range(ndim)])


def parse_roi(roi: ArrayLike, pyramid: Pyramid) -> FloatArray:
    """A region of interest as (2, A) world px.

    Raises
    ------
    InputError
        If it is no box, or lies outside the image.
    """
    box = np.asarray(roi, dtype=np.float64)
    if box.shape != (2, pyramid.ndim) or not (box[1] > box[0]).all():
        raise InputError(
            f"roi is {np.asarray(roi).tolist()}; it must be [[low, ...], [high, ...]] in "
            f"full-resolution pixels, {pyramid.ndim} numbers each."
        )
    extent = np.asarray(pyramid.extent)
    if not ((box[1] > extent[0]) & (box[0] < extent[1])).all():
        raise InputError(
            f"roi is {box.tolist()}, which lies outside image {pyramid.name!r} of "
            f"{' x '.join(map(str, pyramid.spatial_shape))} px. Pass a box that touches it."
        )
    return box


def measure_image(spec: ModelSpec, pyramid: Pyramid) -> Normalization:
    """The image's own offset and scale under the model's rule."""
    rule = NormalizationRule.from_dict(spec.normalization or {"kind": "none"})
    return measure(rule, pyramid)


def default_batch(model: ModelSource | Predictor) -> int:
    """Tiles in one call: more pay where a device has cores to spare, or a tile is little work."""
    device = getattr(model, "device", "cpu")
    if device == "auto":
        device = choose_device("auto")
    if str(device) == "cpu":
        return SMALL_BATCH if model.spec.is_small else 1
    return 8
