"""What a fine-tuning starts from: a run or model folder, or an address that is fetched."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from napari_muvit.config import FinetuneConfig, RunConfig, parse_config
from napari_muvit.errors import CheckpointError, ConfigError, nearest_name
from napari_muvit.models.checkpoint import load_model
from napari_muvit.models.encoder import Encoder
from napari_muvit.training.fetch import MARKS, fetch_model, is_address
from napari_muvit.training.folder import RunFolder, find_model

ADOPTED = (
    "dim", "num_layers", "heads", "patch_size", "token_coordinates", "rope_frequencies",
    "rotary_mode", "attention_mode",
)
"""Options that a pretrained encoder brings along."""

MOST_LISTED = 200
"""Folders that are looked into for the one that may have been meant."""


def load_pretrained(config: RunConfig, place: RunFolder | None = None) -> Encoder | None:
    """The encoder that `config` starts from, None where it starts from random weights.

    Parameters
    ----------
    place
        Folder of a run that goes on; the model that it has saved is taken first.

    Raises
    ------
    ConfigError, CheckpointError
        If there is none at the given place.
    """
    if not isinstance(config, FinetuneConfig) or config.pretrained is None:
        return None
    own = None if place is None else load_own(place)
    if own is not None:
        return own
    given = config.pretrained
    if is_address(given):
        folder = find_model(fetch_model(given))
    else:
        check_model_folder(given)
        folder = find_model(Path(given).expanduser())
    encoder = _encoder_of(load_model(folder))
    if encoder is None:
        raise ConfigError(
            f"pretrained is {given!r}, which holds no encoder. Pass the folder of a "
            "pretraining run.", field="pretrained",
        )
    missing = [level for level in config.levels if level not in encoder.levels]
    if missing:
        known = ", ".join(f"{level:g}" for level in encoder.levels)
        raise ConfigError(
            f"levels are {config.levels}; the pretrained model {given!r} was trained with the "
            f"levels {known} and has no {missing[0]:g}. Take some of these, or another model.",
            field="levels",
        )
    return encoder


def load_own(place: RunFolder) -> Encoder | None:
    """The encoder of the model that a run has saved; None where it starts over.

    Its architecture is what counts, since the checkpoint brings the weights: the model that the
    run began with may be gone.
    """
    if not place.state_path.exists():
        return None
    with suppress(CheckpointError):
        return _encoder_of(load_model(place.model_folder(best=False)))
    return None


def _encoder_of(model: nn.Module) -> Encoder | None:
    encoder = getattr(model, "encoder", model)
    return encoder if isinstance(encoder, Encoder) else None


def check_model_folder(given: str) -> None:
    """Refuse a path at which no model lies, naming the nearest one that does.

    Raises
    ------
    ConfigError
        Saying what is there instead.
    """
    path = Path(given).expanduser()
    if is_model_folder(path):
        return
    if path.is_dir():
        what = "which is a folder without a model"
    else:
        what = "which is a file" if path.exists() else "which does not exist"
    raise ConfigError(
        f"pretrained is {given!r}, {what}; it must be a run or model folder, hf://owner/name or "
        f"the URL of an archive. {_advice(given, path)}", field="pretrained",
    )


def is_model_folder(path: Path) -> bool:
    """Whether a run or a model lies at `path`."""
    return any((path / name).is_file() for name in MARKS)


def _advice(given: str, path: Path) -> str:
    """The model that was probably meant; else those nearby."""
    inside = list(_models_in(path))
    if inside:
        return f"Did you mean {str(inside[0])!r}, which lies inside?"
    beside = {entry.name: entry for entry in _models_in(path.parent)}
    near = nearest_name(path.name, beside)
    if near is not None:
        return f"Did you mean {str(beside[near])!r}?"
    if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", given):
        return f"A Hugging Face repository is written hf://{given}."
    names = ", ".join(sorted(beside)[:3])
    return f"Models there are: {names}." if names else "Pass what a pretraining run wrote."


def _models_in(folder: Path) -> Iterator[Path]:
    """Model and run folders directly in `folder`."""
    try:
        entries = sorted(folder.iterdir())[:MOST_LISTED] if folder.is_dir() else []
    except PermissionError:
        return
    yield from (entry for entry in entries if entry.is_dir() and is_model_folder(entry))


def adopt_encoder(config: RunConfig, encoder: Encoder) -> RunConfig:
    """`config` with the sizes of a pretrained encoder, so that the run's config is complete.

    Raises
    ------
    ConfigError
        If the config asks for another size itself.
    """
    own = {**encoder.config(), "patch_size": tuple(encoder.patch_size)}
    found: dict[str, Any] = {}
    for name in ADOPTED:
        asked = getattr(config, name)
        value = own[name]
        same = _alike(asked, value)
        if name in config.model_fields_set and asked is not None and not same:
            raise ConfigError(
                f"{name} is {asked!r}; the pretrained model has {value!r}. Leave {name} out, or "
                "choose another pretrained model.", field=name,
            )
        found[name] = value
    return parse_config(type(config), {**config.model_dump(), **found})


def _alike(asked: Any, value: Any) -> bool:
    if isinstance(asked, tuple) and isinstance(value, tuple):
        return asked in (value, value[:1]) and len(set(value)) in {1, len(asked)}
    return bool(asked == value)
