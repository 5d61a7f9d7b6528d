"""Class tables as CSV and YAML files, to be shared, edited by hand and read again.

CSV has the columns value, name, color, meaning; meaning is class, background or unlabelled.
YAML is what `ClassTable.to_dict` gives.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from napari_muvit.data.labels import ClassTable, LabelClass, make_classes
from napari_muvit.data.output import write_text
from napari_muvit.errors import InputError, SourceError, SourceNotFoundError

COLUMNS = ("value", "name", "color", "meaning")
MEANINGS = ("class", "background", "unlabelled")


def write_classes(path: str | os.PathLike[str], classes: ClassTable) -> None:
    """Write a class table; the ending, ``.csv``, ``.yaml`` or ``.yml``, chooses the format."""
    path = Path(path)
    if _is_csv(path):
        text = _to_csv(classes)
    else:
        text = yaml.safe_dump(classes.to_dict(), sort_keys=False, allow_unicode=True)
    write_text(path, text)


def read_classes(path: str | os.PathLike[str]) -> ClassTable:
    """The class table of a CSV or YAML file.

    Only value and name are needed: colours and meaning have defaults.

    Raises
    ------
    SourceError
        If the file is missing or holds no class table.
    """
    path = Path(path)
    if not path.is_file():
        raise SourceNotFoundError(
            f"{path} does not exist. Name a CSV or YAML file of classes.", source=str(path)
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
        return _from_csv(text) if _is_csv(path) else _from_yaml(text)
    except (InputError, UnicodeDecodeError, yaml.YAMLError, csv.Error) as error:
        raise SourceError(f"{path} holds no class table: {error}", source=str(path)) from None


def _is_csv(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".yaml", ".yml"):
        raise InputError(
            f"{path.name} ends with {suffix!r}; class tables are .csv or .yaml files. Rename it."
        )
    return suffix == ".csv"


def _to_csv(classes: ClassTable) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    if classes.unlabelled is not None:
        writer.writerow([classes.unlabelled, "unlabelled", "", "unlabelled"])
    for item in classes.classes:
        meaning = "background" if item.value == classes.background else "class"
        writer.writerow([item.value, item.name, item.color, meaning])
    return file.getvalue()


def _from_csv(text: str) -> ClassTable:
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    special: dict[str, int] = {}
    kept = []
    for row in rows:
        meaning = (row.get("meaning") or "class").strip().lower()
        if meaning not in MEANINGS:
            raise InputError(f"meaning is {meaning!r}; it is one of {', '.join(MEANINGS)}.")
        value = _value(row)
        if meaning != "class":
            special[meaning] = value
        if meaning != "unlabelled":
            kept.append({**row, "value": value})
    return _table(kept, special.get("unlabelled"), special.get("background"))


def _from_yaml(text: str) -> ClassTable:
    content = yaml.safe_load(text)
    if not isinstance(content, Mapping) or not isinstance(content.get("classes"), list):
        raise InputError("it needs a list named classes, each with value and name.")
    values = [_value(row) for row in content["classes"]]
    rows = [{**row, "value": v} for row, v in zip(content["classes"], values, strict=True)]
    return _table(rows, content.get("unlabelled"), content.get("background"))


def _value(row: Mapping[str, Any]) -> int:
    if not isinstance(row, Mapping) or "value" not in row:
        raise InputError(f"{row!r} has no value; each class needs value and name.")
    try:
        return int(row["value"])
    except (TypeError, ValueError):
        raise InputError(f"value is {row['value']!r}; it must be a whole number.") from None


def _table(
    rows: list[dict[str, Any]], unlabelled: int | None, background: int | None
) -> ClassTable:
    if not rows:
        raise InputError("it names no class; each needs value and name.")
    made = make_classes((row["value"] for row in rows), background)
    classes = [
        LabelClass(
            default.value, str(row.get("name") or default.name).strip(),
            str(row.get("color") or default.color).strip(),
        )
        for row, default in zip(rows, made, strict=True)
    ]
    return ClassTable(tuple(classes), unlabelled, background)
