"""Stage 5 of 7, for prediction: nested crops become class probabilities.

A `ModelSource` says which model and how it runs, and is small enough to be sent to other
processes; the model itself is loaded once in each process, and one lock lets one thread at a
time use it. Any callable with a `ModelSpec` can take a model's place.

Axis letters: B batch, L levels, C channels, S spatial extent, A spatial axes, K classes.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from napari_muvit.data.labels import ClassTable, make_classes
from napari_muvit.errors import CheckpointError, InputError, RunError

if TYPE_CHECKING:
    import torch
    from torch import nn

FloatImage = NDArray[np.float32]
Precision = Literal["fp32", "bf16"]

_LOADED: dict[ModelSource, Predictor] = {}
_LOAD_LOCK = threading.Lock()
_MODEL_LOCK = threading.Lock()


@dataclass(frozen=True)
class ModelSpec:
    """What planning must know of a model, without the model.

    Attributes
    ----------
    levels, crop_size, ndim, in_channels
        What it reads: factors, pixels per axis, spatial axes, channels.
    class_table
        Classes in channel order.
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


class Predictor(Protocol):
    """Anything that turns nested crops into probabilities.

    Called with `x` (B, L, C, *S) float32, `bbox` (B, L, 2, A) float64 world px of the model,
    and `valid` (B, L, *S) bool; returns (B, K, *S) float32.
    """

    spec: ModelSpec

    def __call__(
        self, x: FloatImage, bbox: NDArray[np.float64], valid: NDArray[np.bool_]
    ) -> FloatImage: ...


@dataclass(frozen=True)
class FunctionPredictor:
    """A plain function in a model's place: for tests, rules and foreign models."""

    function: Callable[..., Any]
    spec: ModelSpec

    def __call__(
        self, x: FloatImage, bbox: NDArray[np.float64], valid: NDArray[np.bool_]
    ) -> FloatImage:
        return np.asarray(self.function(x, bbox, valid), np.float32)


