"""Flags from the option classes: every field of a config is a flag of the same name.

argparse hands over plain strings and pydantic converts and judges them, so a wrong value
gives the same sentence on the command line as in a YAML file or from Python.
"""

from __future__ import annotations

import argparse
import types
import typing
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

from pydantic import ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from napari_muvit.config import Options, config_error, parse_config, read_options
from napari_muvit.errors import ConfigError, nearest_name

ConfigT = TypeVar("ConfigT", bound=Options)


class Parser(argparse.ArgumentParser):
    """An argument parser that raises a `ConfigError` instead of printing its usage."""

    def __init__(self, **kwargs: Any) -> None:
        style: dict[str, Any] = {"formatter_class": _HelpFormatter, "allow_abbrev": False}
        super().__init__(**style | kwargs)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. See {self.prog} --help.")

    def parse_strictly(self, args: Sequence[str]) -> argparse.Namespace:
        """Parse `args`; an unknown flag names the nearest known one."""
        known, unknown = self.parse_known_args(args)
        if unknown:
            self._refuse(unknown[0])
        return known

    def _refuse(self, given: str) -> NoReturn:
        flag = given.split("=")[0]
        near = nearest_name(flag, [name for name in self._option_string_actions if name != "-h"])
        hint = f"Did you mean {near!r}?" if near and flag.startswith("-") else (
            f"See {self.prog} --help."
        )
        raise ConfigError(f"unknown argument {given!r}. {hint}", field=flag.lstrip("-"))


class _HelpFormatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=100)


def add_flags(
    parser: Parser, kind: type[Options], skip: Sequence[str] = (),
    only: Sequence[str] | None = None,
) -> None:
    """Add one flag for each field of `kind`, grouped as in the forms.

    `only` names those that change something there already, whose defaults do not count.
    """
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, field in kind.model_fields.items():
        if name in skip or (only is not None and name not in only):
            continue
        extra = field.json_schema_extra
        title = str(extra.get("group", "options")) if isinstance(extra, dict) else "options"
        group = groups.setdefault(title, parser.add_argument_group(title))
        group.add_argument(
            flag_of(name), dest=name, **_flag_style(field, has_default=only is None))


def flag_of(name: str) -> str:
    """The flag of a field: crop_size is --crop-size."""
    return "--" + name.replace("_", "-")


def _flag_style(field: FieldInfo, *, has_default: bool = True) -> dict[str, Any]:
    default = _default_text(field) if has_default else ""
    text = ((field.description or "") + default).replace("%", "%%")
    style: dict[str, Any] = {"help": text, "default": argparse.SUPPRESS}
    members = _members(field.annotation)
    if bool in members:
        return style | {"action": argparse.BooleanOptionalAction}
    if any(typing.get_origin(member) is tuple for member in members):
        style["nargs"] = "+"
    choices = [c for m in members if typing.get_origin(m) is typing.Literal for c in m.__args__]
    is_one_of = choices and "nargs" not in style
    style["metavar"] = "{" + ",".join(map(str, choices)) + "}" if is_one_of else _metavar(members)
    return style


def _members(annotation: Any) -> list[Any]:
    """The alternatives of a union, or the annotation alone, without their annotations."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _members(annotation.__origin__)
    if typing.get_origin(annotation) in {typing.Union, types.UnionType}:
        return [inner for member in annotation.__args__ for inner in _members(member)]
    return [annotation]


def _metavar(members: Sequence[Any]) -> str:
    text = str(members)
    return "N" if "str" not in text and ("int" in text or "float" in text) else "X"


def _default_text(field: FieldInfo) -> str:
    default = field.default
    if default is PydanticUndefined or default is None:
        return ""
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    return f" (default: {shown})"


def merge(kind: type[ConfigT], flags: dict[str, Any], config_file: str | None) -> ConfigT:
    """The config of a command: values of the YAML file, with the flags given in their place."""
    values = {} if config_file is None else read_options(kind, config_file)
    return parse_config(kind, values | flags)


def parse_some(kind: type[Options], flags: dict[str, Any]) -> dict[str, Any]:
    """The values of some options, judged as in a whole config.

    Raises
    ------
    ConfigError
        Naming the option, what was given, and the rule.
    """
    values = {}
    for name, given in flags.items():
        field = kind.model_fields[name]
        only: dict[str, Any] = {name: (field.annotation, field)}
        single = create_model(name, __base__=Options, **only)
        try:
            values[name] = getattr(single.model_validate({name: given}), name)
        except ValidationError as error:
            raise config_error(error, kind) from None
    return values
