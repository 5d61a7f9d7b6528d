"""Stage 4 of 7, for whole images: encoder features of one level as a lazy array.

The image is tiled on the grid of the wanted level in whole patches; each tile is the middle of
a crop of that level, the finer crops lie in its centre and the coarser ones hold it.

Axis letters: B batch, L levels, D width, A spatial axes, S' patches along each axis.
"""

from __future__ import annotations

import threading
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.data.physical import match_pixel_size
from napari_muvit.errors import CheckpointError, InputError
from napari_muvit.geometry import FloatArray, default_scaled_axes
from napari_muvit.inference.device import Computing, choose_device, measure_kernels
from napari_muvit.inference.engine import FloatImage
from napari_muvit.inference.job import Job, check_image, default_batch, level_grids, measure_image
from napari_muvit.inference.model_source import (
    KernelOption,
    ModelSource,
    find_model_folder,
    make_room,
)
from napari_muvit.inference.predictor import FunctionPredictor, ModelPredictor, model_lock
from napari_muvit.inference.reader import TileBatch, TileReader
from napari_muvit.inference.spec import (
    ModelSpec,
    fingerprint_folder,
    fingerprint_weights,
    read_encoder_spec,
)
from napari_muvit.inference.tiles import Index, Tile, TilePlan, choose_block, context_pixel

if TYPE_CHECKING:
    from collections.abc import Callable

    import dask.array as da
    from torch import nn

    from napari_muvit.data.pyramid import Pyramid
    from napari_muvit.inference.device import Precision


@dataclass(frozen=True)
class FeaturePlan(TilePlan):
    """Tiles over the grid of the level number `base`; finer crops lie in their centre.

    `shape`, `size`, `step` and `block` count pixels of that level.
    """

    base: int = 0

    def tile(self, index: Index) -> Tile:
        """The tile at a place in the grid of tiles."""
        start = tuple(int(s[i]) for s, i in zip(self.starts, index, strict=True))
        image = np.asarray(self.extent)
        boxes = {self.base: self._box(self.base, np.asarray(start))}
        for number in range(self.base - 1, -1, -1):
            boxes[number] = self._box(number, self._centred(number, boxes[number + 1], image))
        for number in range(self.base + 1, len(self.levels)):
            scale, lower = np.asarray(self.scales[number]), np.asarray(self.lowers[number])
            boxes[number] = self._box(
                number, context_pixel(boxes[number - 1], scale, lower, self.size, image)
            )
        corners = np.stack([boxes[number][0] for number in range(len(self.levels))])
        context = tuple(
            tuple(int(k) for k in self._pixel(number, corners[number]))
            for number in range(1, len(self.levels))
        )
        return Tile(tuple(index), start, corners, context)

    def _box(self, number: int, first: NDArray[Any]) -> FloatArray:
        scale = np.asarray(self.scales[number])
        corner = np.asarray(self.lowers[number]) + scale * first
        return np.stack([corner, corner + scale * np.asarray(self.size)])

    def _pixel(self, number: int, corner: FloatArray) -> FloatArray:
        place: FloatArray = np.rint(
            (corner - np.asarray(self.lowers[number])) / np.asarray(self.scales[number]))
        return place

    def _centred(self, number: int, outer: FloatArray, image: FloatArray) -> FloatArray:
        """First pixel of a finer crop in the middle of `outer`, inside the image if possible."""
        extent = np.asarray(self.scales[number]) * np.asarray(self.size)
        low = np.maximum(outer[0], image[0])
        high = np.maximum(np.minimum(outer[1], image[1]) - extent, low)
        return self._pixel(number, np.clip(outer.mean(axis=0) - extent / 2, low, high))


class FeaturePredictor(ModelPredictor):
    """An encoder: `features` takes the place of a segmenter's probabilities."""

    def features(self, batch: TileBatch, number: int) -> FloatImage:
        """Features (B, D, *grid) of level number `number`."""
        import torch

        with torch.inference_mode(), self.computing():
            encoder: Any = self.model
            maps = encoder.compute_features(*self.to_tensors(batch.x, batch.bbox))
            found: FloatImage = maps[:, number].float().cpu().numpy()
        return found


