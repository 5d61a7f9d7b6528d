"""Models in folders: our format (YAML and safetensors) and the official project's.

No pickle is ever executed: official weights are read with ``weights_only=True``, official
YAML with a safe loader that knows one more tag, ``!!python/tuple``. Files are written beside
their place and renamed, so that a crash leaves the previous ones whole.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from napari_muvit.errors import CheckpointError, MuvitError, nearest_name
from napari_muvit.models.bioimageio import RDF_FILE, load_bioimageio
from napari_muvit.models.encoder import Encoder
from napari_muvit.models.mae import MAE
from napari_muvit.models.model_files import (
    as_lists,
    as_tuples,
    load_state,
    plain_values,
    read_safe_yaml,
    read_text,
    replace_file,
)
from napari_muvit.models.official_folder import load_official, save_official

__all__ = ["ModelKind", "ModelMeta", "load_model", "save_model", "save_official"]

ModelKind = Literal["mae", "segmenter", "encoder"]
FORMAT = "napari-muvit"
FORMAT_VERSION = 1
CONFIG_FILE = "config.yaml"
WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True)
class ModelMeta:
    """What a model must know about images to be used on a new one.

    ``kind`` of model, ``crop_size`` in px per axis, ``scaled_axes`` (names) that a level
    downsamples, ``pixel_size`` in um per axis, the ``normalization`` rule, the ``classes``
    table, ``channel_names``, and where it comes from (``provenance``).
    """

    kind: ModelKind
    crop_size: tuple[int, ...] | None = None
    scaled_axes: tuple[str, ...] | None = None
    pixel_size: tuple[float, ...] | None = None
    normalization: dict[str, Any] = field(default_factory=dict)
    classes: dict[str, Any] | None = None
    channel_names: tuple[str, ...] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for YAML."""
        return cast(dict[str, Any], as_lists(plain_values(asdict(self))))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelMeta:
        """Undo `to_dict`; unknown keys are left out."""
        known = {f.name for f in fields(cls)}
        given: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known
        }
        return cls(**given)


def save_model(folder: str | Path, model: nn.Module, meta: ModelMeta) -> None:
    """Write `model` as a folder of ours: ``config.yaml`` and ``model.safetensors``.

    An existing model is replaced such that a crash at any moment leaves one whole model: the
    weights carry a copy of their config, which counts when the two files do not match.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = dict(_unique_tensors(model))
    config = {
        "format": FORMAT, "format_version": FORMAT_VERSION, "kind": meta.kind,
        "model": as_lists(plain_values(_arguments(model, meta.kind))), "meta": meta.to_dict(),
        "weights": _digest(tensors),
    }
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    metadata = {"config": text}  # one entry: safetensors writes several in any order
    replace_file(folder / WEIGHTS_FILE, lambda path: _write_tensors(path, tensors, metadata))
    replace_file(folder / CONFIG_FILE, lambda path: path.write_text(text, encoding="utf-8"))


def _write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:  # holds the system's error as text only
        found = re.search(r"os error (\d+)", str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def load_model(folder: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """The model in a folder of ours, of the official project, or in a package for bioimage.io.

    In evaluation mode. Its attribute ``meta`` is a `ModelMeta`, or None for an official folder.

    Raises
    ------
    CheckpointError
        If the folder holds no model, or one that cannot be read.
    """
    folder = Path(folder)
    is_package = (folder / RDF_FILE).is_file()
    if not is_package and not any((folder / n).is_file() for n in (CONFIG_FILE, WEIGHTS_FILE)):
        raise CheckpointError(
            f"{str(folder)!r} holds no {CONFIG_FILE}; it must be a folder that this package or "
            "the official muvit saved. Give the path of such a folder."
        )
    if (folder / WEIGHTS_FILE).is_file():
        model, meta = _load_own(folder)
    elif is_package:
        model, values = load_bioimageio(folder)
        meta = ModelMeta.from_dict(values)
    else:
        model, meta = load_official(folder), None
    model.meta = meta  # type: ignore[assignment]
    return model.to(device).eval()


def _load_own(folder: Path) -> tuple[nn.Module, ModelMeta | None]:
    path = folder / WEIGHTS_FILE
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error}.") from None
    config = _own_config(folder, metadata)
    if config.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{str(folder)!r} has format_version {config.get('format_version')!r}; this version "
            f"reads {FORMAT_VERSION}. Use the napari-muvit version that wrote it."
        )
    try:
        meta = ModelMeta.from_dict(config["meta"])
        arguments = as_tuples(config["model"])
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{str(folder / CONFIG_FILE)!r} lacks or garbles {error}. Restore the file, or delete "
            "it: the weights hold a copy."
        ) from None
    model = build_model(meta.kind, arguments, folder)
    _load_tensors(model, tensors, folder)
    return model, meta


def _own_config(folder: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """``config.yaml``, or the weights' own copy where that file is missing or of other weights."""
    copy = read_safe_yaml(metadata.get("config", ""), folder / WEIGHTS_FILE)
    path = folder / CONFIG_FILE
    if not path.is_file():
        return copy
    config = read_safe_yaml(read_text(path), path)
    if copy and config.get("weights") != copy.get("weights"):
        return copy
    return config


def build_model(kind: str, arguments: Mapping[str, Any], folder: Path) -> nn.Module:
    """A new model from its saved constructor arguments.

    Raises
    ------
    CheckpointError
        If the kind is unknown or the arguments do not fit.
    """
    try:
        if kind == "encoder":
            return Encoder(**arguments)
        if kind == "mae":
            return MAE(**arguments)
        if kind == "segmenter":
            from napari_muvit.models.segmenter import Segmenter

            rest = {k: v for k, v in arguments.items() if k != "encoder"}
            return Segmenter(Encoder(**arguments["encoder"]), **rest)
    except (TypeError, KeyError, MuvitError) as error:
        raise CheckpointError(f"the model in {str(folder)!r} cannot be built: {error}.") from None
    near = nearest_name(kind, ("encoder", "mae", "segmenter"))
    raise CheckpointError(
        f"{str(folder)!r} holds a model of kind {kind!r}; known are encoder, mae and segmenter."
        + (f" Did you mean {near!r}?" if near else "")
    )


def _arguments(model: nn.Module, kind: str) -> dict[str, Any]:
    """Constructor arguments of a model; a segmenter's hold its encoder's."""
    described = cast(Any, model)
    if kind == "segmenter":
        return {**described._config, "encoder": described.encoder.config()}
    return dict(described.config())


def _unique_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights by name, each once: shared frequencies have several names."""
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor.detach().cpu().contiguous()


def _load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Put weights that were saved once each under all their names."""
    state = dict(tensors)
    found: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in tensors:
            found.setdefault(id(tensor), name)
        elif id(tensor) in found:
            state[name] = tensors[found[id(tensor)]]
    load_state(model, state, folder)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Fingerprint of names, shapes and values."""
    total = hashlib.sha256()
    for name, tensor in tensors.items():
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
