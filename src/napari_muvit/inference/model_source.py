"""Which model predicts, and how it runs: from what a user names to a predictor.

A `ModelSource` is small enough to be sent to other processes; the model itself is loaded once
in each of them.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from napari_muvit.errors import CheckpointError, InputError
from napari_muvit.inference.average import AveragedPredictor
from napari_muvit.inference.context import ContextPredictor, shares_context
from napari_muvit.inference.device import (
    PLAIN,
    Computing,
    Kernels,
    Precision,
    choose_device,
    measure_kernels,
)
from napari_muvit.inference.predictor import ModelPredictor, Predictor
from napari_muvit.inference.spec import (
    ModelSpec,
    fingerprint_folder,
    fingerprint_weights,
    read_spec,
)

if TYPE_CHECKING:
    from torch import nn

KernelOption = Literal["auto", "torch"] | Kernels

RUN_MODELS = ("model-best", "model")
"""Where a run folder keeps its models, the preferred first."""

MOST_LOADED = 4
"""Models that are kept in memory; while a run is followed, every checkpoint is a new one."""

_MODULES: dict[tuple[str, str], tuple[nn.Module, ModelSpec]] = {}
_PREDICTORS: dict[ModelSource, Predictor] = {}
_LOAD_LOCK = threading.Lock()


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
    kernels
        Names of the kernels that compute its products on a CPU.
    mark
        Digest of the weights that were planned with; a job never goes on with others.
    """

    folder: str
    device: str = "auto"
    precision: Precision = "fp32"
    threads: int | None = None
    average: int = 1
    kernels: Kernels = PLAIN
    mark: str = ""

    @cached_property
    def spec(self) -> ModelSpec:
        """What planning must know; loads the model."""
        return open_predictor(self).spec


def parse_model(
    model: Any, *, device: str = "auto", precision: Precision = "fp32",
    threads: int | None = None, average: int = 1, kernels: KernelOption = "auto",
) -> ModelSource | Predictor:
    """The model that a user names: a folder, a loaded model, or a predictor.

    Parameters
    ----------
    kernels
        ``auto`` measures which kernels are fastest, once in a process; ``torch`` takes torch's
        own; three names are an earlier choice.

    Raises
    ------
    InputError
        If it is none of these.
    CheckpointError
        If the folder holds no segmentation model.
    """
    if isinstance(model, (str, Path)):
        source = ModelSource(str(Path(model).resolve()), device, precision, threads, average)
        module, spec = _module(source)
        return replace(source, kernels=_kernels(module, source, kernels), mark=spec.fingerprint)
    if isinstance(model, ModelSource):
        return model
    if isinstance(getattr(model, "spec", None), ModelSpec) and callable(model):
        return _averaged(model, average)
    if hasattr(model, "state_dict"):
        from napari_muvit.models.devices import module_on

        spec = read_spec(model, fingerprint_weights)
        source = ModelSource("", device, precision, threads, average)
        source = replace(source, kernels=_kernels(model, source, kernels))
        model = module_on(model, choose_device(device))
        return _averaged(_predictor(model, spec, source), average)
    raise InputError(
        f"model is {type(model).__name__}; pass a run folder, a model folder, or a segmenter "
        "from load_model."
    )


def _kernels(model: nn.Module, source: ModelSource, kernels: KernelOption) -> Kernels:
    if isinstance(kernels, tuple):
        return kernels
    found = measure_kernels(model.encoder, source.device, source.precision)
    return ("torch", "torch", found[2]) if kernels == "torch" else found


def open_predictor(source: ModelSource | Predictor) -> Predictor:
    """The predictor of a source, loaded once in each process.

    Raises
    ------
    CheckpointError
        If the folder now holds other weights than the source was planned with.
    """
    if not isinstance(source, ModelSource):
        return source
    with _LOAD_LOCK:
        if source.mark and source in _PREDICTORS:
            return _PREDICTORS[source]
    model, spec = _module(source)
    if source.mark not in ("", spec.fingerprint):
        raise CheckpointError(
            f"the model in {source.folder!r} was replaced since this prediction was planned. "
            "Start the prediction again, or predict with a copy of the model folder."
        )
    source = replace(source, mark=spec.fingerprint)
    with _LOAD_LOCK:
        if source not in _PREDICTORS:
            make_room(_PREDICTORS)
            _PREDICTORS[source] = _averaged(_predictor(model, spec, source), source.average)
        return _PREDICTORS[source]


def make_room(loaded: dict[Any, Any]) -> None:
    """Forget the models that were loaded first."""
    while len(loaded) >= MOST_LOADED:
        del loaded[next(iter(loaded))]


def _module(source: ModelSource) -> tuple[nn.Module, ModelSpec]:
    """The model of a source and its spec, loaded once in each process."""
    import torch

    from napari_muvit.models.checkpoint import load_model

    if source.threads is not None:
        torch.set_num_threads(source.threads)
    folder = find_model_folder(source.folder)
    with _LOAD_LOCK:
        mark = fingerprint_folder(folder)
        key = (mark, source.device)
        if key not in _MODULES:
            model = load_model(folder, device="cpu")
            if fingerprint_folder(folder) != mark:
                raise CheckpointError(
                    f"the model in {str(folder)!r} was replaced while it was read. Try again."
                )
            make_room(_MODULES)
            _MODULES[key] = model, read_spec(model, lambda _: mark)
        return _MODULES[key]


def _predictor(model: nn.Module, spec: ModelSpec, source: ModelSource) -> ModelPredictor:
    computing = Computing(choose_device(source.device), source.precision, source.kernels)
    is_shared = shares_context(model) and not (spec.is_small and computing.device.type == "cpu")
    kind = ContextPredictor if is_shared else ModelPredictor
    return kind(model, spec, computing)


def find_model_folder(folder: str | Path) -> Path:
    """`folder`, or the model inside it if it is a run: the best if validated, else the last.

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
    inner = (path / name for name in RUN_MODELS)
    return next((found for found in inner if (found / "config.yaml").is_file()), path)


def _averaged(predictor: Predictor, average: int) -> Predictor:
    if average == 1:
        return predictor
    return AveragedPredictor(predictor, average)
