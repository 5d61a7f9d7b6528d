"""The layers of a live prediction: labels, and beside them how sure the model is."""

from __future__ import annotations

from typing import Any

import numpy as np

from napari_muvit.plugin.image_choices import RESULT_KEY
from napari_muvit.plugin.label_layers import class_kwargs
from napari_muvit.plugin.layers import ResolvedImage
from napari_muvit.plugin.predict_layers import CONFIDENCE, LIVE

LIVE_KEY = "muvit_live"
"""Key of the labels' metadata under which their session is found."""


class LiveLayers:
    """What a viewer shows of a live prediction.

    Parameters
    ----------
    engine
        Has ``arrays``, ``confidence_arrays``, ``scale``, ``offset`` and ``plane_axes``.
    session
        What drives it; others find it in the labels' metadata.
    """

    def __init__(self, viewer: Any, image: ResolvedImage, engine: Any, session: Any) -> None:
        self._viewer, self._engine = viewer, engine
        # A model of planes predicts those of a volume; they stand in front of its own axes.
        lead = len(engine.plane_axes)
        self._place = image.transform.layer_kwargs(
            [1.0] * lead + [*engine.scale], [0.0] * lead + [*engine.offset])
        names = tuple(f"{image.name}: {kind}" for kind in (CONFIDENCE, LIVE))
        active = viewer.layers.selection.active
        for name in names:
            if name in viewer.layers:
                viewer.layers.remove(name)
        self._confidence_name = names[0]
        self.confidence: Any = None  # a layer takes the viewer long: it is made when it is wanted
        self.labels = self._add_labels(names[1], engine, session)
        if active is not None and active in viewer.layers:
            viewer.layers.selection.active = active

    def _add_confidence(self) -> None:
        """Below the labels, and without a change of the selection."""
        layers, arrays = self._viewer.layers, list(self._engine.confidence_arrays)
        several, active = len(arrays) > 1, layers.selection.active
        self.confidence = self._viewer.add_image(
            arrays if several else arrays[0], name=self._confidence_name, multiscale=several,
            contrast_limits=(0, 255), colormap=_confidence_colors(), blending="translucent",
            opacity=0.7, metadata={RESULT_KEY: True}, **self._place,
        )
        layers.move(layers.index(self.confidence), layers.index(self.labels))
        layers.selection.active = active

    def _add_labels(self, name: str, engine: Any, session: Any) -> Any:
        arrays = list(engine.arrays)
        several = len(arrays) > 1
        layer = self._viewer.add_labels(
            arrays if several else arrays[0], name=name, opacity=0.5, multiscale=several,
            # In a tuple, or else napari would hand it back behind its proxy for plugins.
            metadata={RESULT_KEY: True, LIVE_KEY: (session,)}, **self._place,
            **class_kwargs(engine.class_table),
        )
        layer.editable = False
        return layer

    @property
    def is_there(self) -> bool:
        """Whether the labels are still in the viewer; confidence may be taken away."""
        return self.labels in self._viewer.layers

    @property
    def level(self) -> int | None:
        """Which array the canvas shows, None where both layers are hidden."""
        for layer in (self.labels, self.confidence):
            if layer in self._viewer.layers and layer.visible:
                return int(layer.data_level) if layer.multiscale else 0
        return None

    def show_confidence(self, is_shown: bool) -> None:
        """Show confidence beside the labels, or the labels alone."""
        if self.confidence in self._viewer.layers:
            self.confidence.visible = is_shown
        elif is_shown and self.is_there:
            self._add_confidence()

    def refresh(self) -> None:
        """Draw the tiles that have come."""
        for layer in (self.labels, self.confidence):
            if layer in self._viewer.layers and layer.visible:
                layer.refresh(thumbnail=False, highlight=False, extent=False)


def _confidence_colors() -> Any:
    """From blue to yellow, and nothing at 0, where nothing is known."""
    from napari.utils import Colormap
    from napari.utils.colormaps import ensure_colormap

    known = ensure_colormap("viridis").map(np.linspace(0, 1, 255))
    return Colormap(np.vstack([np.zeros(4), known]), name="muvit confidence")


def find_live(layers: Any, key: str) -> Any:
    """The session of a live prediction of the image remembered as `key`, None without one."""
    for layer in layers:
        for session in layer.metadata.get(LIVE_KEY, ()):
            if session.is_running and session.image.key == key:
                return session
    return None
