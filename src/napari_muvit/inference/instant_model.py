"""What was learned in an instant as a model: predicted, saved and scored like any other.

Filters of the image stay behind, since a model sees crops only: the head is fitted once more,
in a moment, on the encoder's features alone, taken from the same cache.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.errors import InputError
from napari_muvit.inference.instant import InstantPrediction, _Head, _world
from napari_muvit.inference.instant_features import TILE

if TYPE_CHECKING:
    from napari_muvit.models.segmenter import Segmenter

UNSEEN = -1e4
"""Logit of a class that nobody has painted: its probability is zero."""


def instant_segmenter(prediction: InstantPrediction) -> Segmenter:
    """A segmenter with a linear head, learned from all that is painted.

    Parameters
    ----------
    prediction
        Whose strokes and cached features teach; made with a model, whose encoder is copied.

    Returns
    -------
    Segmenter
        With a ``.meta``: for `predict`, `predict_to_zarr` and `save_model`.

    Raises
    ------
    InputError
        If there is no model, fewer than two classes are painted, or its levels do not fit.
    """
    import torch

    from napari_muvit.models.segmenter import Segmenter

    model = prediction._model
    if model is None:
        raise InputError(
            "this instant prediction has no model; filters alone make none. Make it with a model."
        )
    encoder = getattr(model, "encoder", model)
    head = _fit(prediction, finest_level(encoder.levels))
    num_classes = len(prediction._store.classes)
    found = Segmenter(copy.deepcopy(encoder), num_classes, decoder="linear").eval()
    weights = head.weights.reshape(len(encoder.levels), encoder.dim, -1)
    linear: Any = found.head
    with torch.no_grad():
        linear.bias.fill_(UNSEEN)
        for column, index in enumerate(head.classes.tolist()):
            linear.weight[:, index] = torch.from_numpy(weights[..., column].copy())
            linear.bias[index] = float(head.bias[column])
    _describe(found, prediction, model)
    return found


def finest_level(levels: Sequence[float]) -> int:
    """The finest of a model's levels, at which its head is fitted.

    Raises
    ------
    InputError
        If it is no whole number.
    """
    level = levels[0]
    if level != int(level):
        raise InputError(
            f"the model's finest level is {level:g}; an instant model needs a whole number. "
            "Choose another model."
        )
    return int(level)


def _fit(prediction: InstantPrediction, level: int) -> _Head:
    shape = np.asarray(prediction._pyramid.spatial_shape)
    middle = shape / 2
    middle[-2:] /= level
    values: list[NDArray[np.float32]] = []
    classes: list[NDArray[np.int64]] = []
    for tile in prediction._labelled_tiles(level, middle.tolist()):
        pixels, found = prediction._choose_pixels(level, tile, prediction._labels(level, tile))
        points = _world(level, pixels + np.asarray(tile[-2:]) * TILE)
        values.append(prediction._encoder_at(level, tile, points))
        classes.append(found)
    if len({index for found in classes for index in found.tolist()}) < 2:
        raise InputError(
            "an instant model needs strokes of at least two classes. Paint a little of another "
            "class, background for example."
        )
    return _Head.fit(np.concatenate(values), np.concatenate(classes))


def _describe(found: Any, prediction: InstantPrediction, model: Any) -> None:
    """Give a segmenter what the encoder's model knows, with the image's classes and pixel size."""
    from napari_muvit.models.checkpoint import ModelMeta

    own = getattr(model, "meta", None) or ModelMeta("encoder")
    encoder = prediction._encoder((0,) * (len(prediction._pyramid.spatial_shape) - 2))
    sizes = prediction._pyramid.pixel_size
    found.meta = replace(
        own, kind="segmenter", crop_size=(encoder.size,) * 2,
        classes=prediction._store.classes.to_dict(),
        pixel_size=tuple(sizes[0][-2:]) if sizes and sizes[0] else None,
    )