class ModelPredictor:
    """A segmenter on a device.

    Parameters
    ----------
    model
        Called with (x, bbox); returns logits (B, K, *S).
    spec
        What it reads and means.
    device, precision
        Where and how it runs.
    """

    def __init__(
        self, model: nn.Module, spec: ModelSpec, device: str = "auto",
        precision: Precision = "fp32",
    ) -> None:
        self.spec = spec
        self.device = choose_device(device)
        self.precision = precision
        self.model = model.to(self.device).eval()

    def __call__(
        self, x: FloatImage, bbox: NDArray[np.float64], valid: NDArray[np.bool_]
    ) -> FloatImage:
        import torch

        with torch.inference_mode(), autocast(self.device, self.precision):
            logits = self.model(*self.to_tensors(x, bbox))
            probabilities: FloatImage = logits.float().softmax(dim=1).cpu().numpy()
        return probabilities

    def to_tensors(
        self, x: FloatImage, bbox: NDArray[np.float64]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both on the device, the boxes about the centre of the coarsest one.

        Float32 holds differences of positions to a millionth of the widest view only if the
        positions themselves are small.
        """
        import torch

        origin = bbox[:, -1].mean(axis=1)[:, None, None]
        boxes = torch.from_numpy((bbox - origin).astype(np.float32))
        return torch.from_numpy(x).to(self.device), boxes.to(self.device)


@dataclass(frozen=True)
class ModelSource:
    """Which model, and how it runs: picklable, hashable, the same in every process.

    Attributes
    ----------
    folder
        Model folder, or the folder above it.
    device, precision, threads
        See `PredictConfig`.
    average
        Average over this many flips and quarter turns: 1, 2, 4 or 8.
    """

    folder: str
    device: str = "auto"
    precision: Precision = "fp32"
    threads: int | None = None
    average: int = 1

    @cached_property
    def spec(self) -> ModelSpec:
        """What planning must know; loads the model."""
        return open_predictor(self).spec


def parse_model(
    model: Any, *, device: str = "auto", precision: Precision = "fp32",
    threads: int | None = None, average: int = 1,
) -> ModelSource | Predictor:
    """The model that a user names: a folder, a loaded model, or a predictor.

    Raises
    ------
    InputError
        If it is none of these.
    CheckpointError
        If the folder holds no segmentation model.
    """
    if isinstance(model, (str, Path)):
        folder = str(Path(model).resolve())
        source = ModelSource(folder, device, precision, threads, average)
        open_predictor(source)
        return source
    if isinstance(model, ModelSource):
        return model
    if isinstance(getattr(model, "spec", None), ModelSpec) and callable(model):
        return _averaged(model, average)
    if hasattr(model, "state_dict"):
        predictor = ModelPredictor(model, read_spec(model), device, precision)
        return _averaged(predictor, average)
    raise InputError(
        f"model is {type(model).__name__}; pass a run folder, a model folder, or a segmenter "
        "from load_model."
    )


def open_predictor(source: ModelSource | Predictor) -> Predictor:
    """The predictor of a source, loaded once in each process."""
    if not isinstance(source, ModelSource):
        return source
    with _LOAD_LOCK:
        if source not in _LOADED:
            _LOADED[source] = _load(source)
        return _LOADED[source]


def model_lock() -> threading.Lock:
    """The lock that a thread of this process holds while a model runs."""
    return _MODEL_LOCK


def _load(source: ModelSource) -> Predictor:
    import torch

    from napari_muvit.models.checkpoint import load_model

    if source.threads is not None:
        torch.set_num_threads(source.threads)
    folder = find_model_folder(source.folder)
    model = load_model(folder, device="cpu")
    spec = read_spec(model, fingerprint_folder(folder))
    return _averaged(ModelPredictor(model, spec, source.device, source.precision), source.average)


def find_model_folder(folder: str | Path) -> Path:
    """`folder`, or the ``model`` folder inside it where that is what holds the weights.

    Raises
    ------
    CheckpointError
        If it does not exist.
    """
    path = Path(folder)
    if not path.is_dir():
        raise CheckpointError(
            f"model folder {str(folder)!r} does not exist. Pass the output folder of a "
            "fine-tuning run, or a model folder."
        )
    inner = path / "model"
    return inner if inner.is_dir() and not any(path.glob("model.*")) else path


def fingerprint_folder(folder: Path) -> str:
    """A digest of the weights in a model folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.pt")):
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


def read_spec(model: nn.Module, fingerprint: str | None = None) -> ModelSpec:
    """The spec of a loaded segmenter, from its `.meta` and its encoder.

    Raises
    ------
    CheckpointError
        If it is no segmenter, or does not remember its crop size.
    """
    meta = getattr(model, "meta", None)
    encoder = getattr(model, "encoder", None)
    num_classes = getattr(model, "num_classes", None)
    if encoder is None or num_classes is None:
        raise CheckpointError(
            f"the model is {type(model).__name__}, which does not segment. Fine-tune it first "
            "(napari-muvit's train finetune), and pass the fine-tuned run."
        )
    crop_size = getattr(meta, "crop_size", None) or getattr(encoder, "crop_size", None)
    if crop_size is None:
        raise CheckpointError(
            "the model does not say for which crop size it was trained, so tiles cannot be cut "
            "for it. Set model.encoder.crop_size, for example to 256."
        )
    ndim = int(encoder.ndim)
    pixel_size = getattr(meta, "pixel_size", None)
    names = getattr(meta, "channel_names", None)
    return ModelSpec(
        levels=tuple(encoder.levels), crop_size=_per_axis(crop_size, ndim), ndim=ndim,
        in_channels=int(encoder.in_channels), class_table=_class_table(meta, num_classes),
        scaled_axes=_scaled_axes(getattr(meta, "scaled_axes", None), ndim),
        pixel_size=tuple(pixel_size) if pixel_size else None,
        normalization=getattr(meta, "normalization", None) or None,
        channel_names=tuple(names) if names else None,
        fingerprint=fingerprint_weights(model) if fingerprint is None else fingerprint,
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


def choose_device(name: str) -> torch.device:
    """The device that `name` means here; ``auto`` takes the fastest kind there is.

    Raises
    ------
    RunError
        If the device cannot be used here.
    """
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    kind = name.split(":")[0]
    index = int(name.split(":")[1]) if ":" in name else 0
    if (kind == "cuda" and (not cuda or index >= torch.cuda.device_count())) or (
        kind == "mps" and not mps
    ):
        raise RunError(
            f"device {name!r} cannot be used here; torch {torch.__version__} finds no such "
            "device. Take device auto, or run napari-muvit doctor to see why."
        )
    return torch.device(name)


def autocast(device: torch.device, precision: Precision) -> Any:
    """The context in which a model runs in `precision`."""
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def _averaged(predictor: Predictor, average: int) -> Predictor:
    if average == 1:
        return predictor
    from napari_muvit.inference.average import AveragedPredictor

    return AveragedPredictor(predictor, average)
