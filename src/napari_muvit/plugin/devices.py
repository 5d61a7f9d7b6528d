"""Who computes where: training and live prediction that want the same graphics card.

Training keeps the card. Live and instant prediction and features that may be computed anywhere
move to the processor until the training ends; what was told to use the card shares it. Either
way a sentence says so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qtpy.QtCore import QObject, Signal

Kind = Literal["training", "live"]


@dataclass(frozen=True, eq=False)
class Use:
    """Somebody who computes: as what, under which name, and the device that was asked for."""

    kind: Kind
    who: str
    device: str


@dataclass(frozen=True)
class Placement:
    """The device that was decided on, and what to tell about it; nothing to tell is ""."""

    device: str
    text: str = ""


class DeviceDesk(QObject):  # type: ignore[misc]
    """Where widgets of one napari say on which device they compute.

    Any thread may ask; `changed` tells that somebody came or went.
    """

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self._guard = threading.Lock()
        self._uses: list[Use] = []

    def claim(self, kind: Kind, who: str, device: str) -> Callable[[], None]:
        """Note a use; what is returned ends it, and may be called again."""
        use = Use(kind, who, device)
        with self._guard:
            self._uses.append(use)
        self.changed.emit()

        def release() -> None:
            with self._guard:
                if use not in self._uses:
                    return
                self._uses.remove(use)
            self.changed.emit()

        return release

    def uses(self, kind: Kind | None = None) -> list[Use]:
        """Those who compute now, all or of one kind."""
        with self._guard:
            return [use for use in self._uses if kind in (None, use.kind)]


DESK = DeviceDesk()
"""The desk of this napari; widgets and sessions take another one as an argument."""


def resolve(facts: Sequence[Any], wanted: str) -> str:
    """The device that `wanted` means where there are the devices of ``api.device_facts``."""
    usable = [fact.name for fact in facts if fact.is_usable]
    if wanted == "auto":
        return usable[0] if usable else "cpu"
    if wanted == "cuda":
        return next((name for name in usable if name.startswith("cuda")), wanted)
    return wanted


def place_live(
    backend: Any, desk: DeviceDesk, wanted: str, who: str = "live prediction"
) -> Placement:
    """Where `who` runs beside the trainings there are (may take long: in a thread)."""
    trainings = [use for use in desk.uses("training") if use.device != "cpu"]
    if wanted == "cpu" or not trainings:
        return Placement(wanted)
    facts = backend.device_facts()
    device = resolve(facts, wanted)
    rivals = [use.who for use in trainings if resolve(facts, use.device) == device]
    if device == "cpu" or not rivals:
        return Placement(wanted)
    if wanted == "auto":
        return Placement("cpu", (
            f"The graphics card is used by {rivals[0]}; {who} runs on the processor "
            "until that ends. Choose the device 'cuda' to share the card."
        ))
    return Placement(wanted, (
        f"{who.capitalize()} shares the graphics card with {rivals[0]}: both are slower, and its "
        "memory may not do for both."
    ))


class Placing:
    """Where somebody computes from one part to the next; called in a thread.

    Attributes
    ----------
    text
        What to tell about the device that was last decided on.
    """

    def __init__(self, backend: Any, desk: DeviceDesk, wanted: str, who: str) -> None:
        self._backend, self._desk, self._wanted, self._who = backend, desk, wanted, who
        self.text = ""

    def __call__(self) -> str:
        """The device that is due now."""
        due = place_live(self._backend, self._desk, self._wanted, self._who)
        self.text = due.text
        return due.device


def training_words(backend: Any, desk: DeviceDesk, wanted: str) -> list[str]:
    """Sentences on who else uses the device that a run is to train on (in a thread)."""
    others = [use for use in desk.uses() if use.device != "cpu"]
    if wanted == "cpu" or not others:
        return []
    facts = backend.device_facts()
    device = resolve(facts, wanted)
    if device == "cpu":
        return []
    rivals = [use for use in others if resolve(facts, use.device) == device]
    return [_words(use) for use in rivals]


def _words(use: Use) -> str:
    if use.kind == "training":
        return (
            f"The graphics card is used by {use.who} already: both are slower, and its memory "
            "may not do for both. Wait for its end, or choose another device."
        )
    if use.device == "auto":
        return f"{use.who} moves to the processor while this run trains."
    return f"{use.who} shares the graphics card with this run: both are slower."
