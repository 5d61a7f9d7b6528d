"""The records of a run: ``events.jsonl`` and ``metrics.csv``, appended line by line.

A line is one write, and readers take only lines that end, so nobody ever sees half a record.
After a resume, records past the checkpoint are marked superseded instead of being removed.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from napari_muvit.training.events import Event, StepEvent, ValidationEvent, event_to_record
from napari_muvit.training.files import write_whole
from napari_muvit.training.schedule import epoch_of

EVENTS = "events.jsonl"
METRICS = "metrics.csv"
COLUMNS = ("step", "epoch", "split", "loss", "learning_rate", "seconds", "superseded")


class Recorder:
    """Appends the events of one run to its folder.

    Parameters
    ----------
    folder
        An existing run folder.
    metric_names
        Names of the validation metrics: one column of ``metrics.csv`` each.
    samples_per_step, epoch_size
        What makes a step's epoch.
    """

    def __init__(
        self, folder: Path, metric_names: Sequence[str], *, samples_per_step: int, epoch_size: int
    ) -> None:
        self.folder = folder
        self.columns = (*COLUMNS, *(n for n in metric_names if n not in COLUMNS))
        self._samples_per_step = samples_per_step
        self._epoch_size = epoch_size

    def open(self, from_step: int) -> None:
        """Make the files if they are missing; mark what lies past `from_step` superseded."""
        supersede_events(self.folder / EVENTS, from_step)
        supersede_metrics(self.folder / METRICS, from_step, self.columns)

    def write(self, event: Event) -> None:
        """Append `event`, and its row of numbers if it has one."""
        record = event_to_record(event, self.folder)
        append(self.folder / EVENTS, json.dumps(record, ensure_ascii=False) + "\n")
        row = self._row(event)
        if row is not None:
            append(self.folder / METRICS, _csv_text([[row.get(c, "") for c in self.columns]]))

    def _row(self, event: Event) -> dict[str, Any] | None:
        if isinstance(event, StepEvent):
            row: dict[str, Any] = {
                "split": "train", "loss": event.loss, "learning_rate": event.learning_rate,
                "seconds": round(event.seconds, 6),
            }
        elif isinstance(event, ValidationEvent):
            known = {name: v for name, v in event.metrics.items() if math.isfinite(v)}
            row = {"split": "val", **known}  # a class that is in no crop leaves its cell empty
        else:
            return None
        epoch = epoch_of(event.step, self._samples_per_step, self._epoch_size)
        return {"step": event.step, "epoch": epoch, "superseded": 0, **row}


def append(path: Path, text: str) -> None:
    """Add `text` at the end of `path` with a single write, so that lines never interleave.

    Of a line that the disk took only in part nothing stays.
    """
    content = text.encode("utf-8")
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags, 0o666)
    try:
        size = os.fstat(handle).st_size
        if os.write(handle, content) < len(content):
            os.ftruncate(handle, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(handle)


def whole_lines(path: Path, last_bytes: int | None = None) -> list[str]:
    """The lines of `path` that are complete; a last line without its end is left out.

    So are lines with zeros: a network disk shows them where the content has not come yet.

    Parameters
    ----------
    last_bytes
        Only lines that lie wholly in so many bytes at the end of the file.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = 0 if last_bytes is None else max(0, size - last_bytes)
            file.seek(start)
            content = file.read()
    except FileNotFoundError:
        return []
    if start:
        content = content.partition(b"\n")[2]
    whole, _, _ = content.rpartition(b"\n")
    # not splitlines: names may hold other characters that Unicode calls line ends
    lines = whole.split(b"\n") if whole or content[:1] == b"\n" else []
    return [line.decode("utf-8") for line in lines if b"\0" not in line]


def read_events(path: Path, last_bytes: int | None = None) -> list[dict[str, Any]]:
    """The records of an ``events.jsonl``, in order, superseded ones included."""
    return [json.loads(line) for line in whole_lines(path, last_bytes)]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``metrics.csv``; numbers as numbers, empty cells left out."""
    rows = csv.DictReader(whole_lines(path))
    return [{k: _number(v) for k, v in row.items() if v not in {"", None}} for row in rows]


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def supersede_events(path: Path, from_step: int) -> None:
    """Rewrite `path` with every record past `from_step` marked; half a last line is dropped."""
    records = read_events(path)
    for record in records:
        if record["step"] > from_step:
            record["superseded"] = True
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    write_whole(path, "".join(lines).encode("utf-8"))


def supersede_metrics(path: Path, from_step: int, columns: Sequence[str]) -> None:
    """Rewrite `path` with the given columns and every row past `from_step` marked 1."""
    rows: Iterable[dict[str, str]] = csv.DictReader(whole_lines(path))
    table: list[list[Any]] = [list(columns)]
    for row in rows:
        if int(row["step"]) > from_step:
            row["superseded"] = "1"
        table.append([row.get(column, "") for column in columns])
    write_whole(path, _csv_text(table).encode("utf-8"))


def _csv_text(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
