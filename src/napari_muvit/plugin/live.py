"""Live prediction in a viewer: the layer follows the camera, the viewer never waits.

``api.LivePrediction`` does the work on its own thread; here its layer is made, it is told what
the canvas shows, and the layer is drawn again when tiles have come.
"""

from __future__ import annotations

import importlib
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtCore import QObject, QTimer, Signal

from napari_muvit.errors import InputError, RunError
from napari_muvit.geometry import FloatArray
from napari_muvit.plugin.background import LatestTask
from napari_muvit.plugin.devices import DESK, DeviceDesk, Placement, place_live
from napari_muvit.plugin.layers import ResolvedImage, plane_index, visible_box
from napari_muvit.plugin.live_layers import LiveLayers
from napari_muvit.plugin.notices import Reasons, sentence
from napari_muvit.plugin.predict import LoadedModel
from napari_muvit.plugin.preferences import cache_bytes
from napari_muvit.plugin.priority import lower_thread

LOOK_MS = 150
"""How often the session looks what the canvas shows, and draws tiles that have come."""

MOST_PLACES = 50
"""Uncertain places to go through before the first comes again."""

STOPPED = "live prediction stopped: "
"""How the engine's last words begin."""

FOLLOW_LOOKS = 20
"""Looks between two checks for a newer checkpoint."""

_closing: list[threading.Thread] = []
"""What lets go of engines, and of their caches."""


