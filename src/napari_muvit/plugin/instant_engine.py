"""The engine of instant mode, and where it computes: beside training, live prediction and others.

Without a model there are simple filters, which run on the processor. Features of a model are
computed where the desk of devices says, so that training keeps the graphics card.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from napari_muvit.plugin.annotate_session import AnnotationSession
from napari_muvit.plugin.devices import DeviceDesk, place_live, resolve

WHO = "instant prediction"
STARVED = (
    "The graphics card has no memory left for instant prediction, which goes on on the "
    "processor. Switch it off and on again when there is room."
)


@dataclass(frozen=True)
class InstantRequest:
    """What to predict: changes of the store and the view make it another one."""

    num_changed: int
    level: int
    start: tuple[int, ...]
    size: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class InstantAnswer:
    """A prediction, the session it is for, and what to tell about the device."""

    session: AnnotationSession
    result: Any
    text: str = ""


class InstantEngine:
    """The instant prediction of one store; made and used in one worker thread.

    Parameters
    ----------
    backend
        Has ``load_model``, ``InstantPrediction`` and ``device_facts``.
    desk
        Who computes where.
    wanted
        The device that was asked for: auto, cpu, cuda or mps.
    """

    def __init__(self, backend: Any, desk: DeviceDesk, wanted: str) -> None:
        self._backend, self._desk, self._wanted = backend, desk, wanted
        self._key: tuple[Any, str] | None = None
        self._engine: Any = None
        self._model: Any = None
        self._device = "cpu"

    def predict(
        self, session: AnnotationSession, folder: str, request: InstantRequest
    ) -> InstantAnswer:
        """The answer to `request`, with the features of the model in `folder`, if any."""
        key = (session.store, folder)
        if self._key is None or self._key[0] is not key[0] or self._key[1] != folder:
            self._model = self._backend.load_model(folder) if folder else None
            self._device = "cpu"
            image = session.image.pyramid
            self._engine = self._backend.InstantPrediction(image, session.store, self._model)
            self._key = key
        text = self._place()
        try:
            result = self._engine.predict(request.level, request.start, request.size)
        except RuntimeError as error:
            if self._device == "cpu" or "out of memory" not in str(error).lower():
                raise
            self._wanted, text = "cpu", STARVED
            self._place()
            result = self._engine.predict(request.level, request.start, request.size)
        return InstantAnswer(session, result, text)

    def _place(self) -> str:
        """Move the model to the device that is due now; what to tell about that."""
        if self._model is None:
            return ""
        due = place_live(self._backend, self._desk, self._wanted, WHO)
        device = due.device
        if device != "cpu":
            device = resolve(self._backend.device_facts(), device)
        if device != self._device:
            self._model.to(device)
            self._device = device
        return due.text
