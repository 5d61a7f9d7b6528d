"""Cohorts: many images in one CSV with the columns image, labels, split, group.

Only ``image`` is needed. Paths are relative to the CSV. ``split`` is train, val or test; empty
means train. ``group`` is free: a donor, a staining, an experimental group.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from napari_muvit.errors import InputError, SourceError, SourceNotFoundError, nearest_name

COLUMNS = ("image", "labels", "split", "group")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class CohortRow:
    """One image of a cohort; `labels` and `group` are None where not given."""

    image: str
    labels: str | None = None
    split: str = "train"
    group: str | None = None


def is_cohort(source: object) -> bool:
    """Whether `source` is the path of a CSV."""
    return isinstance(source, (str, Path)) and Path(str(source)).suffix.lower() == ".csv"


def resolve_images(
    images: Sequence[str], labels: Sequence[str] | None = None, split: str = "train"
) -> tuple[CohortRow, ...]:
    """Images given one by one or as one CSV, as rows.

    Several images go with as many labels. Rows of a CSV keep their own split; `split` is that
    of images given one by one.

    Raises
    ------
    InputError
        If images and labels differ in number, or a CSV stands among other images.
    """
    if len(images) == 1 and is_cohort(images[0]):
        if labels:
            raise InputError(
                f"labels are given beside the cohort {images[0]!r}; a cohort names them in its "
                "column labels. Leave the option out."
            )
        return read_cohort(images[0])
    listed = [image for image in images if is_cohort(image)]
    if listed:
        raise InputError(
            f"{listed[0]!r} is a cohort among {len(images)} images; give one cohort alone, or "
            "images only."
        )
    if labels and len(labels) != len(images):
        raise InputError(
            f"{len(images)} images are given with {len(labels)} labels; each image needs its "
            "own label image, in the same order."
        )
    paired: Sequence[str | None] = labels or [None] * len(images)
    return tuple(
        CohortRow(image, label, split) for image, label in zip(images, paired, strict=True)
    )


def read_cohort(path: str | Path) -> tuple[CohortRow, ...]:
    """The rows of a cohort CSV; comma, semicolon or tab separated.

    Raises
    ------
    SourceNotFoundError
        If there is no such file.
    SourceError
        If it is no CSV text.
    InputError
        If a column is missing or unknown, or a row is incomplete; the message has the line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise SourceNotFoundError(
            f"there is no cohort file {str(path)!r}. Check the path.", source=str(path)
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(
            f"cohort file {str(path)!r} cannot be read as UTF-8 text: {error}.", source=str(path)
        ) from None
    head = text.split("\n", 1)[0]
    separator = max(",;\t", key=head.count)
    reader = csv.DictReader(io.StringIO(text), delimiter=separator, skipinitialspace=True)
    names = [(name or "").strip().lower() for name in reader.fieldnames or []]
    _check_columns(path, names)
    reader.fieldnames = names
    rows = tuple(
        _parse_row(path, reader.line_num, row) for row in reader
        if any(isinstance(v, str) and v.strip() for v in row.values())
    )
    if not rows:
        raise InputError(f"cohort {str(path)!r} has no rows. Add one line for each image.")
    _check_twins(path, rows)
    return rows


def write_cohort(path: str | Path, rows: Sequence[CohortRow]) -> None:
    """Write rows as a cohort CSV; paths below its folder become relative to it, others absolute."""
    path = Path(path)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        labels = "" if row.labels is None else _relative(path, row.labels)
        writer.writerow([_relative(path, row.image), labels, row.split, row.group or ""])
    path.write_text(buffer.getvalue(), encoding="utf-8")


def _relative(path: Path, source: str) -> str:
    if "://" in source:
        return source
    found = Path(source).resolve()
    folder = path.parent.resolve()
    return (found.relative_to(folder) if found.is_relative_to(folder) else found).as_posix()


def _check_columns(path: Path, names: Sequence[str]) -> None:
    for name in names:
        if name not in COLUMNS:
            near = nearest_name(name, COLUMNS)
            hint = f"Did you mean {near!r}?" if near else f"Known are {', '.join(COLUMNS)}."
            raise InputError(f"cohort {str(path)!r} has the unknown column {name!r}. {hint}")
    if "image" not in names:
        raise InputError(
            f"cohort {str(path)!r} has the columns {', '.join(names) or 'none'}; it needs image. "
            "The first line names the columns: image,labels,split,group."
        )


def _parse_row(path: Path, line: int, row: dict[str, str]) -> CohortRow:
    where = f"cohort {str(path)!r}, line {line}:"
    if any(key is None for key in row):
        raise InputError(
            f"{where} there are more values than columns. Put paths that contain the separator "
            "in quotes."
        )
    values = {key: (value or "").strip() for key, value in row.items()}
    if not values["image"]:
        raise InputError(f"{where} the image is missing. Every row names one.")
    split = values.get("split", "").lower() or "train"
    if split not in SPLITS:
        near = nearest_name(split, SPLITS)
        hint = f" Did you mean {near!r}?" if near else ""
        raise InputError(f"{where} split is {split!r}; it must be train, val or test.{hint}")
    labels = values.get("labels") or None
    return CohortRow(
        image=_resolve(path, values["image"]),
        labels=None if labels is None else _resolve(path, labels),
        split=split, group=values.get("group") or None,
    )


def _resolve(path: Path, source: str) -> str:
    """A path relative to the CSV, or a URL as it is."""
    if "://" in source and len(urlparse(source).scheme) > 1:
        return source
    return str(path.parent / Path(source).expanduser())


def _check_twins(path: Path, rows: Sequence[CohortRow]) -> None:
    """Refuse an image that stands in two splits."""
    splits: dict[str, str] = {}
    for row in rows:
        known = splits.setdefault(row.image, row.split)
        if known != row.split:
            raise InputError(
                f"cohort {str(path)!r} has image {row.image!r} in {known} and in {row.split}; "
                "what is trained on cannot judge. Put it in one split."
            )
