"""The official project's model folders: ``config.yaml`` and ``model.pth``, read without pickle.

Config files hold ``!!python/tuple``; the weights' names are the same as ours.
"""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from torch import Tensor, nn

from napari_muvit.errors import CheckpointError, MuvitError
from napari_muvit.models.encoder import Encoder
from napari_muvit.models.mae import MAE
from napari_muvit.models.model_files import (
    OfficialDumper,
    filled_folder,
    load_state,
    plain_values,
    read_safe_yaml,
    read_text,
    replace_file,
)

CONFIG_FILE = "config.yaml"
OFFICIAL_WEIGHTS_FILE = "model.pth"

_UNREADABLE = (
    OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError,
    pickle.UnpicklingError, struct.error,
)
"""What reading a damaged or hostile file may raise."""


def read_official(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Constructor arguments and weights in a folder that the official ``save`` wrote.

    Raises
    ------
    CheckpointError
        If a file is missing, damaged, or holds more than plain values and tensors.
    """
    folder = Path(folder)
    path = folder / CONFIG_FILE
    config = read_safe_yaml(read_text(path), path)
    if "use_rotary_embed" in config:
        if "rotary_mode" in config:
            raise CheckpointError(
                f"{str(path)!r} holds both 'use_rotary_embed' (deprecated) and 'rotary_mode'; "
                "only one may be there. Remove 'use_rotary_embed'."
            )
        config["rotary_mode"] = "per_layer" if config.pop("use_rotary_embed") else "none"
    return config, read_weights(folder / OFFICIAL_WEIGHTS_FILE)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name, unpickled by torch's restricted reader.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, or holds anything else.
    """
    if not path.is_file():
        raise CheckpointError(
            f"there is no {str(path)!r}; an official model folder holds {OFFICIAL_WEIGHTS_FILE}. "
            "Read a folder of our own format with load_model."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{str(path)!r} cannot be read safely: {reason}") from None
    is_named = isinstance(state, dict) and all(isinstance(v, Tensor) for v in state.values())
    if not is_named:
        raise CheckpointError(
            f"{str(path)!r} does not hold tensors by name. Save the model's state_dict."
        )
    return cast(dict[str, Tensor], state)


def load_official(folder: str | Path) -> Encoder | MAE:
    """The encoder or autoencoder in a folder that the official ``save`` wrote.

    Raises
    ------
    CheckpointError
        See `read_official`; also if weights and config do not fit.
    """
    config, state = read_official(folder)
    kind = MAE if "decoder_mode" in config else Encoder
    try:
        model = kind(**config)
    except (TypeError, MuvitError) as error:
        raise CheckpointError(
            f"the model in {str(folder)!r} cannot be built: {error}."
        ) from None
    load_state(model, state, Path(folder))
    return model


def save_official(
    folder: str | Path, model: nn.Module, overwrite: bool = False
) -> None:
    """Write an encoder or autoencoder as the official project's folder.

    Raises
    ------
    CheckpointError
        If the official project has no such model, or the folder exists.
    """
    folder = Path(folder)
    check_exportable(model)
    if folder.exists() and not overwrite:
        raise CheckpointError(
            f"Path already exists: {folder}. Pass overwrite=True, or another folder."
        )
    config = plain_values(cast(Any, model)._config)
    text = yaml.dump(config, Dumper=OfficialDumper)
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    with filled_folder(folder) as made:
        replace_file(made / OFFICIAL_WEIGHTS_FILE, lambda path: torch.save(state, path))
        replace_file(made / CONFIG_FILE, lambda path: path.write_text(text, encoding="utf-8"))


def check_exportable(model: nn.Module) -> None:
    """Refuse what the official project would read as another model.

    Raises
    ------
    CheckpointError
        Naming the option that the official project lacks.
    """
    encoder = getattr(model, "encoder", model)
    if not isinstance(model, MAE) and not isinstance(model, Encoder) and encoder is not model:
        raise CheckpointError(
            f"a {type(model).__name__} cannot be written in the official format, which has no "
            "segmentation heads. Export model.encoder instead."
        )
    if getattr(encoder, "attention_mode", "all") == "coarse_to_fine":
        raise CheckpointError(
            "attention_mode='coarse_to_fine' cannot be written in the official format, which has "
            "no such mode ('causal' is the opposite direction). Keep the model in our format."
        )
    if getattr(model, "decoder_context", "all") == "visible":
        raise CheckpointError(
            "decoder_context='visible' cannot be written in the official format, whose decoders "
            "look at all tokens. Export model.encoder instead, or keep the model in our format."
        )
    if getattr(encoder, "token_coordinates", "span") == "centre":
        raise CheckpointError(
            "token_coordinates='centre' cannot be written in the official format, which knows "
            "the 'span' formula only and would misplace patches. Keep the model in our format."
        )