@dataclass(frozen=True)
class EncoderSource:
    """Which encoder, and how it runs; picklable where it comes from a folder.

    Attributes
    ----------
    source
        Its folder and the mark of the weights there; an empty folder where it is an object.
    encoder
        The object, kept no longer than this is.
    """

    source: ModelSource
    encoder: Any = None

    def open(self) -> FeaturePredictor:
        """The encoder on its device; one from a folder is loaded once in each process.

        Raises
        ------
        CheckpointError
            If the folder now holds other weights.
        """
        opened: FeaturePredictor | None = self.__dict__.get("_opened")
        if opened is None:
            from napari_muvit.models.devices import module_on

            source, encoder = self.source, self.encoder
            digest: Callable[[nn.Module], str] = fingerprint_weights
            if encoder is None:
                encoder, digest = _load_encoder(source), lambda _: source.mark
            device = choose_device(source.device)
            if self.encoder is not None:
                encoder = module_on(encoder, device)
            computing = Computing(device, source.precision, source.kernels)
            opened = FeaturePredictor(encoder, read_encoder_spec(encoder, digest), computing)
            self.__dict__["_opened"] = opened
        return opened

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if not key.startswith("_")}


_ENCODERS: dict[tuple[str, str], nn.Module] = {}
"""Encoders by mark of their weights and device, in this process; the last few."""

_LOAD_LOCK = threading.Lock()


def features(
    source: Any, model: Any, level: float = 1, *, overlap: float = 0.25, channels: Any = None,
    t: int | None = None, z: int | None = None, image: str | int | None = None,
    batch_size: int | None = None, device: str = "auto", precision: Precision = "fp32",
    threads: int | None = None, kernels: KernelOption = "auto",
) -> da.Array:
    """Features of every patch of one level, (D, *S'), computed where and when they are asked for.

    Parameters
    ----------
    source
        Anything that `open_pyramid` takes.
    model
        Run or model folder, pretrained or fine-tuned, or a loaded encoder, autoencoder or
        segmenter.
    level
        One of the model's levels.
    overlap
        Share of a crop that is context for its neighbours.

    Raises
    ------
    InputError
        If the model has no such level, or cannot read the image.
    """
    from napari_muvit.data.pyramid import open_pyramid

    chosen = parse_encoder(
        model, device=device, precision=precision, threads=threads, kernels=kernels)
    spec = chosen.open().spec
    if level not in spec.levels:
        raise InputError(
            f"level is {level}; the model has the levels {', '.join(map(str, spec.levels))}. "
            "Pass one of them."
        )
    pyramid = open_pyramid(source, channels=channels, t=t, z=z, image=image)
    return _lazy(_plan_job(pyramid, chosen, spec.levels.index(level), overlap, batch_size))


def _plan_job(
    pyramid: Pyramid, chosen: EncoderSource, base: int, overlap: float, batch_size: int | None
) -> FeatureJob:
    spec = chosen.open().spec
    encoder: Any = chosen.open().model
    check_image(pyramid, spec)
    patch = tuple(encoder.patch_size)
    match = match_pixel_size(spec.levels, spec.pixel_size, pyramid, _axes(spec))
    matched = replace(spec, levels=tuple(float(value) for value in match.levels))
    plan = plan_features(pyramid, matched, base, patch, overlap)
    job = Job(
        pyramid, FunctionPredictor(_no_probabilities, spec), plan, measure_image(spec, pyramid),
        match.scale, _axes(spec), np.ones(plan.num_cells, bool),
        default_batch(chosen.open()) if batch_size is None else batch_size,
    )
    return FeatureJob(job, chosen, patch, encoder.dim)


def _no_probabilities(*_: Any) -> FloatImage:
    raise InputError("this job computes features, not probabilities.")


