"""A table is a folder: one folder for each row and seed, a ``result.json`` in each that is done.

A command that was interrupted goes on with what is missing, and the Markdown can be written at
any time from what is there.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

RESULT = "result.json"
NOT_RUN = "not yet run"


@dataclass(frozen=True)
class Column:
    """One figure of every row: its key in the results, its heading, and its decimals."""

    key: str
    title: str
    digits: int = 3


def hardware(device: str) -> str:
    """Processor or GPU, threads and torch, in words."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return (f"{_processor()}, {torch.get_num_threads()} of {os.cpu_count()} cores, "
            f"torch {torch.__version__}")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def place_of(folder: Path, key: str, seed: int) -> Path:
    """Folder of one row and seed."""
    return folder / f"{key}_seed{seed}"


def load_result(folder: Path, key: str, seed: int) -> dict[str, Any] | None:
    """What was measured, or None where nothing was yet."""
    path = place_of(folder, key, seed) / RESULT
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def save_result(
    folder: Path, key: str, seed: int, values: dict[str, Any], device: str
) -> dict[str, Any]:
    """Write what was measured, with date and hardware; whole, or not at all."""
    place = place_of(folder, key, seed)
    place.mkdir(parents=True, exist_ok=True)
    result = {**values, "seed": seed, "date": date.today().isoformat(),
              "hardware": hardware(device)}
    write_json(place / RESULT, result)
    return result


def write_json(path: Path, values: Any) -> None:
    """Written beside and renamed, so that a kill leaves what was there."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(json.dumps(values, indent=1), encoding="utf-8")
    beside.replace(path)


def load_results(folder: Path, key: str) -> list[dict[str, Any]]:
    """The results of all seeds of one row, in order of the seeds."""
    found = [json.loads(path.read_text(encoding="utf-8"))
             for path in folder.glob(f"{key}_seed*/{RESULT}")]
    return sorted(found, key=lambda result: int(result["seed"]))


def markdown(
    folder: Path, rows: Sequence[tuple[str, str]], columns: Sequence[Column], first: str = "row",
) -> str:
    """The table of (key, title) rows: mean, and spread where a row has several seeds.

    Below it stand date and hardware of the results.
    """
    titles = [first, *(column.title for column in columns), "seeds"]
    lines = [_line(titles), _line(["---"] * len(titles))]
    stamps: dict[str, None] = {}
    for key, title in rows:
        results = load_results(folder, key)
        stamps |= dict.fromkeys(f"{one['date']}, {one['hardware']}" for one in results)
        cells = [summarise(results, column) for column in columns]
        lines.append(_line([title, *cells, str(len(results))]))
    return "\n".join([*lines, "", *stamps])


def summarise(results: Sequence[dict[str, Any]], column: Column) -> str:
    """Mean +- standard deviation (n - 1) of one figure over seeds; a dash if they lack it."""
    if not results:
        return NOT_RUN
    values = [float(one[column.key]) for one in results if one.get(column.key) is not None]
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.{column.digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):.{column.digits}f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
