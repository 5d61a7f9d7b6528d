"""What runs show, without Qt: curves, states, lists of them.

A run is a folder, and the folder is the truth: whoever started it, `read_run` shows it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from napari_muvit.config import PRESETS, FinetuneConfig, PretrainConfig, RunConfig
from napari_muvit.errors import MuvitError, RunError
from napari_muvit.plugin.predict import remaining_text

Curve = tuple[tuple[int, float], ...]
"""(step, value) pairs."""

MOST_POINTS = 1000
SMOOTH_PARTS = 20
"""A smoothed value is the mean of a tenth of its curve: one part in so many on either side."""

SPEED_STEPS = 20
"""Last steps that the speed is taken from."""

STATES = {
    "running": "Running", "interrupted": "Interrupted", "completed": "Completed",
    "stopped": "Stopped", "early": "Stopped early: no more improvement", "failed": "Failed",
}


OPTIONS: dict[str, type[RunConfig]] = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}
"""What can be chosen for each kind of run."""

KIND_WORDS = {"pretrain": "a pretraining", "finetune": "a fine-tuning", "fit": "a run of a script"}


@dataclass(frozen=True)
class RunPicture:
    """What there is to show of a run.

    Attributes
    ----------
    train, rate
        (step, loss) and (step, learning rate) of every step.
    losses, scores
        Curves of the validation by name: losses, and everything else.
    preview
        The newest preview picture.
    """

    folder: Path
    kind: str
    state: str
    step: int
    steps: int
    headline: str
    train: Curve = ()
    rate: Curve = ()
    losses: dict[str, Curve] = field(default_factory=dict)
    scores: dict[str, Curve] = field(default_factory=dict)
    preview: Path | None = None

    @property
    def is_running(self) -> bool:
        return self.state == "running"

    @property
    def can_resume(self) -> bool:
        return self.state in {"interrupted", "stopped", "failed"}


def read_run(backend: Any, folder: Path) -> RunPicture | None:
    """What the folder of a run tells now; None while it holds no run yet."""
    if not (folder / "config.yaml").exists() and not (folder / "run.json").exists():
        return None
    run = backend.RunFolder(folder)
    status = run.status()
    rows = run.metrics()
    train = [row for row in rows if row.get("split") == "train"]
    tests = [row for row in rows if row.get("split") == "val"]
    metrics = _metrics(tests)
    previews = run.previews()
    return RunPicture(
        folder=folder, kind=run.kind, state=status.state, step=status.step, steps=status.steps,
        headline=_headline(status, train, _crops_per_second(folder, train)),
        train=_pairs(train, "loss"),
        rate=_pairs(train, "learning_rate"),
        losses={_loss_name(name): curve for name, curve in metrics.items() if "loss" in name},
        scores={_score_name(name): curve for name, curve in metrics.items()
                if "loss" not in name and name != "temperature"},
        preview=previews[-1] if previews else None,
    )


def _crops_per_second(folder: Path, train: list[dict[str, Any]]) -> float | None:
    """Crops that the run learns from in a second, by its last steps."""
    seconds = [row["seconds"] for row in train[-SPEED_STEPS:] if row.get("seconds")]
    size = options_of(folder).get("batch_size")
    if not seconds or not isinstance(size, int):
        # A run of a script has no config; its speed is not known then.
        return None
    return size / float(np.median(seconds))


def _headline(status: Any, train: list[dict[str, Any]], speed: float | None) -> str:
    parts = [STATES.get(status.state, status.state), f"step {status.step} of {status.steps}"]
    if train and "loss" in train[-1]:
        parts.append(f"loss {train[-1]['loss']:.3g}")
    if speed is not None and status.state == "running":
        parts.append(f"{speed:.3g} crops per second")
    left = remaining_text(status.remaining)
    text = ", ".join([*parts, left] if left else parts)
    return f"{text}. {status.message}" if status.message else f"{text}."


def _loss_name(metric: str) -> str:
    """``loss_level_4`` as a person says it."""
    rest = metric.removeprefix("loss").replace("_", " ").strip()
    return f"validation, {rest}" if rest else "validation"


def _score_name(metric: str) -> str:
    """``dice_nuclei`` as a person says it."""
    if metric == "mdsc":
        return "mDSC"
    return f"Dice {metric.removeprefix('dice_')}" if metric.startswith("dice_") else metric


def _pairs(rows: list[dict[str, Any]], column: str) -> Curve:
    return thin(tuple((int(row["step"]), float(row[column])) for row in rows if column in row))


def thin(curve: Curve) -> Curve:
    """At most `MOST_POINTS` points, each the mean of its neighbours: a screen shows no more."""
    if len(curve) <= MOST_POINTS:
        return curve
    parts = np.array_split(np.asarray(curve, np.float64), MOST_POINTS)
    means = (np.nanmean(part, axis=0) for part in parts)
    return tuple((int(step), float(value)) for step, value in means)


def smooth(curve: Curve) -> Curve:
    """Each value the mean of those around it, fewer of them near the ends; the steps stay."""
    half = len(curve) // SMOOTH_PARTS
    steps, values = zip(*curve, strict=True)
    at = np.arange(len(curve))
    reach = np.minimum(half, np.minimum(at, len(curve) - 1 - at))
    sums, counts = (
        np.concatenate([[0.0], np.nancumsum(of)]) for of in (values, np.isfinite(values)))
    with np.errstate(invalid="ignore"):  # where no value around is a number, nor is their mean
        means = np.divide(*(total[at + reach + 1] - total[at - reach] for total in (sums, counts)))
    return tuple(zip(steps, means.tolist(), strict=True))


def _metrics(rows: list[dict[str, Any]]) -> dict[str, Curve]:
    plain = {"step", "epoch", "split", "seconds", "superseded", "learning_rate"}
    names = sorted({name for row in rows for name in row} - plain)
    return {name: _pairs(rows, name) for name in names}


@dataclass(frozen=True)
class Comparison:
    """One run, perhaps beside another.

    Attributes
    ----------
    differs
        Options of both that are not alike.
    seconds
        What reading took.
    """

    picture: RunPicture | None
    other: RunPicture | None = None
    differs: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def text(self) -> str:
        """What a person wants to know about the other run; nothing without one."""
        if self.picture is None or self.other is None:
            return ""
        one, other = self.picture, self.other
        said = [f"Dashed: {other.folder.name}. {other.headline}"]
        both = ""
        if one.kind != other.kind:
            here, there = (KIND_WORDS.get(run.kind, run.kind) for run in (one, other))
            said.append(f"This is {here}, the other {there}.")
            both = " of both"
        if self.differs:
            heading = "Options of both, here / there" if both else "Here / there"
            said.append(f"{heading}: {'; '.join(self.differs)}.")
        else:
            said.append(f"No option{both} differs.")
        return " ".join(said)


def compare(backend: Any, folder: Path, other: Path | None) -> Comparison:
    """What the folders of one or two runs tell now (runs in a thread)."""
    begin = time.perf_counter()
    found = Comparison(read_run(backend, folder))
    if other is not None and other != folder:
        beside = read_run(backend, other)
        kinds = [run.kind for run in (found.picture, beside) if run is not None]
        found = Comparison(found.picture, beside, tuple(differences(folder, other, kinds)))
    return replace(found, seconds=time.perf_counter() - begin)


@dataclass(frozen=True)
class RunLine:
    """One run in a list."""

    folder: Path
    name: str
    text: str


def list_runs(backend: Any, parent: Path) -> list[RunLine]:
    """Runs below `parent` with their state, newest first (runs in a thread).

    Raises
    ------
    RunError
        If `parent` is no folder.
    """
    if not parent.is_dir():
        raise RunError(f"{str(parent)!r} is no folder. Choose the folder that holds your runs.")
    lines = []
    for folder in find_runs(parent):
        name = folder.name if folder == parent else folder.relative_to(parent).as_posix()
        lines.append(RunLine(folder, name, f"{name}: {_line_text(backend, folder)}"))
    return lines


def _line_text(backend: Any, folder: Path) -> str:
    try:
        run = backend.RunFolder(folder)
        status, kind = run.status(), run.kind
    except (MuvitError, OSError, ValueError, KeyError):
        # Damaged, or being deleted: the others are listed all the same, and choosing it says why.
        return "cannot be read"
    state = STATES.get(status.state, status.state).split(":")[0].lower()
    return f"{kind}, {state}, step {status.step} of {status.steps}"


def differences(first: Path, second: Path, kinds: Sequence[str] = ()) -> list[str]:
    """Options in which two runs differ, ``name one / other`` (runs in a thread).

    Parameters
    ----------
    kinds
        Of the runs: what one kind does not have is no difference.
    """
    one, other = _resolved(first), _resolved(second)
    known: list[Collection[str]] = [
        OPTIONS[kind].model_fields if kind in OPTIONS else given
        for kind, given in zip(kinds, (one, other), strict=False)]
    names = [name for name in {**one, **other}
             if name != "output" and all(name in options for options in known)]
    return [f"{name.replace('_', ' ')} {_value(one.get(name))} / {_value(other.get(name))}"
            for name in names if one.get(name) != other.get(name)]


def _resolved(folder: Path) -> dict[str, Any]:
    """The options of a run with the sizes of its preset where it names none."""
    given = options_of(folder)
    sizes = PRESETS.get(given.get("preset", ""), {})
    found = {**given, **{name: size for name, size in sizes.items() if given.get(name) is None}}
    return {name: _plain(value) for name, value in found.items()}


def _plain(value: Any) -> Any:
    """One number for the same number along every axis."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values[0] if values and all(part == values[0] for part in values) else values


def options_of(folder: Path) -> dict[str, Any]:
    """The config of the run in `folder` as it stands there; empty where it has none."""
    try:
        values = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_value(part) for part in value)
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name
    return "default" if value is None else str(value)


def find_runs(parent: Path, depth: int = 3) -> list[Path]:
    """Run folders below `parent`, newest first; folders that cannot be read are left out."""
    found: list[Path] = []
    _collect(parent, depth, found)
    return sorted(found, key=_changed, reverse=True)


def _changed(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        # Deleted since it was found.
        return 0.0


def _collect(folder: Path, depth: int, found: list[Path]) -> None:
    if (folder / "run.json").is_file():
        found.append(folder)
        return
    if depth == 0 or folder.suffix == ".zarr":
        return
    try:
        inner = [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir()]
    except OSError:
        # Somebody else's folder on a shared disk: it holds no runs that can be shown.
        return
    for path in inner:
        _collect(path, depth - 1, found)


def free_folder(parent: Path, verb: str) -> Path:
    """A run folder that does not exist yet: ``pretrain-1``, ``pretrain-2``, ..."""
    number = 1
    while (parent / f"{verb}-{number}").exists():
        number += 1
    return parent / f"{verb}-{number}"