class LiveSession(QObject):  # type: ignore[misc]
    """One live prediction of one image, with its layer.

    Parameters
    ----------
    viewer, backend
        The viewer, and what has ``LivePrediction``.
    image, layers
        The image, and the layers that show it.
    model
        The segmenter.
    cache
        Folder of the caches, kept between sessions.
    desk
        Who else computes where; training has the first right to a graphics card.

    Signals
    -------
    pending
        Number of visible tiles that are still to come.
    warned
        One sentence.
    ended
        None when it was stopped or its layers are gone, else the error. Always the last signal.
    moved
        Another time point is shown than the one that is predicted.
    """

    pending = Signal(int)
    warned = Signal(str)
    ended = Signal(object)
    moved = Signal()
    _updated = Signal(int)
    _starved = Signal()
    _broken = Signal(str)

    def __init__(
        self, viewer: Any, backend: Any, image: ResolvedImage, layers: tuple[Any, ...],
        model: LoadedModel, *, device: str, cache: Path, desk: DeviceDesk = DESK,
    ) -> None:
        super().__init__()
        self._viewer, self._backend, self._image, self._layers = viewer, backend, image, layers
        self._model, self._device, self._cache = model, device, cache
        self._engine: Any = None
        self._shown_layers: LiveLayers | None = None
        self._wants_confidence = False
        self._visited: set[tuple[float, ...]] = set()
        self._shown: tuple[Any, ...] | None = None
        self._is_stale = False
        self._reasons = Reasons()
        self.follow_checkpoints = False
        self._date = model_date(model.folder)
        self._looks = 0
        self._opener = LatestTask(self._open)
        self._opener.finished.connect(self._on_opened)
        self._opener.failed.connect(self._on_failed)
        self._swapper = LatestTask(self._swap)
        self._swapper.failed.connect(self._on_swap_failed)
        self._desk, self._placed = desk, Placement(device)
        self._leave: Callable[[], None] | None = None
        self._mover = LatestTask(self._move)
        self._mover.finished.connect(self._on_moved)
        self._mover.failed.connect(self._on_move_failed)
        self._starved.connect(self._on_starved)
        self._broken.connect(self._on_broken)
        self._updated.connect(self._on_updated)
        self._timer = QTimer(self)
        self._timer.setInterval(LOOK_MS)
        self._timer.timeout.connect(self._on_look)

    def start(self) -> None:
        """Plan the prediction in the background, then show its layer."""
        who = f"Live prediction of {self._image.name}"
        self._leave = self._desk.claim("live", who, self._device)
        self._desk.changed.connect(self._on_desk)
        self._opener.request()

    def stop(self) -> None:
        """End the prediction; its layer stays and shows what is known."""
        self._end(None)

    @property
    def image(self) -> ResolvedImage:
        """What is predicted."""
        return self._image

    @property
    def is_running(self) -> bool:
        """Whether the model is planned and has not been let go."""
        return self._engine is not None

    @property
    def layer(self) -> Any:
        """The labels layer, None until the model is loaded."""
        return None if self._shown_layers is None else self._shown_layers.labels

    def show_confidence(self, is_shown: bool) -> None:
        """Show or hide the layer of confidence."""
        self._wants_confidence = is_shown
        if self._shown_layers is not None:
            self._shown_layers.show_confidence(is_shown)

    def next_uncertain(self) -> FloatArray:
        """Middle, world px (A,), of the least certain tile that was not asked for before.

        Raises
        ------
        InputError
            If nothing is predicted yet.
        """
        places = [] if self._engine is None else self._engine.most_uncertain(MOST_PLACES)
        if not places:
            raise InputError("nothing is predicted yet. Wait for the first tiles.")
        middles = [(*place.plane, *place.box.mean(axis=0).tolist()) for place in places]
        fresh = [middle for middle in middles if middle not in self._visited]
        if not fresh:
            self._visited.clear()
        chosen = (fresh or middles)[0]
        self._visited.add(chosen)
        return np.asarray(chosen)

    # -- in threads ----------------------------------------------------------------------

    def _open(self) -> Any:
        # The model's thread is made by this one, and gives way as it does.
        lower_thread()
        importlib.import_module("pandas")  # napari's labels need it, and would load it in its loop
        wait_for_closing()  # it may be the same image's cache
        self._placed = place_live(self._backend, self._desk, self._device)
        if self._placed.text:
            self.warned.emit(self._placed.text)
        return self._backend.LivePrediction(
            self._image.pyramid, self._model.folder, cache=self._cache,
            device=self._placed.device, max_bytes=cache_bytes(), on_update=self._tell_update,
            on_warning=self._tell_warning,
        )

    def _tell_warning(self, text: str) -> None:
        if "out of memory" in text.lower() and self._placed.device != "cpu":
            self._starved.emit()
        elif text.startswith(STOPPED):
            self._broken.emit(text.removeprefix(STOPPED))
        elif said := self._reasons.fresh(text):
            self.warned.emit(said)

    def _move(self, engine: Any, wanted: str) -> Placement:
        """Go to the device that is due now."""
        due = place_live(self._backend, self._desk, wanted)
        if due.device != self._placed.device:
            engine.use_device(due.device)
        return due

    def _tell_update(self, update: Any) -> None:
        self._updated.emit(update.pending)

    def _swap(self, engine: Any, folder: str) -> None:
        engine.swap_model(folder)

    # -- in the GUI thread ---------------------------------------------------------------

    def _on_opened(self, engine: Any) -> None:
        self._engine = engine
        if not self._has_layers():
            self._end(None)
            return
        self._shown_layers = LiveLayers(self._viewer, self._image, engine, self)
        self._shown_layers.show_confidence(self._wants_confidence)
        self._timer.start()
        self.pending.emit(0)  # it is planned; how much there is to do, the first tiles tell
        # A training may have begun meanwhile.
        self._on_desk()

    def _on_look(self) -> None:
        """Tell the engine what is in view; draw what it has found."""
        layers = self._shown_layers
        if layers is None or not layers.is_there or not self._has_layers():
            self._end(None)
            return
        if self._is_stale:
            self._is_stale = False
            layers.refresh()
        transform, point = self._image.transform, self._viewer.dims.point
        if self._image.plane != plane_index(self._layers[0], point, transform.num_axes):
            self.moved.emit()
            return
        box, level = visible_box(self._layers[0], transform, point), layers.level
        if box is not None and level is not None:
            lead = len(self._engine.plane_axes)
            plane = np.round(transform.to_world(point)[:lead]).astype(int)
            plane = np.clip(plane, 0, np.asarray(self._engine.arrays[0].shape[:lead]) - 1).tolist()
            shown = (*np.round(box, 1).ravel().tolist(), *plane, level)
            if shown != self._shown:
                self._shown = shown
                self._engine.set_view(box[:, lead:], level, plane)
        self._looks += 1
        if self.follow_checkpoints and self._looks % FOLLOW_LOOKS == 0:
            self._look_for_checkpoint()

    def _look_for_checkpoint(self) -> None:
        date = model_date(self._model.folder)
        if date != self._date:
            self._date = date
            self._swapper.request(self._engine, self._model.folder)

    def _on_desk(self) -> None:
        """Somebody began or ended to compute."""
        if self._engine is not None:
            self._mover.request(self._engine, self._device)

    def _on_moved(self, due: Placement) -> None:
        before, self._placed = self._placed, due
        if due.text and due.text != before.text:
            self.warned.emit(due.text)
        elif due.device not in ("cpu", before.device):
            self.warned.emit("Live prediction is back on the graphics card.")

    def _on_move_failed(self, error: BaseException) -> None:
        self.warned.emit(f"live prediction stays where it is: {error}")

    def _on_starved(self) -> None:
        """The graphics card has no memory left: from here on the processor does it."""
        if self._engine is not None and self._device != "cpu":
            self._device = "cpu"
            self._mover.request(self._engine, "cpu")
            self.warned.emit(
                "The graphics card has no memory left for live prediction, which goes on on the "
                "processor. Start it again when there is room."
            )

    def _on_broken(self, why: str) -> None:
        """The engine gave up: so does the session, which can be started again."""
        why = re.sub(r"^\[Errno -?\d+\] ", "", why).rstrip(". ") or "there is not enough memory"
        if self._engine is not None:
            self._end(RunError(f"Live prediction stopped: {why}."))

    def _has_layers(self) -> bool:
        return all(layer in self._viewer.layers for layer in self._layers)

    def _on_updated(self, pending: int) -> None:
        if self._engine is None:
            return  # said by the model's thread before it was let go
        self._is_stale = True
        self.pending.emit(pending)

    def _on_swap_failed(self, error: BaseException) -> None:
        if isinstance(error, InputError):
            # Another training writes there now, whose model will never fit this session.
            self.follow_checkpoints = False
            self.warned.emit(sentence(error))
            return
        # A checkpoint that is being written: the next one will do.
        self._date = 0.0
        self.warned.emit(f"the newer model cannot be loaded yet: {sentence(error)}")

    def _on_failed(self, error: BaseException) -> None:
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        self.release()
        self.ended.emit(error)

    def release(self) -> None:
        """Let go of everything without touching the viewer; closing runs in a thread."""
        self._opener.stop()
        self._swapper.stop()
        self._mover.stop()
        self._timer.stop()
        if self._leave is not None:
            self._desk.changed.disconnect(self._on_desk)
            self._leave()
            self._leave = None
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.on_update = engine.on_warning = None
            close_later(engine.close)


def close_later(close: Callable[[], None]) -> None:
    """Call `close`, which waits for a tile in progress, without making the viewer wait."""
    thread = threading.Thread(target=close, name="muvit-close", daemon=False)
    thread.start()
    _closing[:] = [*(other for other in _closing if other.is_alive()), thread]


def wait_for_closing() -> None:
    """Wait, outside the GUI thread, until what is being closed has let go of its files."""
    for thread in tuple(_closing):
        thread.join()


def model_date(folder: str) -> float:
    """Newest change of the weights in a run or model folder, 0 where there are none."""
    path = Path(folder)
    files = [*path.glob("*.safetensors"), *path.glob("model*/*.safetensors")]
    try:
        return max((file.stat().st_mtime for file in files), default=0.0)
    except OSError:
        # A checkpoint was replaced between listing and looking.
        return 0.0
