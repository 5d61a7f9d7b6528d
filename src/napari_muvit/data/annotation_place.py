"""Where the annotations of an image lie, and whether they are really that image's."""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any

from napari_muvit.data.selection import stored_part
from napari_muvit.errors import InputError, MuvitWarning, SourceError

if TYPE_CHECKING:
    from napari_muvit.data.pyramid import Pyramid

SUFFIX = "_annotations.ome.zarr"


def annotation_path(
    source: str | None, folder: str | os.PathLike[str] | None = None,
    part: Mapping[str, Any] | None = None,
) -> Path:
    """Path of an image's annotation store: ``<image stem>_annotations.ome.zarr``.

    Another series than the first, a time point and a single plane have stores of their own:
    ``_s1``, ``_t3`` and ``_z2`` come before ``_annotations``.

    Parameters
    ----------
    source
        Path or address of the image. Images inside a zarr store (``plate.zarr/A/1/0``) get
        their store beside the outermost one.
    folder
        Where it lies; beside the image by default.
    part
        Indices of ``"series"``, ``"t"`` and ``"z"`` (a first and last of planes), where the
        image is one of several in its file.

    Raises
    ------
    SourceError
        If there is no place beside the image: it is remote, or only in memory.
    """
    is_remote = source is not None and _is_remote(source)
    if folder is None and (source is None or is_remote):
        what = "is only in memory" if source is None else f"{source} is remote"
        raise SourceError(
            f"the image {what}, so annotations cannot lie beside it. Pass the folder for them.",
            source=source,
        )
    source = source or "image"
    parent = Path(folder) if folder is not None else Path(_places(source)[0]).parent
    return parent / f"{source_stem(source)}{_mark(part or {})}{SUFFIX}"


def _mark(part: Mapping[str, Any]) -> str:
    """What a part of a file adds to the name of its store."""
    marks = [f"_s{part['series']}"] if part.get("series") else []
    marks += [f"_{axis}{_told(part[axis])}" for axis in "tz" if part.get(axis) is not None]
    return "".join(marks)


def _told(place: int | Sequence[int]) -> str:
    """An index, or the first and the last of a range."""
    return f"{place}" if isinstance(place, int) else f"{place[0]}-{place[1] - 1}"


def default_path(pyramid: Pyramid, folder: str | os.PathLike[str] | None = None) -> Path:
    """Where the annotations of `pyramid` lie; raises as `annotation_path` does."""
    part = annotated_part(pyramid)
    place = annotation_path(pyramid.source, folder, part)
    if part == {"series": 0, "t": 0} and not place.exists():
        # The first time point of a series once had its store under the name of the image.
        plain = annotation_path(pyramid.source, folder)
        return plain if plain.exists() else place
    return place


def annotated_part(pyramid: Pyramid) -> dict[str, Any]:
    """The part of its file that a store of annotations for `pyramid` belongs to.

    Raises
    ------
    InputError
        If the image has a range of time points: a store has one.
    """
    if "t" in pyramid.axes:
        raise InputError(
            f"{pyramid.name!r} has a range of time points; annotations belong to one. Choose it, "
            "for example open_pyramid(image, t=0)."
        )
    return stored_part(pyramid._raw, pyramid._selection)


def _is_remote(source: str) -> bool:
    return bool(re.match(r"^[a-z][a-z0-9+]+://", source, re.IGNORECASE))


def _places(source: str) -> tuple[PurePath, PurePath]:
    """The file or outermost store that an image lies in, and the image's own place."""
    is_remote = _is_remote(source)
    place = PurePosixPath(source.split("://", 1)[1]) if is_remote else Path(source).absolute()
    stores = [p for p in (place, *place.parents) if p.suffix.lower() == ".zarr"]
    return (stores[-1] if stores else place), place


def source_stem(source: str) -> str:
    """What is named after an image bears this: ``plate.zarr/A/1/0`` gives ``plate_A_1_0``."""
    root, place = _places(source)
    return "_".join((image_stem(root.name), *place.relative_to(root).parts))


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
    path: Path, shape: tuple[int, ...], begun_on: Mapping[str, Any], pyramid: Pyramid
) -> bool:
    """Refuse annotations that belong to another image than `pyramid`.

    A project that was copied, and a slide that was converted beside its original, go on with a
    warning: the store lies beside `pyramid` under its name, and was begun in the same way beside
    the other image. Two images of one name with a common folder do not look like that.

    Parameters
    ----------
    path, shape
        The annotation store and its size in px.
    begun_on
        ``"image"``, ``"part"`` and ``"place"``: the file it was begun on, the part of this, and
        where the store lay. Stores that name no part are taken for any.

    Returns
    -------
    bool
        Whether `pyramid` is another file than the store was begun on, to be noted there.

    Raises
    ------
    SourceError
        If the size or the part differs, or the image they were begun on still exists elsewhere.
    """
    _check_size_and_part(path, shape, begun_on.get("part"), pyramid)
    image, given = begun_on.get("image"), pyramid.source
    if image is None or given is None or image == given or _is_same(image, given):
        return False
    if not _exists(image):
        return False
    if not _is_copy(path, begun_on, pyramid):
        raise SourceError(
            f"{path} annotates {image}, not {given}. Pass another folder or path for the "
            "annotations of this image.", source=str(path),
        )
    warnings.warn(
        f"{path} was begun on {image} and is now taken for {given}, beside which it lies. If "
        "these are different images, pass another folder or path for this one.",
        MuvitWarning, stacklevel=3,
    )
    return True


def _check_size_and_part(
    path: Path, shape: tuple[int, ...], known: Mapping[str, Any] | None, pyramid: Pyramid
) -> None:
    """Refuse annotations of another size, or of another series, time point or plane."""
    size = tuple(int(n) for n in pyramid.spatial_shape)
    if shape != size:
        raise SourceError(
            f"{path} annotates an image of {shape} px; {pyramid.name} has {size} px. "
            "Pass the path of another annotation store.", source=str(path),
        )
    part = annotated_part(pyramid)
    if known is not None and known != part:
        raise SourceError(
            f"{path} annotates {describe_part(known)} of its image, not {describe_part(part)}. "
            "Each has its own annotations: pass no path, or another one.", source=str(path),
        )


def _exists(image: str) -> bool:
    """Whether an image is where a store says; one in a closed folder is told and not counted."""
    try:
        os.stat(image)
    except PermissionError:
        warnings.warn(
            f"the annotations were begun on {image}, which this account cannot look at. If that "
            "is another image, pass another folder or path for this one.",
            MuvitWarning, stacklevel=4,
        )
        return False
    except (OSError, ValueError):
        return False
    return True


def _is_copy(store: Path, begun_on: Mapping[str, Any], pyramid: Pyramid) -> bool:
    """Whether a store lies beside `pyramid` as it lay beside the image it was begun on."""
    try:
        own, other = default_path(pyramid), annotation_path(begun_on["image"])
    except SourceError:  # nothing lies beside a remote image
        return False
    before = other.with_name(store.name)
    place = begun_on.get("place")
    return (
        annotation_path(pyramid.source).name == other.name
        and store.name == own.name
        and _is_same(store.parent, own.parent)
        and (Path(place) == before if place else os.path.exists(before))
    )


def describe_part(part: Mapping[str, Any]) -> str:
    """A part of a file in words."""
    words = {"t": "time point", "z": "plane", "series": "series"}
    found = [f"{words[key]} {_told(part[key])}" for key in words if key in part]
    return ", ".join(found) or "the whole"


def _is_same(known: str | Path, given: str | Path) -> bool:
    try:
        return os.path.samefile(known, given)
    except OSError:
        return False
