"""What a fine-tuning starts from: a run or model folder, or an address that is fetched.

An encoder knows images as it was shown them: the same sizes of crops, axes that a level scales,
normalisation. A run takes all that over, except where its user asks for something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn

from napari_muvit.config import FinetuneConfig, RunConfig, parse_config
from napari_muvit.data.crop import parse_scaled_axes
from napari_muvit.data.normalize import NormalizationRule
from napari_muvit.data.physical import pixel_ratio
from napari_muvit.errors import CheckpointError, ConfigError, nearest_name
from napari_muvit.models.checkpoint import ModelMeta, load_model
from napari_muvit.models.encoder import Encoder
from napari_muvit.models.factory import AXES
from napari_muvit.training.fetch import MARKS, fetch_model, is_address
from napari_muvit.training.folder import RunFolder, find_model

ADOPTED = (
    "dim", "num_layers", "heads", "patch_size", "token_coordinates", "rope_frequencies",
    "rotary_mode", "attention_mode",
)
"""Options that a pretrained encoder brings along."""

NORMALIZING = ("normalization", "percentiles", "normalization_constant")
"""Options that make up a normalisation."""

OTHER_SIZE = 1.25
"""Factor between two pixel sizes from which on an encoder sees other things than it learned."""

MOST_LISTED = 200
"""Folders that are looked into for the one that may have been meant."""


@dataclass(frozen=True)
class Pretrained:
    """An encoder, and what its model knows about images; None for one of the official project."""

    encoder: Encoder
    meta: ModelMeta | None = None

    @property
    def scaled_axes(self) -> tuple[str, ...]:
        """Axes that its levels scale, by name."""
        names = AXES[-self.encoder.ndim:]
        return tuple(names[axis] for axis in self.encoder.scaled_axes if names[axis] != "t")

    @property
    def rule(self) -> NormalizationRule | None:
        """How its images were normalised, None where that is not known."""
        if self.meta is None or not self.meta.normalization:
            return None
        return NormalizationRule.from_dict(self.meta.normalization)


def load_pretrained(config: RunConfig, place: RunFolder | None = None) -> Pretrained | None:
    """What `config` starts from, None where it starts from random weights.

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
    found = _pretrained(load_model(folder))
    if found is None:
        raise ConfigError(
            f"pretrained is {given!r}, which holds no encoder. Pass the folder of a "
            "pretraining run.", field="pretrained",
        )
    missing = [level for level in config.levels if level not in found.encoder.levels]
    if missing:
        known = ", ".join(f"{level:g}" for level in found.encoder.levels)
        raise ConfigError(
            f"levels are {config.levels}; the pretrained model {given!r} was trained with the "
            f"levels {known} and has no {missing[0]:g}. Take some of these, or another model.",
            field="levels",
        )
    return found


def load_own(place: RunFolder) -> Pretrained | None:
    """The encoder of the model that a run has saved; None where it starts over.

    Its architecture is what counts, since the checkpoint brings the weights: the model that the
    run began with may be gone.
    """
    if not place.state_path.exists():
        return None
    with suppress(CheckpointError):
        return _pretrained(load_model(place.model_folder(best=False)))
    return None


def _pretrained(model: nn.Module) -> Pretrained | None:
    encoder = getattr(model, "encoder", model)
    if not isinstance(encoder, Encoder):
        return None
    return Pretrained(encoder, cast(ModelMeta | None, model.meta))


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


def adopt_encoder(config: RunConfig, pretrained: Pretrained) -> RunConfig:
    """`config` with the sizes of a pretrained encoder, so that the run's config is complete.

    Also with what the encoder was taught to see, where the config does not say it itself.

    Raises
    ------
    ConfigError
        If the config asks for another size itself.
    """
    encoder = pretrained.encoder
    own = {**encoder.config(), "patch_size": tuple(encoder.patch_size)}
    found: dict[str, Any] = _taught(config, pretrained)
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


def _taught(config: RunConfig, pretrained: Pretrained) -> dict[str, Any]:
    """Scaled axes and normalisation, as far as the config leaves them open.

    Who gives a part of another kind of normalisation wants that kind.
    """
    given = config.model_fields_set
    found: dict[str, Any] = {}
    if "scaled_axes" not in given:
        found["scaled_axes"] = pretrained.scaled_axes
    rule = pretrained.rule
    if rule is not None and (config.normalization == rule.kind or given.isdisjoint(NORMALIZING)):
        values = (rule.kind, rule.percentiles, rule.constant)
        found |= zip(NORMALIZING, values, strict=True)
    return {name: value for name, value in found.items() if name not in given}


def differences(
    config: RunConfig, pretrained: Pretrained, pixel_size: Sequence[float] | None
) -> list[str]:
    """What a pretrained encoder will see otherwise than it learned to, in sentences.

    Parameters
    ----------
    pixel_size
        um of each axis of the run's images, None where unknown.
    """
    found = []
    ours, theirs = config.scaled_axes, pretrained.scaled_axes
    if set(ours) != set(theirs):
        found.append(
            f"scaled_axes are {', '.join(ours)}; the levels of the pretrained model scale "
            f"{', '.join(theirs)}, so that its coarser levels see other things than it learned. "
            "Leave scaled_axes out, or give the model's."
        )
    asked, known = NormalizationRule.from_config(config), pretrained.rule
    if known is not None and _words(asked) != _words(known):
        found.append(
            f"images are normalised by {_words(asked)}; the pretrained model learned from "
            f"{_words(known)}. Leave {', '.join(NORMALIZING)} out, or give the model's."
        )
    learned = None if pretrained.meta is None else pretrained.meta.pixel_size
    if pixel_size is not None and learned is not None and len(pixel_size) == len(learned):
        scaled = parse_scaled_axes(config.scaled_axes, AXES[-len(learned):])
        found += _other_size([pixel_size[i] for i in scaled], [learned[i] for i in scaled])
    return found


def _other_size(ours: Sequence[float], learned: Sequence[float]) -> list[str]:
    """What is said where pixels are of another size along the axes that levels scale."""
    ratio = pixel_ratio(ours, learned) if ours else 1.0
    if 1 / OTHER_SIZE < ratio < OTHER_SIZE:
        return []
    return [
        f"the images have pixels of {ours[-1]:.4g} um, those of the pretrained model had "
        f"{learned[-1]:.4g} um: it sees everything {1 / ratio:.3g} times as large as it learned "
        "it, and may help little. If a size is wrong, correct its metadata."
    ]


def _words(rule: NormalizationRule) -> str:
    """What a rule does, in words that are the same for rules that do the same."""
    if rule.kind == "percentile":
        low, high = rule.percentiles
        return f"the percentiles {low:g} and {high:g}"
    return f"the constant {rule.constant:g}" if rule.kind == "constant" else "nothing"


def _alike(asked: Any, value: Any) -> bool:
    if isinstance(asked, tuple) and isinstance(value, tuple):
        return asked in (value, value[:1]) and len(set(value)) in {1, len(asked)}
    return bool(asked == value)
