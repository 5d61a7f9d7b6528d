"""What a run tells the outside: plain frozen events, each a safe place to stop or pause.

The command line prints them, a viewer's worker forwards them, tests collect them, and
`records` writes each one as a line of ``events.jsonl``.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Reason = Literal["completed", "stopped", "early", "failed"]
"""How a run ended: all steps done, asked to stop, no more improvement, or an error."""


@dataclass(frozen=True)
class StepEvent:
    """One optimizer step is done; `seconds` it took and `remaining` seconds of the run."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    seconds: float
    remaining: float


@dataclass(frozen=True)
class EpochEvent:
    """Epoch number `epoch` (from 1) is full; `loss` is the mean of its steps."""

    step: int
    epoch: int
    loss: float


@dataclass(frozen=True)
class ValidationEvent:
    """Validation metrics by name; `is_best` when no earlier validation was better."""

    step: int
    metrics: dict[str, float]
    is_best: bool = False


@dataclass(frozen=True)
class PreviewEvent:
    """A picture was written at `path`."""

    step: int
    path: Path


@dataclass(frozen=True)
class CheckpointEvent:
    """The training state was written at `path`; `is_best` if this is the best model so far."""

    step: int
    path: Path
    is_best: bool


@dataclass(frozen=True)
class WarningEvent:
    """Something the user should know; the run goes on."""

    step: int
    message: str


@dataclass(frozen=True)
class StoppingEvent:
    """A stop was noticed: what was under way is discarded, and the state is saved next."""

    step: int


@dataclass(frozen=True)
class FinishedEvent:
    """The last event of a run; `message` says why where the reason is "failed"."""

    step: int
    folder: Path
    reason: Reason
    metrics: dict[str, float] = field(default_factory=dict)
    message: str = ""


Event = (
    StepEvent | EpochEvent | ValidationEvent | PreviewEvent | CheckpointEvent | WarningEvent
    | StoppingEvent | FinishedEvent
)

_KINDS: dict[str, type[Any]] = {
    "step": StepEvent, "epoch": EpochEvent, "validation": ValidationEvent,
    "preview": PreviewEvent, "checkpoint": CheckpointEvent, "warning": WarningEvent,
    "stopping": StoppingEvent, "finished": FinishedEvent,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def event_to_record(event: Event, folder: Path) -> dict[str, Any]:
    """`event` as a JSON-ready dict; paths inside `folder` become relative to it.

    Relative paths keep a record true when the run folder is moved.
    """
    record: dict[str, Any] = {"event": _NAMES[type(event)]}
    for entry in dataclasses.fields(event):
        value = getattr(event, entry.name)
        if isinstance(value, Path):
            value = value.relative_to(folder).as_posix() if value.is_relative_to(folder) else (
                value.as_posix())
        record[entry.name] = _finite(value)
    return record


def _finite(value: Any) -> Any:
    """JSON knows no NaN: what is not finite becomes None."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def event_from_record(record: dict[str, Any], folder: Path) -> Event | None:
    """The event of one record, paths made absolute; None for kinds that this version lacks."""
    kind = _KINDS.get(str(record.get("event")))
    if kind is None:
        return None
    values: dict[str, Any] = {}
    for entry in dataclasses.fields(kind):
        if entry.name not in record:
            continue
        value = record[entry.name]
        if entry.type == "Path":
            value = folder / value
        elif entry.type == "float" and value is None:
            value = math.nan
        elif entry.type == "dict[str, float]":
            value = {key: math.nan if v is None else v for key, v in value.items()}
        values[entry.name] = value
    return kind(**values)  # type: ignore[no-any-return]
