"""A run goes on: from its last checkpoint, elsewhere, or further than was planned."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from napari_muvit.config import RunConfig, parse_config
from napari_muvit.errors import ConfigError, nearest_name
from napari_muvit.training.control import Control
from napari_muvit.training.engine import Engine
from napari_muvit.training.events import FinishedEvent
from napari_muvit.training.folder import RunFolder, change_steps
from napari_muvit.training.run import Run
from napari_muvit.training.start import build_engine, prepare_run

CHANGEABLE = ("device", "workers", "threads", "steps")
"""Options that may differ from the first start; all but the last leave the result as it is."""


def resume_run(folder: str | os.PathLike[str], **changes: Any) -> Run:
    """The run in `folder`, going on from its last checkpoint.

    A run that is complete computes nothing: its only event says so.

    Parameters
    ----------
    changes
        Options that may differ from the first start: device, workers, threads; and steps, to
        end later or sooner than planned. The learning rate then follows the new number from
        the checkpoint on, so the result is not that of a run planned so from the start.

    Raises
    ------
    ConfigError
        If `changes` names an option that cannot change.
    RunError
        If there is no run.
    LockedError
        If steps are to change while another process trains the run.
    """
    place = RunFolder(folder)
    given = _check_changes(changes)
    ending, planned = place.ending(), int(place.facts()["steps"])
    if ending is not None and "steps" not in given and (
        ending.reason == "early" or (ending.reason == "completed" and ending.step >= planned)
    ):
        return _complete(place, ending, planned)
    config = place.config()
    config = parse_config(type(config), {**config.model_dump(), **given})
    ready = prepare_run(config, place.kind, place)
    engine = build_engine(ready, place)
    if not place.state_path.exists():
        engine.warnings += (
            "the run had not written a checkpoint yet; it starts over from its first step.",)
    if "steps" in given:
        _extend(engine, place, config, planned)
    return Run(engine.events(), place.path, engine.control)


def _check_changes(changes: dict[str, Any]) -> dict[str, Any]:
    for name in changes:
        if name not in CHANGEABLE:
            near = nearest_name(name, CHANGEABLE)
            hint = f"Did you mean {near!r}?" if near else "Start a new run instead."
            raise ConfigError(
                f"{name} cannot change when a run is resumed; {', '.join(CHANGEABLE)} can. {hint}",
                field=name,
            )
    return {name: value for name, value in changes.items() if value is not None}


def _complete(place: RunFolder, ending: FinishedEvent, planned: int) -> Run:
    """A run that has nothing to do but to say so."""
    done = f"{ending.step} of {planned} steps are done"
    if ending.reason == "early":
        done = f"it ended early after {ending.step} steps, as validation no longer improved"
    event = replace(ending, folder=place.path, message=(
        f"the run is complete: {done}; nothing was computed. To go on longer, resume it with "
        f"steps (--steps N), for example {2 * max(ending.step, 1)}."))
    return Run(iter((event,)), place.path, Control())


def _extend(engine: Engine, place: RunFolder, config: RunConfig, planned: int) -> None:
    """Let the run end at another step than planned."""
    done, steps = engine.progress.step, config.steps
    if steps <= done:
        raise ConfigError(
            f"steps is {steps}; the run {str(place.path)!r} has done {done} already. Pass a "
            "larger number to go on, or leave steps out.", field="steps",
        )
    engine.progress.stale = 0  # early stopping waits anew
    if engine.parallel.is_main:
        change_steps(place, config, done)
    if steps != planned:
        engine.warnings += (
            f"the run goes on to {steps} steps instead of {planned}; from step {done} on its "
            "learning rate follows the new number. A run planned so from the start would have "
            "ended otherwise.",)
