"""Sample images for File > Open Sample, made on this computer when they are first opened."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from napari_muvit.errors import RunExistsError
from napari_muvit.plugin import engine
from napari_muvit.plugin.preferences import cache_folder
from napari_muvit.plugin.readers import LayerData, pyramid_layers

DRAWN_SIDE = 1024


def immunohistochemistry() -> list[LayerData]:
    """Colon tissue, 512 x 512 RGB, as a pyramid on disk; the image of ``napari-muvit demo``."""
    return [*_open("immunohistochemistry", _write_tissue)]


def rings() -> list[LayerData]:
    """Cells inside and outside of a ring that look alike, and their classes, as pyramids."""
    return _drawn("rings")


def landmarks() -> list[LayerData]:
    """Cells that look alike, of the nearest of two kinds of landmark, and their classes."""
    return _drawn("landmarks")


def _drawn(name: str) -> list[LayerData]:
    """The first training image of a set that is made by code, and its labels."""
    backend = engine.default_backend()
    folder = cache_folder() / "samples" / name
    getattr(backend, f"write_{name}")(folder, {"train": 1}, size=DRAWN_SIDE)
    paths = [next((folder / kind).glob("*.ome.zarr")) for kind in ("images", "labels")]
    layers = [layer for path in paths for layer in pyramid_layers(backend, str(path))]
    for (_, kwargs, _), title in zip(layers, (name, f"{name}: classes"), strict=True):
        kwargs["name"] = title
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

    source = backend.pyramid_from_arrays(
        [read_image()], axes="yxc", is_rgb=True, name=path.name.split(".")[0])
    events: Iterator[Any] = backend.convert(source, path, levels=(1, 2, 4, 8), chunk=128)
    return events
