"""What planning must know of a model: levels, crop size, classes, pixel size, normalization."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_muvit.data.labels import ClassTable, make_classes
from napari_muvit.errors import CheckpointError
from napari_muvit.inference.device import is_small

if TYPE_CHECKING:
    from torch import nn

WEIGHTS = ("*.safetensors", "*.pt", "*.pth")
"""Files of weights in the model folders that can be read."""


@dataclass(frozen=True)
class ModelSpec:
    """What planning must know of a model, without the model.

    Attributes
    ----------
    levels, crop_size, ndim, in_channels
        What it reads: factors, pixels per axis, spatial axes, channels.
    class_table
        Classes in channel order; it always has a value for what is not predicted.
    scaled_axes
        Axes that a level downsamples; None for y and x.
    pixel_size
        um of a full-resolution pixel along each axis in training; None if unknown.
    normalization
        The rule's data; None leaves values as they are.
    channel_names
        Names of the channels in training.
    fingerprint
        Equal for equal weights.
    is_small
        Whether a tile is so little work that a CPU computes several in one call, and encodes
        their coarse crops anew, which takes less time than sharing them.
    """

    levels: tuple[float, ...]
    crop_size: tuple[int, ...]
    ndim: int
    in_channels: int
    class_table: ClassTable
    scaled_axes: tuple[int, ...] | None = None
    pixel_size: tuple[float, ...] | None = None
    normalization: dict[str, Any] | None = field(default=None, hash=False)
    channel_names: tuple[str, ...] | None = None
    fingerprint: str = ""
    is_small: bool = False

    def __post_init__(self) -> None:
        """Tell what was never predicted from what was judged to be background."""
        object.__setattr__(self, "class_table", self.class_table.with_unlabelled())


def fingerprint_folder(folder: Path) -> str:
    """A digest of the weights in a model folder: ours, a bioimage.io package, or the official."""
    digest = hashlib.sha256()
    for path in (path for kind in WEIGHTS for path in sorted(folder.glob(kind))):
        with path.open("rb") as file:
            while part := file.read(1 << 22):
                digest.update(part)
    return digest.hexdigest()[:24]


def fingerprint_weights(model: nn.Module) -> str:
    """A digest of a loaded model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()[:24]


def read_spec(model: nn.Module, fingerprint: Callable[[nn.Module], str]) -> ModelSpec:
    """The spec of a loaded segmenter, from its `.meta` and its encoder.

    Parameters
    ----------
    fingerprint
        Gives a digest of the model's weights.

    Raises
    ------
    CheckpointError
        If it is no segmenter, or does not remember its crop size.
    """
    encoder = getattr(model, "encoder", None)
    num_classes = getattr(model, "num_classes", None)
    if encoder is None or num_classes is None:
        raise CheckpointError(
            f"the model is {type(model).__name__}, which does not segment. Fine-tune it first "
            "(napari-muvit's train finetune), and pass the fine-tuned run."
        )
    meta = getattr(model, "meta", None)
    return _read(encoder, meta, _class_table(meta, num_classes), fingerprint(model))


def read_encoder_spec(encoder: nn.Module, fingerprint: Callable[[nn.Module], str]) -> ModelSpec:
    """The spec of a loaded encoder, which has no classes."""
    meta = getattr(encoder, "meta", None)
    return _read(encoder, meta, ClassTable(()), fingerprint(encoder))


def _read(encoder: Any, meta: Any, table: ClassTable, fingerprint: str) -> ModelSpec:
    crop_size = getattr(meta, "crop_size", None) or getattr(encoder, "crop_size", None)
    if crop_size is None:
        raise CheckpointError(
            "the model does not say for which crop size it was trained, so tiles cannot be cut "
            "for it. Set model.encoder.crop_size, for example to (256, 256)."
        )
    ndim = int(encoder.ndim)
    size = _per_axis(crop_size, ndim)
    pixel_size = getattr(meta, "pixel_size", None)
    names = getattr(meta, "channel_names", None)
    return ModelSpec(
        levels=tuple(encoder.levels), crop_size=size, ndim=ndim,
        in_channels=int(encoder.in_channels), class_table=table,
        scaled_axes=_scaled_axes(getattr(meta, "scaled_axes", None), ndim)
        or getattr(encoder, "scaled_axes", None),
        pixel_size=tuple(pixel_size) if pixel_size else None,
        normalization=getattr(meta, "normalization", None) or None,
        channel_names=tuple(names) if names else None, fingerprint=fingerprint,
        is_small=is_small(encoder, size),
    )


def _per_axis(size: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    sizes = (size,) if isinstance(size, int) else tuple(int(n) for n in size)
    return sizes * (ndim // len(sizes))


def _scaled_axes(axes: Sequence[str | int] | None, ndim: int) -> tuple[int, ...] | None:
    """Axis numbers of axes given by number or by name."""
    if not axes:
        return None
    names = "tzyx"[-ndim:]
    return tuple(names.index(axis) if isinstance(axis, str) else int(axis) for axis in axes)


def _class_table(meta: Any, num_classes: int) -> ClassTable:
    classes = getattr(meta, "classes", None)
    if classes:
        return ClassTable.from_dict(classes)
    return ClassTable(make_classes(range(num_classes), background=0), background=0)