@dataclass(frozen=True, eq=False)
class FeatureJob:
    """What to compute: tiles of `job`, by an encoder, in patches."""

    job: Job
    encoder: EncoderSource
    patch: Index
    dim: int

    def compute(self, index: Index) -> FloatImage:
        """Features (D, *patches) of one block."""
        plan: Any = self.job.plan
        region = plan.block_region(index)
        predictor = self.encoder.open()
        reader = self._reader()
        out = np.zeros((self.dim, *(
            (part.stop - part.start) // p for part, p in zip(region, self.patch, strict=True)
        )), np.float32)
        indices = plan.tiles_in(region)
        for first in range(0, len(indices), self.job.batch_size):
            part = indices[first:first + self.job.batch_size]
            batch = reader.read([plan.tile(i) for i in part])
            with model_lock():
                maps = predictor.features(batch.padded(self.job.batch_size), plan.base)
            for tile, values in zip(part, maps[: len(part)], strict=True):
                target, inside, _ = plan.overlap(tile, region)
                out[(slice(None), *self._patches(target))] = values[
                    (slice(None), *self._patches(inside))]
        return out

    def _patches(self, region: tuple[slice, ...]) -> tuple[slice, ...]:
        pairs = zip(region, self.patch, strict=True)
        return tuple(slice(part.start // p, part.stop // p) for part, p in pairs)

    def _reader(self) -> TileReader:
        if "_own_reader" not in self.__dict__:
            self.__dict__["_own_reader"] = TileReader(self.job)
        reader: TileReader = self.__dict__["_own_reader"]
        return reader

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if not key.startswith("_")}


def plan_features(
    pyramid: Pyramid, spec: ModelSpec, base: int, patch: Index, overlap: float
) -> FeaturePlan:
    """Tiles over one level's grid, filled up to whole patches; cells are whole patches too."""
    scales, lowers = level_grids(pyramid, tuple(spec.levels), _axes(spec))
    extent = np.asarray(pyramid.extent, dtype=np.float64)
    counts = np.ceil(np.round((extent[1] - extent[0]) / scales[base], 6))
    shape = tuple(int(-(-n // p) * p) for n, p in zip(counts, patch, strict=True))
    step = tuple(
        n - 2 * p * min(round(n * overlap / 2 / p), (n // p - 1) // 2)
        for n, p in zip(spec.crop_size, patch, strict=True)
    )
    values = [tuple(tuple(float(v) for v in row) for row in rows) for rows in (scales, lowers)]
    edges = tuple(tuple(float(v) for v in edge) for edge in extent)
    return FeaturePlan(
        tuple(float(v) for v in spec.levels), values[0], values[1], (edges[0], edges[1]), shape,
        spec.crop_size, step, choose_block(step, shape, 64), blend=False, base=base,
    )


def parse_encoder(
    model: Any, *, device: str = "auto", precision: Precision = "fp32",
    threads: int | None = None, kernels: KernelOption = "auto",
) -> EncoderSource:
    """The encoder that a user names by a folder or as a loaded model; a parsed one stays as it is.

    Raises
    ------
    CheckpointError
        If it is no model with an encoder.
    """
    if isinstance(model, EncoderSource):
        return model
    if isinstance(model, (str, Path)):
        path = find_model_folder(model).resolve()
        encoder, folder, mark = None, str(path), fingerprint_folder(path)
    else:
        encoder, folder, mark = _encoder_of(model), "", ""
    source = ModelSource(folder, device, precision, threads, mark=mark)
    loaded = _load_encoder(source) if encoder is None else encoder
    found = kernels if isinstance(kernels, tuple) else measure_kernels(loaded, device, precision)
    names = ("torch", "torch", found[2]) if kernels == "torch" else found
    return EncoderSource(replace(source, kernels=names), encoder)


def _load_encoder(source: ModelSource) -> nn.Module:
    from napari_muvit.models.checkpoint import load_model

    key = source.mark, source.device
    with _LOAD_LOCK:
        if key not in _ENCODERS:
            encoder = _encoder_of(load_model(source.folder))
            if fingerprint_folder(Path(source.folder)) != source.mark:
                raise CheckpointError(
                    f"the model in {source.folder!r} was replaced since it was chosen. Ask for "
                    "the features again, or use a copy of the model folder."
                )
            make_room(_ENCODERS)
            _ENCODERS[key] = encoder
        return _ENCODERS[key]


def _encoder_of(model: Any) -> nn.Module:
    encoder = getattr(model, "encoder", model)
    if not hasattr(encoder, "compute_features"):
        raise CheckpointError(
            f"the model is {type(model).__name__}, which has no encoder. Pass a MuViT encoder, "
            "autoencoder or segmenter, or the folder of one."
        )
    encoder.meta = getattr(model, "meta", None)
    found: nn.Module = encoder
    return found


def _axes(spec: ModelSpec) -> tuple[int, ...]:
    return spec.scaled_axes or default_scaled_axes(spec.ndim)


def _lazy(job: FeatureJob) -> da.Array:
    import dask.array as da
    from dask.highlevelgraph import HighLevelGraph

    plan = job.job.plan
    mark = uuid.uuid4().hex
    name, key = f"muvit-features-{mark}", f"muvit-feature-job-{mark}"
    graph: dict[Any, Any] = {key: job}
    for index in np.ndindex(*plan.num_blocks):
        graph[(name, 0, *index)] = (compute_features_block, key, index)
    sizes = zip(plan.shape, plan.block, job.patch, strict=True)
    chunks = [tuple(min(b, n - s) // p for s in range(0, n, b)) for n, b, p in sizes]
    layer = HighLevelGraph.from_collections(name, graph, dependencies=[])
    return da.Array(layer, name, ((job.dim,), *chunks), dtype=np.float32)


def compute_features_block(job: FeatureJob, index: Index) -> FloatImage:
    """One block of `features`."""
    return job.compute(index)
