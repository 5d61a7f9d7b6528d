"""Where the annotations of an image lie, and whether they are really that image's."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from napari_muvit.errors import SourceError

if TYPE_CHECKING:
    from napari_muvit.data.pyramid import Pyramid

SUFFIX = "_annotations.ome.zarr"


def annotation_path(source: str | None, folder: str | os.PathLike[str] | None = None) -> Path:
    """Path of an image's annotation store: ``<image stem>_annotations.ome.zarr``.

    Parameters
    ----------
    source
        Path or address of the image. Images inside a zarr store (``plate.zarr/A/1/0``) get
        their store beside the outermost one.
    folder
        Where it lies; beside the image by default.

    Raises
    ------
    SourceError
        If there is no place beside the image: it is remote, or only in memory.
    """
    is_remote = source is not None and bool(re.match(r"^[a-z][a-z0-9+]+://", source, re.IGNORECASE))
    if folder is None and (source is None or is_remote):
        what = "is only in memory" if source is None else f"{source} is remote"
        raise SourceError(
            f"the image {what}, so annotations cannot lie beside it. Pass the folder for them.",
            source=source,
        )
    place = PurePosixPath(source.split("://", 1)[1]) if source and is_remote else (
        Path(source or "image").absolute()
    )
    roots = [p for p in (place, *place.parents) if p.suffix.lower() == ".zarr"]
    root = roots[-1] if roots else place
    inner = "".join(f"_{part}" for part in place.relative_to(root).parts)
    parent = Path(folder) if folder is not None else Path(root).parent
    return parent / f"{image_stem(root.name)}{inner}{SUFFIX}"


def image_stem(name: str) -> str:
    """A file name without its image endings: ``a.ome.tif`` and ``a.ome.zarr`` give ``a``."""
    stem = PurePosixPath(name).stem
    return stem[:-4] if stem.lower().endswith(".ome") else stem


def check_writable(folder: Path) -> None:
    """Refuse a folder in which nothing can be made.

    Raises
    ------
    SourceError
        With the reason, and what to do.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Trying is the only test that holds on network disks and on Windows.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SourceError(
            f"annotations cannot be written to {folder} ({error.strerror or error}). Pass "
            "another folder for them.", source=str(folder),
        ) from None


def check_same_image(
    path: Path, shape: tuple[int, ...], image: str | None, pyramid: Pyramid
) -> None:
    """Refuse annotations that belong to another image than `pyramid`.

    Parameters
    ----------
    path, shape, image
        The annotation store, its size in px, and the image it was begun on.

    Raises
    ------
    SourceError
        If the size differs, or the image they were begun on still exists elsewhere.
    """
    size = tuple(int(n) for n in pyramid.spatial_shape)
    if shape != size:
        raise SourceError(
            f"{path} annotates an image of {shape} px; {pyramid.name} has {size} px. "
            "Pass the path of another annotation store.", source=str(path),
        )
    given = pyramid.source
    if image is None or given is None or image == given:
        return
    if Path(image).exists() and not _is_same(image, given):
        raise SourceError(
            f"{path} annotates {image}, not {given}. Pass another folder or path for the "
            "annotations of this image.", source=str(path),
        )


def _is_same(known: str, given: str) -> bool:
    try:
        return os.path.samefile(known, given)
    except OSError:
        return False
