"""Models that runs on this computer have made, to be chosen without browsing."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt, QTimer, Signal
from qtpy.QtWidgets import QComboBox

from napari_muvit.errors import MuvitError
from napari_muvit.plugin.background import LatestTask
from napari_muvit.plugin.dock import DockWidget
from napari_muvit.plugin.image_choices import ImageChoice
from napari_muvit.plugin.live import model_date
from napari_muvit.plugin.notices import notifies, show_failure
from napari_muvit.plugin.remembered import recall, recall_own
from napari_muvit.plugin.runs import find_runs
from napari_muvit.plugin.stored_images import stored_copy

LOOK_MS = 5000
"""How often runs are looked for."""
MOST_MODELS = 20
RUNS_FOLDER = "muvit-runs"
"""Where runs on an image go by default, beside it."""


@dataclass(frozen=True)
class KnownModel:
    """A run that has saved a model.

    Attributes
    ----------
    date
        When the model was saved, seconds since the epoch.
    is_here
        Whether it has learnt from the image at hand.
    """

    folder: Path
    date: float
    is_here: bool

    @property
    def text(self) -> str:
        """Its name, and whether it knows the image."""
        return f"{self.folder.name}{', on this image' if self.is_here else ''}"

    @property
    def details(self) -> str:
        """Its folder, and when it was saved."""
        return f"{self.folder}, {datetime.fromtimestamp(self.date):%Y-%m-%d %H:%M}"


def known_models(
    backend: Any, image: str | None, folders: Iterable[str], kinds: Collection[str]
) -> list[KnownModel]:
    """Models of runs in or below `folders`: those of the image first, then the newest.

    Runs in a thread. Runs that cannot be read, or have saved nothing yet, are left out.

    Parameters
    ----------
    image
        File of the image at hand.
    kinds
        Kinds of runs whose models will do.
    """
    found = {}
    for folder in dict.fromkeys(folders):
        for run in find_runs(Path(folder)):
            known = _known_model(backend, run, image, kinds)
            if known is not None:
                found[os.path.abspath(run)] = known
    newest = sorted(found.values(), key=lambda model: (model.is_here, model.date), reverse=True)
    return newest[:MOST_MODELS]


def _known_model(
    backend: Any, folder: Path, image: str | None, kinds: Collection[str]
) -> KnownModel | None:
    try:
        run = backend.RunFolder(folder)
        facts = run.facts()
        if facts["kind"] not in kinds:
            return None
        date = model_date(str(run.model_folder()))
    except (MuvitError, OSError, KeyError):
        return None
    learnt = {os.path.abspath(path) for path in facts.get("fingerprints", {})}
    is_here = image is not None and os.path.abspath(image) in learnt
    return KnownModel(folder, date, is_here)


def runs_folder(image: str) -> Path:
    """Where runs on an image go unless told otherwise: beside it.

    Those on an image of the web go where the last runs went, or into the user's home.
    """
    if "://" not in image:
        return Path(image).expanduser().absolute().parent / RUNS_FOLDER
    last = recall(None, "runs")
    return Path(str(last)) if last else Path.home() / RUNS_FOLDER


def runs_folders(image: str | None, verb: str) -> list[str]:
    """Where runs on an image are likely: beside it, and wherever the last ones were."""
    beside = [] if image is None else [str(runs_folder(image))]
    last = [recall_own(image, f"{verb}_run"), recall(None, "runs")]
    return [*beside, *(str(folder) for folder in last if folder)]


class KnownModels(QComboBox):  # type: ignore[misc]
    """A list of the models that can be taken; it follows runs as they end.

    Signals
    -------
    picked
        The run folder that was chosen.
    offered
        The run folder of the newest model that has learnt from the image, once for each image.
    """

    picked = Signal(str)
    offered = Signal(str)

    def __init__(self, dock: DockWidget, verb: str) -> None:
        super().__init__()
        self._dock, self._verb = dock, verb
        self._image: str | None = None
        self._is_offered = True
        self._models: list[KnownModel] = []
        self._shown = ""
        self.setToolTip("Models of the last runs: those of this image first, then the newest.")
        self.setPlaceholderText("no runs yet")
        policy = QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
        self.setSizeAdjustPolicy(policy)
        self.setMinimumContentsLength(12)
        self.activated.connect(self._on_activated)
        self._finder = LatestTask(known_models)
        self._finder.finished.connect(self._on_found)
        self._finder.failed.connect(self._on_failed)
        dock.destroyed.connect(self._finder.stop)
        self._timer = QTimer(self)
        self._timer.setInterval(LOOK_MS)
        self._timer.timeout.connect(self._on_timer)
        self._timer.start()

    def set_image(self, choice: ImageChoice | None) -> None:
        """The image at hand; looks for its models."""
        self._image = None if choice is None else (
            choice.path or stored_copy(choice.name, choice.identity))
        self._is_offered = choice is None
        self.look()

    def show_folder(self, path: str) -> None:
        """Show which of the models lies in the run folder `path`, if any."""
        self._shown = os.path.abspath(path) if path else ""
        paths = [os.path.abspath(model.folder) for model in self._models]
        self.setCurrentIndex(paths.index(self._shown) if self._shown in paths else -1)

    def look(self) -> None:
        """Look for models, in the background."""
        folders = runs_folders(self._image, self._verb)
        self._finder.request(self._dock.backend, self._image, folders, (self._verb,))

    def _on_timer(self) -> None:
        if self.isVisible() and not self.view().isVisible():
            self.look()

    @notifies
    def _on_found(self, found: list[KnownModel]) -> None:
        if found != self._models and not self.view().isVisible():
            self._models = found
            self.clear()
            for model in found:
                self.addItem(model.text)
                self.setItemData(self.count() - 1, model.details, Qt.ItemDataRole.ToolTipRole)
            self.setPlaceholderText("choose a run" if found else "no runs yet")
            self.setEnabled(bool(found))
            self.show_folder(self._shown)
        is_new, self._is_offered = not self._is_offered, True
        if is_new and found and found[0].is_here:
            self.offered.emit(str(found[0].folder))

    def _on_failed(self, error: BaseException) -> None:
        self._timer.stop()  # said once, not at every look
        show_failure(error)

    def _on_activated(self, index: int) -> None:
        self.picked.emit(str(self._models[index].folder))
