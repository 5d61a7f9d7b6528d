"""Live prediction in a viewer: the layer follows the camera, the viewer never waits.

``api.LivePrediction`` does the work on its own thread; here its layer is made, it is told what
the canvas shows, and the layer is drawn again when tiles have come.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtCore import QObject, QTimer, Signal

from napari_muvit.plugin.background import LatestTask
from napari_muvit.plugin.label_layers import class_kwargs
from napari_muvit.plugin.layers import ResolvedImage, visible_box
from napari_muvit.plugin.predict import LoadedModel

LOOK_MS = 150
"""How often the session looks what the canvas shows, and draws tiles that have come."""

FOLLOW_LOOKS = 20
"""Looks between two checks for a newer checkpoint."""


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

    Signals
    -------
    pending
        Number of visible tiles that are still to come.
    warned
        One sentence.
    ended
        None when it was stopped or its layers are gone, else the error. Always the last signal.
    """

    pending = Signal(int)
    warned = Signal(str)
    ended = Signal(object)
    _updated = Signal(int)

    def __init__(
        self, viewer: Any, backend: Any, image: ResolvedImage, layers: tuple[Any, ...],
        model: LoadedModel, *, device: str, cache: Path,
    ) -> None:
        super().__init__()
        self._viewer, self._backend, self._image, self._layers = viewer, backend, image, layers
        self._model, self._device, self._cache = model, device, cache
        self._engine: Any = None
        self.layer: Any = None
        self._shown: tuple[Any, ...] | None = None
        self._is_stale = False
        self.follow_checkpoints = False
        self._date = model_date(model.folder)
        self._looks = 0
        self._opener = LatestTask(self._open)
        self._opener.finished.connect(self._on_opened)
        self._opener.failed.connect(self._on_failed)
        self._swapper = LatestTask(self._swap)
        self._swapper.failed.connect(self._on_swap_failed)
        self._updated.connect(self._on_updated)
        self._timer = QTimer(self)
        self._timer.setInterval(LOOK_MS)
        self._timer.timeout.connect(self._on_look)

    def start(self) -> None:
        """Plan the prediction in the background, then show its layer."""
        self._opener.request()

    def stop(self) -> None:
        """End the prediction; its layer stays and shows what is known."""
        self._end(None)

    # -- in threads ----------------------------------------------------------------------

    def _open(self) -> Any:
        return self._backend.LivePrediction(
            self._image.pyramid, self._model.folder, cache=self._cache, device=self._device,
            on_update=self._tell_update, on_warning=self.warned.emit,
        )

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
        arrays = list(engine.arrays)
        place = {**self._image.transform.layer_kwargs(), "scale": np.asarray(engine.scale),
                 "translate": np.asarray(engine.offset)}
        name = f"{self._image.name}: live prediction"
        if name in self._viewer.layers:
            self._viewer.layers.remove(name)
        active = self._viewer.layers.selection.active
        self.layer = self._viewer.add_labels(
            arrays if len(arrays) > 1 else arrays[0], name=name, opacity=0.5, **place,
            **class_kwargs(engine.class_table),
        )
        self.layer.editable = False
        if active is not None:
            self._viewer.layers.selection.active = active
        self._timer.start()

    def _on_look(self) -> None:
        """Tell the engine what is in view; draw what it has found."""
        if not self._has_layers() or self.layer not in self._viewer.layers:
            self._end(None)
            return
        if self._is_stale:
            self._is_stale = False
            self.layer.refresh(thumbnail=False, highlight=False, extent=False)
        box = visible_box(self._layers[0], self._image.transform)
        if box is not None and self.layer.visible:
            level = int(self.layer.data_level) if self.layer.multiscale else 0
            shown = (*np.round(box, 1).ravel().tolist(), level)
            if shown != self._shown:
                self._shown = shown
                self._engine.set_view(box, level)
        self._looks += 1
        if self.follow_checkpoints and self._looks % FOLLOW_LOOKS == 0:
            self._look_for_checkpoint()

    def _look_for_checkpoint(self) -> None:
        date = model_date(self._model.folder)
        if date != self._date:
            self._date = date
            self._swapper.request(self._engine, self._model.folder)

    def _has_layers(self) -> bool:
        return all(layer in self._viewer.layers for layer in self._layers)

    def _on_updated(self, pending: int) -> None:
        self._is_stale = True
        self.pending.emit(pending)

    def _on_swap_failed(self, error: BaseException) -> None:
        # A checkpoint that is being written: the next one will do.
        self._date = 0.0
        self.warned.emit(f"the newer model cannot be loaded yet: {error}")

    def _on_failed(self, error: BaseException) -> None:
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        self.release()
        self.ended.emit(error)

    def release(self) -> None:
        """Let go of everything without touching the viewer; closing runs in a thread."""
        self._opener.stop()
        self._swapper.stop()
        self._timer.stop()
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.on_update = engine.on_warning = None
            close_later(engine.close)


def close_later(close: Callable[[], None]) -> None:
    """Call `close`, which waits for a tile in progress, without making the viewer wait."""
    threading.Thread(target=close, name="muvit-close", daemon=False).start()


def model_date(folder: str) -> float:
    """Newest change of the weights in a run or model folder, 0 where there are none."""
    path = Path(folder)
    files = [*path.glob("*.safetensors"), *path.glob("model*/*.safetensors")]
    try:
        return max((file.stat().st_mtime for file in files), default=0.0)
    except OSError:
        # A checkpoint was replaced between listing and looking.
        return 0.0
