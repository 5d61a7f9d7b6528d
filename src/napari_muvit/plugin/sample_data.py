"""Sample images for File > Open Sample, made on this computer when they are first opened."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.errors import RunExistsError
from napari_muvit.plugin import engine
from napari_muvit.plugin.preferences import cache_folder
from napari_muvit.plugin.readers import LayerData, pyramid_layers

RINGS_SIDE = 1024


def immunohistochemistry() -> list[LayerData]:
    """Colon tissue, 512 x 512 RGB, as a pyramid on disk; the image of ``napari-muvit demo``."""
    return [*_open("immunohistochemistry", _write_tissue)]


def rings() -> list[LayerData]:
    """Cells inside and outside of a ring that look alike, and their classes, as pyramids."""
    backend = engine.default_backend()
    folder = cache_folder() / "samples" / "rings"
    backend.write_rings(folder, {"train": 1}, size=RINGS_SIDE)
    paths = [next((folder / kind).glob("*.ome.zarr")) for kind in ("images", "labels")]
    layers = [layer for path in paths for layer in pyramid_layers(backend, str(path))]
    for (_, kwargs, _), name in zip(layers, ("rings", "rings: classes"), strict=True):
        kwargs["name"] = name
    return layers


def _open(name: str, write: Callable[[Any, Path], Iterator[Any]]) -> list[LayerData]:
    backend = engine.default_backend()
    path = cache_folder() / "samples" / f"{name}.ome.zarr"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        for _ in write(backend, path):
            pass
    except RunExistsError:
        # Written before; a write that was interrupted goes on instead.
        logging.getLogger(__name__).debug("%s is there already", path)
    return pyramid_layers(backend, str(path))


def _write_tissue(backend: Any, path: Path) -> Iterator[Any]:
    from skimage.data import immunohistochemistry as read_image

    return _convert(backend, read_image(), path)


def _convert(backend: Any, image: NDArray[np.uint8], path: Path, **options: Any) -> Iterator[Any]:
    events: Iterator[Any] = backend.convert(image, path, levels=(1, 2, 4, 8), chunk=128, **options)
    return events
