"""A run is a folder, and the folder is the truth: whatever watches a run reads it here.

::

    config.yaml      the complete configuration; versions, seed, device as comments
    run.json         the same facts for programs: kind, versions, device, kernels, fingerprints
    model/           the last model: config, weights, normalisation, class table
    model-best/      the best model, where the run validates
    checkpoint/      the training state
    events.jsonl  metrics.csv  previews/
    validation/      predictions of whole validation images, where asked for
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from napari_muvit.config import (
    FinetuneConfig,
    PretrainConfig,
    RunConfig,
    parse_config,
    write_config,
)
from napari_muvit.data.lock import WriterLock, is_held
from napari_muvit.errors import CheckpointError, LockedError, RunError, RunExistsError
from napari_muvit.renaming import rename_over
from napari_muvit.training.events import Event, FinishedEvent, event_from_record
from napari_muvit.training.files import write_whole
from napari_muvit.training.records import EVENTS, METRICS, read_events, read_metrics

CONFIG = "config.yaml"
FACTS = "run.json"
MODEL, BEST = "model", "model-best"
STATE = Path("checkpoint") / "state.pt"
PREVIEWS = "previews"
VALIDATION = "validation"
LOCK = "writing.lock"
CONTROL = "control"

FIT = "fit"
"""Kind of a run that a script started with .fit()."""

TAIL = 1 << 16
"""Bytes at the end of the events that are read first to see where a run is."""

PATIENCE = 1.0
"""Seconds that a writer tries to get the lock for."""

KINDS: dict[str, type[RunConfig]] = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}

State = Literal["running", "interrupted", "completed", "stopped", "early", "failed"]


@dataclass(frozen=True)
class RunStatus:
    """Where a run is, as its folder tells.

    `state` is "running" while a process writes the folder, "interrupted" when none does
    though the run has not finished (it was killed), else the reason of its last event.
    """

    state: State
    step: int
    steps: int
    remaining: float | None
    message: str = ""


class RunFolder:
    """Reads a run folder, also while the run goes on elsewhere, and lends paths to its writer.

    Parameters
    ----------
    path
        The run folder.

    Raises
    ------
    RunError
        If there is no run at `path`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        if not (self.path / FACTS).is_file():
            what = "holds no run" if self.path.is_dir() else "does not exist"
            raise RunError(
                f"{str(path)!r} {what}. Pass the folder that a training run wrote as its output."
            )

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    def facts(self) -> dict[str, Any]:
        """Kind, versions, device, kernel choice, fingerprints of the images."""
        try:
            facts: dict[str, Any] = json.loads((self.path / FACTS).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(
                f"{str(self.path / FACTS)!r} cannot be read: {error}. It was damaged; copy it from "
                "a backup, or start the run again."
            ) from error
        return facts

    @property
    def kind(self) -> str:
        """"pretrain", "finetune" or "fit"."""
        return str(self.facts()["kind"])

    def config(self) -> RunConfig:
        """The run's configuration, its output being this folder, wherever it was moved.

        Raises
        ------
        RunError
            If the run was not made from a configuration (`fit`).
        """
        kind = KINDS.get(self.kind)
        if kind is None:
            raise RunError(
                f"the run {str(self.path)!r} was started by a script's .fit(); it has no "
                "configuration. Call .fit(..., ckpt_path=...) in that script to go on."
            )
        config = parse_config(kind, self.path / CONFIG)
        return config.model_copy(update={"output": str(self.path)})

    def events(self, superseded: bool = False) -> list[Event]:
        """All events so far; those that a resumed run did again only if `superseded`."""
        records = read_events(self.path / EVENTS)
        kept = [r for r in records if superseded or not r.get("superseded")]
        events = [event_from_record(record, self.path) for record in kept]
        return [event for event in events if event is not None]

    def metrics(self, superseded: bool = False) -> list[dict[str, Any]]:
        """Rows of ``metrics.csv``, numbers as numbers, empty cells left out."""
        rows = read_metrics(self.path / METRICS)
        return [row for row in rows if superseded or not row.get("superseded")]

    def status(self) -> RunStatus:
        """What the run is doing now."""
        # The end of a long file tells it all, unless the last events were many others.
        for size in (TAIL, None):
            records = [r for r in read_events(self.path / EVENTS, size) if not r.get("superseded")]
            steps = [r for r in records if r["event"] == "step"]
            if steps:
                break
        last = steps[-1] if steps else {"step": 0, "steps": self.facts()["steps"],
                                        "remaining": None}
        message = ""
        if self.is_writing():
            state: State = "running"
        elif records and records[-1]["event"] == "finished":
            state, message = records[-1]["reason"], records[-1].get("message", "")
        else:
            state = "interrupted"
        remaining = last["remaining"] if state == "running" else None
        return RunStatus(state, last["step"], last["steps"], remaining, message)

    def ending(self) -> FinishedEvent | None:
        """How the run ended; None while it has not. Asks nobody whether it is being written."""
        records = [r for r in read_events(self.path / EVENTS, TAIL) if not r.get("superseded")]
        last = event_from_record(records[-1], self.path) if records else None
        return last if isinstance(last, FinishedEvent) else None

    def is_writing(self) -> bool:
        """Whether a process trains this run now."""
        try:
            return is_held(self.path / LOCK)
        except OSError:  # a file that may not be read tells nothing
            return False

    def lock(self, patience: float = 0.0) -> WriterLock:
        """The right to write the folder.

        Parameters
        ----------
        patience
            Seconds to try for: who looks at the run's status keeps writers out for a moment.

        Raises
        ------
        LockedError
            If another process, or another run in this one, has it.
        """
        end = time.monotonic() + patience
        while True:
            try:
                return WriterLock(self.path / LOCK, f"the run {str(self.path)!r}")
            except LockedError:
                if time.monotonic() >= end:
                    raise
                time.sleep(0.05)

    def ask(self, action: Literal["pause", "resume", "stop"]) -> None:
        """Ask the process that trains this run, wherever it is, to pause, go on, or stop."""
        write_whole(self.path / CONTROL, action.encode())

    @property
    def control_path(self) -> Path:
        """The file through which other processes ask."""
        return self.path / CONTROL

    def previews(self) -> list[Path]:
        """The preview pictures, oldest first."""
        return sorted((self.path / PREVIEWS).glob("*.png"))

    @property
    def state_path(self) -> Path:
        """The file of the training state."""
        return self.path / STATE

    def model_folder(self, best: bool = True) -> Path:
        """Folder of the best model if the run validated (and `best`), else of the last one.

        Raises
        ------
        CheckpointError
            If the run has not saved a model yet.
        """
        names = (BEST, MODEL) if best else (MODEL,)
        folders = [self.path / name for name in names]
        if self.kind == FIT:
            folders.append(self.path)  # where a script's .fit() writes the official folder
        for folder in folders:
            if (folder / "config.yaml").is_file():
                return folder
        raise CheckpointError(
            f"the run {str(self.path)!r} has not saved a model yet. Let it reach its first "
            "checkpoint (option checkpoint_every)."
        )


def find_model(path: str | os.PathLike[str]) -> Path:
    """The model folder that `path` means: a run's best if validated, else last; or itself."""
    if (Path(path) / FACTS).is_file():
        return RunFolder(path).model_folder()
    return Path(path)


def check_output(output: str | os.PathLike[str]) -> Path:
    """The absolute path of a run folder that can be made.

    Raises
    ------
    RunExistsError
        If something is there already.
    RunError
        If it cannot be made there.
    """
    path = Path(output).expanduser().absolute()
    if path.is_dir() and not any(path.iterdir()):
        return path
    if (path / FACTS).exists():
        raise RunExistsError(
            f"the output {str(output)!r} already holds a run; nothing was overwritten. Choose "
            "another folder, or go on with `resume`."
        )
    if path.exists():
        raise RunExistsError(
            f"the output {str(output)!r} exists and is not empty; nothing was overwritten. Choose "
            "a folder that does not exist yet."
        )
    parent = next(p for p in path.parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise RunError(
            f"the output {str(output)!r} cannot be made: {str(parent)!r} is not a folder that you "
            "may write. Choose another output."
        )
    return path


def create_run(path: Path, config: RunConfig | None, facts: dict[str, Any]) -> RunFolder:
    """Make a run folder in one move: it is there with its configuration, or not at all.

    Raises
    ------
    RunExistsError
        If something came to be at `path` meanwhile.
    """
    beside = path.with_name(f".{path.name}.new")
    shutil.rmtree(beside, ignore_errors=True)  # of a start that was killed here
    try:
        beside.mkdir(parents=True)
        if config is not None:
            write_config(config, beside / CONFIG, **_shown(facts))
        for name in (EVENTS, METRICS):
            write_whole(beside / name, b"")
        write_whole(beside / FACTS, json.dumps(facts, indent=1, default=str).encode("utf-8"))
        if path.is_dir():
            path.rmdir()
        beside.rename(path)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        if path.exists():
            check_output(path)
        raise RunError(
            f"the output {str(path)!r} cannot be made: {error.strerror or error}. Choose another "
            "folder, or make room there."
        ) from error
    return RunFolder(path)


def _shown(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts that stand as comments above a run's config."""
    kernels = ", ".join(f"{name} {kind}" for name, kind in facts.get("kernels", {}).items())
    return {k: v for k, v in facts.items() if k != "fingerprints"} | {"kernels": kernels}


def change_steps(folder: RunFolder, config: RunConfig, done: int) -> None:
    """Record that a run goes on to ``config.steps`` from step `done`, whatever was planned.

    Raises
    ------
    LockedError
        If another process trains the run.
    """
    with folder.lock(PATIENCE):
        before = folder.facts()
        change = {"at": done, "from": before["steps"], "to": config.steps}
        changes = [*before.get("changed_steps", []), change]
        facts = {**before, "steps": config.steps, "changed_steps": changes}
        beside = folder.path / f".{CONFIG}.part"
        write_config(config, beside, **_shown(facts))
        rename_over(beside, folder.path / CONFIG)
        add_facts(folder, **facts)


def add_facts(folder: RunFolder, **facts: Any) -> None:
    """Add to the facts of a run, or replace some."""
    text = json.dumps({**folder.facts(), **facts}, indent=1, default=str)
    write_whole(folder.path / FACTS, text.encode("utf-8"))
