"""Annotations of a series: every time point has its own store, and windows of its own."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from napari_muvit.plugin.layers import plane_index


def time_shown(layer: Any, dims: Any) -> int | None:
    """Time point of an image layer at which the sliders stand; None where it has none.

    Parameters
    ----------
    dims
        The viewer's, which have fewer axes than the layer while that is taken out of the viewer.
    """
    if len(dims.point) < layer.ndim:
        return None
    return plane_index(layer, dims.point).get("t")


class TimeWindows:
    """Hides the windows of one time point while another is shown: what is painted is its own.

    Parameters
    ----------
    layer
        Of the image.
    t
        The time point; None where the image has none.
    """

    def __init__(self, layer: Any, t: int | None) -> None:
        self._layer, self._t = weakref.ref(layer), t
        self._hidden: set[Any] = set()

    def follow(self, dims: Any, windows: Iterable[Any]) -> None:
        """Hide `windows`, labels layers, or show those again that were hidden here."""
        layer = self._layer()
        shown = None if layer is None or self._t is None else time_shown(layer, dims)
        if shown is None:
            return
        for window in windows:
            known = window.unique_id
            if shown == self._t and known in self._hidden:
                self._hidden.discard(known)
                window.visible = True
            elif shown != self._t and window.visible:
                self._hidden.add(known)
                window.visible = False
