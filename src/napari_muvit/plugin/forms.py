"""Forms from option classes, without Qt: which fields, in which group, and what was typed."""

from __future__ import annotations

import csv
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from napari_muvit.config import Options

Kind = Literal["flag", "whole", "choice", "text", "list"]


@dataclass(frozen=True)
class FormField:
    """One option as a form shows it.

    Attributes
    ----------
    kind
        ``flag`` yes or no, ``whole`` a whole number, ``choice`` one of `choices`, ``list``
        several values with commas between (one that holds a comma in quotes), ``text``
        anything else.
    default
        None where the option may be left out.
    """

    name: str
    title: str
    tooltip: str
    unit: str | None
    group: str
    advanced: bool
    kind: Kind
    default: Any
    choices: tuple[str, ...] = ()
    minimum: int | None = None
    maximum: int | None = None

    def to_text(self, value: Any) -> str:
        """`value` as it is typed."""
        if value is None:
            return ""
        if isinstance(value, (tuple, list)):
            return ", ".join(_quoted(_number_text(part)) for part in value)
        return _number_text(value)

    def from_text(self, text: str) -> Any:
        """What was typed, for the config to judge; None where nothing was."""
        text = text.strip()
        if not text:
            return None
        if self.kind == "list":
            parts = next(csv.reader([text], skipinitialspace=True))
            return tuple(_number(part.strip()) for part in parts if part.strip())
        return _number(text) if self.kind == "text" and _is_number(self) else text


def _quoted(text: str) -> str:
    """`text` as one of several: in quotes where it holds a comma itself, as channels may."""
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',"') else text


def _number_text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_number(field: FormField) -> bool:
    return not isinstance(field.default, str)


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def form_fields(kind: type[Options], skip: Collection[str] = ()) -> list[FormField]:
    """The fields of an option class in its own order, without those named in `skip`."""
    return [_form_field(name, field) for name, field in kind.model_fields.items()
            if name not in skip]


def _form_field(name: str, field: FieldInfo) -> FormField:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    members = _members(field.annotation)
    default = None if field.default is PydanticUndefined else field.default
    unit = extra.get("unit")
    low, high = _bounds(field)
    return FormField(
        name=name, title=field.title or name, tooltip=field.description or "",
        unit=None if unit is None else str(unit), group=str(extra.get("group", "Options")),
        advanced=bool(extra.get("advanced")), kind=_kind(members), default=default,
        choices=tuple(str(c) for m in members if typing.get_origin(m) is Literal
                      for c in typing.get_args(m)),
        minimum=low, maximum=high,
    )


def _members(annotation: Any) -> list[Any]:
    """The alternatives of a union, or the annotation alone."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in {typing.Union, types.UnionType}:
        return [inner for member in typing.get_args(annotation) for inner in _members(member)]
    return [annotation]


def _kind(members: list[Any]) -> Kind:
    if members == [bool]:
        return "flag"
    if members == [int]:
        return "whole"
    if any(typing.get_origin(member) is tuple for member in members):
        return "list"
    is_choice = len(members) == 1 and typing.get_origin(members[0]) is Literal
    return "choice" if is_choice else "text"


def _bounds(field: FieldInfo) -> tuple[int | None, int | None]:
    low: int | None = None
    high: int | None = None
    for rule in field.metadata:
        if isinstance(rule, Ge):
            low = int(rule.ge)  # type: ignore[call-overload]
        elif isinstance(rule, Gt):
            low = int(rule.gt) + 1  # type: ignore[call-overload]
        elif isinstance(rule, Le):
            high = int(rule.le)  # type: ignore[call-overload]
        elif isinstance(rule, Lt):
            high = int(rule.lt) - 1  # type: ignore[call-overload]
    return low, high


def changed_values(kind: type[Options], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that differ from their defaults."""
    defaults = {name: field.default for name, field in kind.model_fields.items()}
    return {name: value for name, value in values.items()
            if value is not None and value != defaults.get(name)}


def command_line(verb: str, values: Mapping[str, Any]) -> str:
    """The shell command that starts a run with `values`."""
    import shlex

    parts = ["python", "-m", "napari_muvit.train", verb]
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            parts.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            several = value if isinstance(value, (tuple, list)) else (value,)
            parts += [f"--{flag}", *[_number_text(part) for part in several]]
    return shlex.join(parts)
