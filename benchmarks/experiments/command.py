"""The command of a table: presets of the tasks, flags, and the loop over rows."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from experiments.experiment import Experiment, Row, Settings
from experiments.sets import CORTEX

CLASSES = {"rings": ("outer", "inner"), "landmarks": ("near a disc", "near a frame")}
ALL_TASKS = (*CLASSES, *CORTEX)
PRESETS = {
    "cpu": Settings(),
    "full": Settings(
        size=2048, counts=(1638, 220, 190), crop_size=256, preset="base", batch_size=16,
        steps=25_600, validations=25, val_samples=256, rates=(5e-5, 1e-4, 2e-4), device="cuda",
        precision="bf16", workers=8,
    ),
}
LANDMARKS: dict[str, Any] = {
    "task": "landmarks", "size": 1024, "counts": (90, 10, 8), "set_levels": (1, 8), "steps": 1600,
}
SECTIONS: dict[str, Any] = {"size": 600, "counts": (6, 2, 4), "set_levels": (1, 8)}
"""Of each donor of training three sections train and one validates; see `experiments.sections`."""
TINY: dict[str, Any] = {
    "size": 256, "counts": (4, 2, 2), "crop_size": 32, "batch_size": 4, "steps": 4,
    "validations": 2, "val_samples": 4, "search_share": 0.5, "rates": (3e-4, 1e-3),
}
"""To try a command: everything but the size."""

SettingsT = TypeVar("SettingsT", bound=Settings)
Rows = Callable[[tuple[int, ...]], tuple[Row, ...]]
Table = Callable[[Path, Settings], str]


def parse_settings(given: argparse.Namespace) -> Settings:
    """The preset for the task, with what the command line changes."""
    settings = PRESETS[given.preset]
    if given.task == "landmarks":
        settings = replace(settings, **LANDMARKS)
    elif given.task in CORTEX:
        settings = replace(settings, task=given.task, **SECTIONS)
    settings = with_flags(settings, given, TINY)
    changes = {"set_levels": given.levels, "rates": given.rates}
    return replace(settings, **{k: tuple(v) for k, v in changes.items() if v})


def with_flags(settings: SettingsT, given: argparse.Namespace, tiny: dict[str, Any]) -> SettingsT:
    """`settings` with what the flags of `make_parser` change; `tiny` is for ``--tiny``."""
    changes = {name: getattr(given, name) for name in ("steps", "threads", "device")
               if getattr(given, name) is not None}
    return replace(settings, **{**(tiny if given.tiny else {}), **changes})


def make_parser(
    doc: str, output: str, keys: list[str], presets: Iterable[str]
) -> argparse.ArgumentParser:
    """The flags that all tables have."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--preset", choices=tuple(presets), default="cpu")
    parser.add_argument("--rows", nargs="+", choices=keys, default=keys)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, default=Path(output))
    parser.add_argument("--table", action="store_true", help="only write what is there")
    parser.add_argument("--tiny", action="store_true", help="a few steps, to try the command")
    for name in ("steps", "threads"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--device")
    return parser


def parse(
    doc: str, output: str, keys: list[str], argv: list[str] | None, tasks: Iterable[str]
) -> argparse.Namespace:
    """The flags of tables whose task can be chosen."""
    parser = make_parser(doc, output, keys, PRESETS)
    parser.add_argument("--task", choices=tuple(tasks), default="rings")
    parser.add_argument("--levels", type=int, nargs="+", help="other levels than the task's")
    parser.add_argument("--rates", type=float, nargs="+",
                        help="learning rates to search among; a single one is taken as it is")
    return parser.parse_args(argv)


def run_table(
    doc: str, output: str, rows: Rows, table: Table, argv: list[str] | None = None,
    kind: type[Experiment] = Experiment, tasks: Iterable[str] = ALL_TASKS,
) -> str:
    """Measure what is asked for and missing; write ``table.md`` and return it."""
    given = parse(doc, output, [row.key for row in rows((1, 4))], argv, tasks)
    settings = parse_settings(given)
    return measure_rows(given, rows(settings.set_levels), lambda: kind(given.output, settings),
                        lambda: table(given.output, settings))


def measure_rows(
    given: argparse.Namespace, rows: Iterable[Row], begin: Callable[[], Experiment],
    table: Callable[[], str],
) -> str:
    """Measure the rows that are asked for, seed after seed, then write and return the table."""
    if not given.table:
        experiment = begin()
        for seed in given.seeds:
            for row in rows:
                if row.key in given.rows:
                    experiment.measure(row, seed)
    text = table()
    if given.output.is_dir():
        (given.output / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    return text
