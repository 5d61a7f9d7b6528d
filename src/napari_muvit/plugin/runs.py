"""Runs without Qt: where they start, in a thread or as a process, and what they show.

A run is a folder, and the folder is the truth: whoever started it, `read_run` shows it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import yaml

from napari_muvit.config import RunConfig
from napari_muvit.errors import RunError
from napari_muvit.plugin import engine
from napari_muvit.plugin.predict import remaining_text

Curve = tuple[tuple[int, float], ...]
"""(step, value) pairs."""

Verb = Literal["pretrain", "finetune"]
Action = Literal["pause", "resume", "stop"]
SPEED_STEPS = 20
"""Last steps that the speed is taken from."""

STATES = {
    "running": "Running", "interrupted": "Interrupted", "completed": "Completed",
    "stopped": "Stopped", "early": "Stopped early: no more improvement", "failed": "Failed",
}


class RunControl(Protocol):
    """A run that this widget started."""

    folder: Path

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def stop(self) -> None: ...


class ThreadRun:
    """A run in a thread of napari: quick to start, gone when napari closes.

    Parameters
    ----------
    make
        Makes the ``Run``; called in the thread that iterates over `events`, because checking
        the images takes its time.
    folder
        The run folder.
    """

    def __init__(self, make: Callable[[], Any], folder: Path) -> None:
        self.folder = folder
        self._make = make
        self._run: Any = None
        self._wishes: list[str] = []

    def events(self) -> Iterator[Any]:
        """The run's events; to be iterated in a thread."""
        self._run = self._make()
        for wish in self._wishes:
            getattr(self._run, wish)()
        yield from self._run

    def pause(self) -> None:
        self._ask("pause")

    def resume(self) -> None:
        self._ask("resume")

    def stop(self) -> None:
        self._ask("stop")

    def _ask(self, wish: str) -> None:
        """Pass on a wish, or keep it until the run is there."""
        if self._run is None:
            self._wishes.append(wish)
        else:
            getattr(self._run, wish)()


class ProcessRun:
    """A run in its own process, which outlives napari.

    Parameters
    ----------
    arguments
        What follows ``python -m napari_muvit.train``.
    folder
        The run folder.

    Raises
    ------
    RunError
        If the process cannot be started.
    """

    def __init__(self, arguments: list[str], folder: Path) -> None:
        self.folder = folder
        self._wish: Action | None = None
        self._is_ended = False
        self._log = Path(tempfile.mkdtemp(prefix="muvit-")) / "messages.txt"
        command = [sys.executable, "-m", "napari_muvit.train", *arguments]
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True,
                )
        except OSError as error:
            raise RunError(f"the training process cannot be started: {error}.") from error

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def error(self) -> RunError | None:
        """Why the process ended, None where it did its work or still does."""
        status = self._process.poll()
        if not status or self._is_ended:
            return None
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        if said:
            return RunError(said[-1])
        if status in {-9, 137}:
            return RunError(
                "the training process was killed, most likely because memory ran out. Take a "
                "smaller batch size or crop size, and resume the run."
            )
        if (self.folder / "config.yaml").exists():
            return None
        return RunError(f"the training process ended with status {status}; see {self._log}.")

    def pause(self) -> None:
        self._wish = "pause"
        self.tell()

    def resume(self) -> None:
        self._wish = "resume"
        self.tell()

    def stop(self) -> None:
        """Ask the run to write a checkpoint and end."""
        self._wish = "stop"
        self.tell()

    def tell(self) -> None:
        """Pass on what was asked for, as soon as the run listens; to be called now and then.

        Asked through the run folder, as on every system a process can be. Before the run has
        begun there is nothing to save, and the process is ended.
        """
        if self._wish is None or not self.is_running:
            return
        if ask_run(self.folder, self._wish) or self._wish == "resume":
            self._wish = None
        elif self._wish == "stop":
            self._wish, self._is_ended = None, True
            self._process.terminate()

    def wait(self, seconds: float) -> None:
        """Wait until the process has ended."""
        self._process.wait(seconds)


def ask_run(folder: Path, action: Action) -> bool:
    """Ask whoever trains the run in `folder`; False while nobody does."""
    if not (folder / "run.json").is_file():
        return False
    run = engine.default_backend().RunFolder(folder)
    if not run.is_writing():
        return False
    run.ask(action)
    return True


def start_process(verb: Verb, config: RunConfig) -> ProcessRun:
    """Start a run in its own process."""
    values = config.model_dump(mode="json")
    path = Path(tempfile.mkdtemp(prefix="muvit-")) / "config.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return ProcessRun([verb, "--config", str(path)], Path(config.output))


def resume_process(folder: Path) -> ProcessRun:
    """Go on with a run in its own process."""
    return ProcessRun(["resume", str(folder)], folder)


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
        scores={_score_name(name): curve for name, curve in metrics.items() if "loss" not in name},
        preview=previews[-1] if previews else None,
    )


def _crops_per_second(folder: Path, train: list[dict[str, Any]]) -> float | None:
    """Crops that the run learns from in a second, by its last steps."""
    seconds = [row["seconds"] for row in train[-SPEED_STEPS:] if row.get("seconds")]
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        # A run of a script has none; its speed is not known then.
        return None
    return config.get("batch_size", 1) / float(np.median(seconds)) if seconds else None


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
    return tuple((int(row["step"]), float(row[column])) for row in rows if column in row)


def _metrics(rows: list[dict[str, Any]]) -> dict[str, Curve]:
    plain = {"step", "epoch", "split", "seconds", "superseded", "learning_rate"}
    names = sorted({name for row in rows for name in row} - plain)
    return {name: _pairs(rows, name) for name in names}


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
        run = backend.RunFolder(folder)
        status = run.status()
        name = folder.name if folder == parent else folder.relative_to(parent).as_posix()
        state = STATES.get(status.state, status.state).split(":")[0].lower()
        text = f"{name}: {run.kind}, {state}, step {status.step} of {status.steps}"
        lines.append(RunLine(folder, name, text))
    return lines


def find_runs(parent: Path, depth: int = 3) -> list[Path]:
    """Run folders below `parent`, newest first; folders that cannot be read are left out."""
    found: list[Path] = []
    _collect(parent, depth, found)
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


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
