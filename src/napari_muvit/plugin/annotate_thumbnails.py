"""What the Annotate widget shows of its store: labelled pixels by class, pictures of windows."""

from __future__ import annotations

from typing import Any

import numpy as np

from napari_muvit.plugin import annotate
from napari_muvit.plugin.crops import render_crop
from napari_muvit.plugin.layers import ResolvedImage

THUMBNAIL_SIDE = 72


def count_labels(store: Any) -> tuple[Any, dict[int, int]]:
    """The store and its labelled pixels by class (runs in a thread)."""
    return store, store.class_counts()


class Thumbnails:
    """Pictures of windows with their labels; the image below is read once for each window."""

    def __init__(self) -> None:
        self._pictures: dict[Any, Any] = {}

    def draw(
        self, image: ResolvedImage, store: Any, places: tuple[Any, ...]
    ) -> tuple[Any, list[Any]]:
        """The store and one picture for each place (runs in a thread)."""
        return store, [self._draw(image, store, place) for place in places]

    def _draw(self, image: ResolvedImage, store: Any, place: Any) -> Any:
        sides = np.asarray(place.size[-2:])
        ratio = max(1, int(np.ceil(sides.max() / THUMBNAIL_SIDE)))
        level = place.level * ratio
        # Of a volume the window's middle plane.
        plane = [low + n // 2 for low, n in zip(place.start[:-2], place.size[:-2], strict=True)]
        start = [*plane, *(n // ratio for n in place.start[-2:])]
        size = [*[1] * len(plane), *(max(1, n // ratio) for n in sides.tolist())]
        key = (store.path, place)
        if key not in self._pictures:
            factors = np.array([1] * len(plane) + [level] * 2)
            corner = np.asarray(start) * factors - 0.5
            crop = image.pyramid.crop(corner=corner, levels=(level,), size=size)
            self._pictures[key] = render_crop(crop.image[0], crop.valid[0], image.display)
        labels = store.read(level, start, size).reshape(size[-2:])
        return annotate.overlay(self._pictures[key], labels, store.classes)
