"""How long a run will take, from a few of its own steps before it starts. Knows no Qt."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from napari_muvit.config import RunConfig
from napari_muvit.plugin.priority import lower_thread
from napari_muvit.plugin.remembered import recall, remember

WARM_UP = 1
"""First steps, which are slower, that do not count."""
MEASURED = 3
NEVER = 1_000_000
MOST_KEPT = 50
"""Measurements that are remembered."""


class SpeedCheck:
    """A few steps of a run in a folder that is thrown away.

    Parameters
    ----------
    backend, verb
        Has the verb, ``pretrain`` or ``finetune``.
    config
        Of the run to come.
    """

    def __init__(self, backend: Any, verb: str, config: RunConfig) -> None:
        self._backend, self._verb, self._config = backend, verb, config
        self._run: Any = None
        self._is_stopped = False
        self.seconds: list[float] = []

    def steps(self) -> Iterator[int]:
        """Train; the number of steps done after each (to be iterated in a thread)."""
        lower_thread()
        with tempfile.TemporaryDirectory(prefix="muvit-", ignore_cleanup_errors=True) as folder:
            trial = self._config.model_copy(update={
                "output": str(Path(folder) / "run"), "steps": NEVER, "validate_every": NEVER,
                "preview_every": NEVER, "checkpoint_every": NEVER, "tensorboard": False,
            })
            self._run = getattr(self._backend, self._verb)(trial)
            try:
                yield from self._watch()
            finally:
                self._run.close()

    def _watch(self) -> Iterator[int]:
        if self._is_stopped:
            return
        for event in self._run:
            if hasattr(event, "learning_rate"):
                self.seconds.append(event.seconds)
                yield len(self.seconds)
                if len(self.seconds) == WARM_UP + MEASURED:
                    return

    def stop(self) -> None:
        """End soon; a step under way is abandoned."""
        self._is_stopped = True
        if self._run is not None:
            self._run.stop()

    @property
    def crops_per_second(self) -> float | None:
        """What was measured; None after a stop."""
        counted = self.seconds[WARM_UP:]
        if self._is_stopped or not counted:
            return None
        return self._config.batch_size / float(np.median(counted))


def time_text(config: RunConfig, crops_per_second: float) -> str:
    """How long the run takes at that speed, as a person says it."""
    seconds = config.steps * config.batch_size / crops_per_second
    return (
        f"{crops_per_second:.2g} crops per second on this computer: {span_text(seconds)} for "
        f"{config.steps} steps, validation not counted."
    )


def span_text(seconds: float) -> str:
    """A span of time with its unit."""
    for limit, unit, size in ((90, "s", 1), (5400, "min", 60), (129_600, "h", 3600)):
        if seconds < limit:
            return f"about {max(1, round(seconds / size))} {unit}"
    return f"about {seconds / 86_400:.1f} days"


def known_speed(verb: str, config: RunConfig) -> float | None:
    """The crops per second that were measured for such a run, None if none were."""
    found = (recall(None, "speeds") or {}).get(_signature(verb, config))
    return float(found) if isinstance(found, (int, float)) and found > 0 else None


def keep_speed(verb: str, config: RunConfig, crops_per_second: float) -> None:
    """Remember a measurement for runs like this one."""
    known = recall(None, "speeds") or {}
    kept = dict(list(known.items())[1 - MOST_KEPT:])
    remember(None, speeds={**kept, _signature(verb, config): crops_per_second})


def _signature(verb: str, config: RunConfig) -> str:
    """What the speed depends on."""
    names = (
        "preset", "dim", "num_layers", "patch_size", "levels", "crop_size", "batch_size", "device",
        "precision", "threads", "workers", "masking_ratio", "decoder", "freeze_encoder",
        "pretrained", "attention_mode", "activation_checkpointing",
    )
    return f"{verb} " + " ".join(str(getattr(config, name, "")) for name in names)
