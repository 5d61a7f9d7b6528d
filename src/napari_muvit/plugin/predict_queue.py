"""Several images in one go: the queue of the Predict widget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QPushButton, QVBoxLayout, QWidget

from napari_muvit.api import image_stem
from napari_muvit.config import PredictConfig, parse_config
from napari_muvit.errors import InputError
from napari_muvit.plugin.dock import DockWidget
from napari_muvit.plugin.fold import Fold
from napari_muvit.plugin.layer_copies import LayerSource
from napari_muvit.plugin.notices import show_hint
from napari_muvit.plugin.predict import FOLDER
from napari_muvit.plugin.sources_picker import SourcesPicker


class PredictQueue(Fold):
    """Images that are predicted one after another; one that fails does not stop the rest.

    Parameters
    ----------
    dock
        The widget that this one is part of.
    """

    wanted = Signal()
    changed = Signal()

    def __init__(self, dock: DockWidget) -> None:
        super().__init__("Several images")
        inside = QWidget()
        layout = QVBoxLayout(inside)
        layout.setContentsMargins(0, 0, 0, 0)
        self.sources = SourcesPicker(dock, with_labels=False, title="Images to predict")
        self.sources.changed.connect(self.changed)
        self.sources.accept = self._take_part
        self._channels: tuple[str, ...] = ()
        self.start = QPushButton("Predict all")
        self.start.setToolTip(
            "Predict these images one after another, each to an OME-Zarr in the folder "
            "'predictions' of the run, with one table of areas beside them."
        )
        self.start.clicked.connect(self.wanted)
        layout.addWidget(self.sources)
        layout.addWidget(self.start)
        self.addWidget(inside)

    def _take_part(self, source: LayerSource) -> None:
        """Read the channels that the layer shows, where its file has others.

        Raises
        ------
        InputError
            If the images before are read with other channels.
        """
        if self.sources.images() and source.channels != self._channels:
            before = ", ".join(self._channels) or "all channels"
            raise InputError(
                f"{source.name!r} shows {', '.join(source.channels) or 'all channels'} of its "
                f"file; the images in the queue are read with {before}. Predict those first, or "
                "remove them."
            )
        self._channels = source.channels
        if source.channels:
            show_hint(f"The channel {', '.join(source.channels)} is read alone, as the layer does.")

    def config(self, model: str, device: str) -> PredictConfig:
        """What ``api.predict_images`` is to do.

        Raises
        ------
        InputError
            If no images are in the queue.
        """
        images = self.sources.images()
        if not images:
            raise InputError("no images are in the queue. Add layers or files to it.")
        folder = Path(model) / FOLDER
        output = folder
        if len(images) == 1 and not images[0].endswith(".csv"):
            # The engine takes a single image's output as its store.
            output = folder / f"{image_stem(Path(images[0]).name)}.ome.zarr"
        folder.mkdir(parents=True, exist_ok=True)
        return parse_config(PredictConfig, {
            "images": images, "model": model, "output": str(output), "device": device,
            "channels": self._channels or None,
        })


def many_rows(areas: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of several images with the image's name before the class."""
    return [
        {**row, "name": f"{image_stem(Path(str(row['image'])).name)}: {row['name']}"}
        if "image" in row else row for row in areas
    ]
