"""What a place attended to, at every level: the picture of a multi-resolution decision.

One nested crop is read around the place, as prediction would read it there.

Axis letters: L levels, A spatial axes, H heads, S' patches along each axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_muvit.data.physical import match_pixel_size
from napari_muvit.errors import InputError
from napari_muvit.geometry import FloatArray, crop_extents, default_scaled_axes
from napari_muvit.inference.features import FeaturePredictor, parse_encoder
from napari_muvit.inference.job import check_image, measure_image
from napari_muvit.inference.predictor import model_lock

if TYPE_CHECKING:
    from napari_muvit.inference.device import Precision
    from napari_muvit.inference.model_source import KernelOption


@dataclass(frozen=True, eq=False)
class AttentionView:
    """Where one patch of the finest level looked.

    Attributes
    ----------
    levels
        The model's levels.
    weights
        (L, *S') float32, the mean over the heads; they sum to 1 over levels and places.
    boxes
        (L, 2, A) world px: outer edges of what each level shows.
    """

    levels: tuple[float, ...]
    weights: NDArray[np.float32]
    boxes: FloatArray

    def shares(self) -> tuple[float, ...]:
        """How much of the attention each level got."""
        axes = tuple(range(1, self.weights.ndim))
        return tuple(float(share) for share in self.weights.sum(axis=axes))


def attention_view(
    source: Any, model: Any, place: ArrayLike, *, layer: int = -1, channels: Any = None,
    t: int | None = None, z: int | None = None, image: str | int | None = None,
    device: str = "auto", precision: Precision = "fp32", threads: int | None = None,
    kernels: KernelOption = "auto",
) -> AttentionView:
    """Where the patch at `place` looked in one layer of the encoder.

    Parameters
    ----------
    source
        Anything that `open_pyramid` takes.
    model
        Run or model folder, pretrained or fine-tuned, or a loaded encoder, autoencoder or
        segmenter.
    place
        (A,) world px, inside the image.
    layer
        Which layer, the first being 0; the last by default.

    Raises
    ------
    InputError
        If the place is outside the image, there is no such layer, or the model cannot read the
        image.
    """
    from napari_muvit.data.pyramid import open_pyramid

    predictor = parse_encoder(
        model, device=device, precision=precision, threads=threads, kernels=kernels).open()
    encoder: Any = predictor.model
    if not -encoder.num_layers <= layer < encoder.num_layers:
        raise InputError(
            f"layer is {layer}; the encoder has {encoder.num_layers} layers. Pass 0 to "
            f"{encoder.num_layers - 1}."
        )
    pyramid = open_pyramid(source, channels=channels, t=t, z=z, image=image)
    return _look(predictor, pyramid, np.asarray(place, np.float64), layer)


def _look(
    predictor: FeaturePredictor, pyramid: Any, where: FloatArray, layer: int
) -> AttentionView:
    import torch

    encoder: Any = predictor.model
    spec = predictor.spec
    check_image(pyramid, spec)
    axes = spec.scaled_axes or default_scaled_axes(spec.ndim)
    match = match_pixel_size(spec.levels, spec.pixel_size, pyramid, axes)
    corners = _corners(pyramid, where, crop_extents(match.levels, spec.crop_size, spec.ndim, axes))
    crop: Any = pyramid.crop(
        corner=corners, levels=match.levels, size=spec.crop_size, scaled_axes=axes)
    x, _ = measure_image(spec, pyramid).apply_where(crop.image, crop.valid)
    patches = np.asarray(spec.crop_size) // np.asarray(encoder.patch_size)
    query = _patch_at(where, crop.bbox[0], patches)
    with model_lock(), torch.inference_mode(), predictor.computing():
        tensors = predictor.to_tensors(x[None], match.to_model(crop.bbox)[None])
        found = encoder.attention_map(
            *tensors, layer=layer, queries=torch.tensor([query], device=predictor.device))
        weights = found[0, :, 0].float().mean(dim=0).cpu().numpy()
    return AttentionView(tuple(float(level) for level in spec.levels), weights, crop.bbox)


def _patch_at(place: FloatArray, box: FloatArray, patches: NDArray[Any]) -> int:
    """Number of the finest level's patch that holds `place`."""
    share = (place - box[0]) / (box[1] - box[0])
    index = np.clip(np.floor(share * patches), 0, patches - 1).astype(int)
    return int(np.ravel_multi_index(tuple(index), tuple(patches)))


def _corners(pyramid: Any, place: FloatArray, extents: FloatArray) -> FloatArray:
    """Lower edges (L, A) of crops around `place`, inside the image where they fit."""
    image = np.asarray(pyramid.extent, np.float64)
    if place.shape != (pyramid.ndim,) or np.any(place < image[0]) or np.any(place > image[1]):
        raise InputError(
            f"place is {place.tolist()}; the image {pyramid.name!r} reaches from "
            f"{image[0].tolist()} to {image[1].tolist()} world px. Choose a place inside."
        )
    highest = np.maximum(image[1] - extents, image[0])
    corners: FloatArray = np.clip(place - extents / 2, image[0], highest)
    return corners
