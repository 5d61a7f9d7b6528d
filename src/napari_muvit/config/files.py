"""Configs from dicts and YAML files, and back; what is wrong is said in one sentence.

YAML files are flat: one key for each field, the same names as the command line's flags; a
recipe holds one such part for each verb.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from napari_muvit.config.options import Options
from napari_muvit.config.verbs import FinetuneConfig, PredictConfig, PretrainConfig
from napari_muvit.errors import ConfigError, nearest_name

SCHEMA_VERSION = 1
ConfigT = TypeVar("ConfigT", bound=Options)

SECTIONS = {"PretrainConfig": "pretrain", "FinetuneConfig": "finetune", "PredictConfig": "predict"}
"""Section of a recipe file for each kind of config."""


def parse_config(kind: type[ConfigT], given: ConfigT | Mapping[str, Any] | str | Path) -> ConfigT:
    """A checked config from a config, a dict or the path of a YAML file.

    Raises
    ------
    ConfigError
        Naming the field, what was given, and the rule; unknown keys name the nearest known.
    """
    if isinstance(given, kind):
        return given
    if not isinstance(given, (str, Path, Mapping)):
        raise ConfigError(
            f"the config is a {type(given).__name__}; it must be a dict of options, the path of a "
            f"YAML file, or a {kind.__name__}."
        )
    values = read_options(kind, given) if isinstance(given, (str, Path)) else dict(given)
    check_schema(values)
    check_keys(kind, values)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise config_error(error, kind) from None


def read_options(kind: type[Options], path: str | Path) -> dict[str, Any]:
    """The options of `kind` in a YAML file, their names checked, their values not yet.

    A recipe holds a whole job: sections ``pretrain``, ``finetune`` and ``predict``, and
    ``common`` for what they share as far as the section's kind knows it.
    """
    values = read_yaml(path)
    check_schema(values)
    if values.keys() & {"common", *SECTIONS.values()}:
        section = SECTIONS.get(kind.__name__, "")
        check_sections(values, section, path)
        common = values.get("common") or {}
        shared = {key: value for key, value in common.items() if key in kind.model_fields}
        values = shared | (values.get(section) or {})
    check_keys(kind, values)
    return values


def check_sections(values: Mapping[str, Any], section: str, path: str | Path) -> None:
    """Refuse a recipe without `section`, or with something that is no section."""
    known = ["common", *SECTIONS.values()]
    for key, value in values.items():
        if key not in known or not isinstance(value, dict | None):
            raise ConfigError(
                f"{key!r} in {str(path)!r} is no section of a recipe. Known sections are "
                f"{', '.join(known)}, each with 'name: value' lines.", field=str(key),
            )
    if section not in values:
        raise ConfigError(f"recipe {str(path)!r} has no section {section!r}. Add '{section}:'.")


class _EachKeyOnce(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which plain YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises
    ------
    ConfigError
        If the file is missing, is no YAML, or holds something else than a mapping.
    """
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_EachKeyOnce)
    except OSError as error:
        raise ConfigError(
            f"config file {str(path)!r} cannot be read: {error.strerror}. Check the path."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        first = getattr(error, "problem", None) or str(error).splitlines()[0]
        place = "" if mark is None else f" in line {mark.line + 1}"
        raise ConfigError(
            f"config file {str(path)!r} is not valid YAML{place}: {first}. Correct the file."
        ) from None
    if not isinstance(values, dict):
        what = "nothing" if values is None else f"a {type(values).__name__}"
        raise ConfigError(
            f"config file {str(path)!r} holds {what}; it must hold one "
            "'name: value' line for each option."
        )
    return values


def check_schema(values: dict[str, Any]) -> None:
    """Take the schema version out of `values`; refuse one that is newer than ours."""
    version = values.pop("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"the config has schema_version {version!r}; this version reads {SCHEMA_VERSION}. "
            "Use the napari-muvit version that wrote it.", field="schema_version",
        )


def check_keys(kind: type[Options], values: Mapping[str, Any]) -> None:
    """Refuse keys that `kind` does not know, naming the nearest that it does."""
    known = kind.model_fields
    for key in values:
        if key in known:
            continue
        near = nearest_name(str(key), known)
        hint = f"Did you mean {near!r}?" if near else f"Known are {', '.join(known)}."
        verb = SECTIONS.get(kind.__name__, "")
        others = [SECTIONS[other.__name__] for other in (PretrainConfig, FinetuneConfig,
                  PredictConfig) if other is not kind and key in other.model_fields]
        if others:
            hint = (f"It belongs to {others[0]}; leave it out of {verb}, or call {others[0]} with "
                    "this config.")
        raise ConfigError(f"unknown option {key!r}. {hint}", field=str(key))


def config_error(error: ValidationError, kind: type[Options]) -> ConfigError:
    """pydantic's first complaint as one sentence: field, given value, rule."""
    first = error.errors()[0]
    field = str(first["loc"][0]) if first["loc"] else None
    rule = first["msg"].removeprefix("Value error, ")
    if field is None:
        return ConfigError(rule)
    if first["type"] == "missing":
        return ConfigError(f"{field} is missing; it has no default. Pass {field}.", field)
    if first["type"] == "value_error" and rule.startswith(f"{field} "):
        return ConfigError(rule, field)  # a rule of ours, which says what was given
    if first["type"] == "string_pattern_mismatch":
        what = kind.model_fields[field].description or ""
        return ConfigError(f"{field} is {first['input']!r}; allowed is: {what}", field)
    if first["type"] == "too_short":
        rule = f"it must hold at least {first['ctx']['min_length']}"
    rule = rule.replace("Input should", "it must", 1)
    return ConfigError(f"{field} is {first['input']!r}; {rule}.", field)


def write_config(config: Options, path: Path, **facts: Any) -> None:
    """Write the complete config as YAML, with `facts` (versions, device) as comments above."""
    lines = [f"# {key}: {value}" for key, value in facts.items()]
    values = {"schema_version": SCHEMA_VERSION, **config.model_dump(mode="json")}
    text = "\n".join([*lines, yaml.safe_dump(values, sort_keys=False, allow_unicode=True)])
    path.write_text(text, encoding="utf-8")
