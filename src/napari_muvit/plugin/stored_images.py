"""Copies of images that are only in memory: what training reads, kept in the cache folder.

A run is repeated from files, so an image without one is written once, as an OME-Zarr pyramid.
It is found again by its pixels, in this session and in later ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from napari_muvit.plugin.preferences import cache_folder

LEVELS = (1, 2, 4, 8, 16, 32)
SMALLEST_SIDE = 256
"""Coarser arrays are written until the longer side is no longer than this."""


STORE_MARKS = ("zarr.json", ".zgroup", ".zattrs")


def is_zarr(folder: Path) -> bool:
    """Whether a folder is a zarr store."""
    return any((folder / mark).exists() for mark in STORE_MARKS)


def copies_folder() -> Path:
    """Where copies and the annotations of images in memory are kept."""
    return cache_folder() / "images"


def copy_path(
    name: str, identity: str, t: int | None = None, folder: Path | None = None
) -> Path:
    """Where the copy of an image lies, whether it is there or not.

    Parameters
    ----------
    name
        Of the image, for people; a copy made under another name is found as well.
    identity
        Digest of its pixels.
    t
        Time point, of a series.
    folder
        Where it lies; the cache folder by default.
    """
    folder = copies_folder() if folder is None else folder
    mark = identity if t is None else f"{identity}_t{t}"
    for known in sorted(folder.glob(f"[!.]*-{mark}*.ome.zarr")):
        stem = known.name.removesuffix(".ome.zarr").removesuffix("_annotations")
        if stem.endswith(mark):
            return known.with_name(f"{stem}.ome.zarr")
    slug = re.sub(r"[^\w.-]+", "_", name).strip("_.")[:60] or "image"
    return folder / f"{slug}-{mark}.ome.zarr"


def stored_copy(name: str, identity: str, t: int | None = None) -> str | None:
    """Path of the finished copy of an image, None where there is none."""
    path = copy_path(name, identity, t)
    return str(path) if path.is_dir() else None


def store_copy(backend: Any, pyramid: Any, path: Path, as_labels: bool = False) -> Iterator[Any]:
    """Write a copy, with progress (runs in a thread); one that was begun goes on.

    Yields
    ------
    ConvertEvent
        Blocks done and in total.
    """
    if path.is_dir():
        return
    longest = max(pyramid.spatial_shape[-2:])
    levels = [level for level in LEVELS if level == 1 or longest / level > SMALLEST_SIDE / 2]
    unfinished = path.with_name(f".{path.name}")
    yield from backend.convert(pyramid, unfinished, levels=levels, as_labels=as_labels)
    unfinished.rename(path)
