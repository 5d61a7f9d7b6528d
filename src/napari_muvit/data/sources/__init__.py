"""Readers: each turns one kind of source into a `RawImage`; `read_source` chooses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from napari_muvit.data.sources.arrays import (
    is_array,
    is_layer,
    read_arrays,
    read_layer,
    read_layers,
)
from napari_muvit.data.sources.raw import RawImage
from napari_muvit.data.sources.remote import check_protocol, is_url, local_path, url_suffix
from napari_muvit.data.sources.stores import METADATA_FILES
from napari_muvit.errors import InputError, SourceError, SourceNotFoundError, nearest_name

REFUSED = {
    ".mrxs": "MIRAX slides",
    ".czi": "Zeiss CZI files",
    ".vsi": "Olympus VSI files",
    ".lif": "Leica LIF files",
    ".nd2": "Nikon ND2 files",
    ".ims": "Imaris files",
}

ADVICE = {
    ".npz": "Save one of its arrays as .npy",
    ".csv": "Name one image; lists of images are for options that take several",
    ".zip": "Unpack it first",
    ".gz": "Unpack it first",
    ".geojson": "Paint its outlines into labels first: napari-muvit annotate IMAGE FILE.geojson",
}
"""What to do with files that are close to images; others go through Bio-Formats."""
MOST_LISTED = 8

__all__ = ["RawImage", "images_in", "read_source"]


def read_source(source: Any, image: str | int | None = None) -> RawImage:
    """The image that `source` names or is, whatever its kind.

    Raises
    ------
    SourceNotFoundError
        If a path does not exist.
    SourceError
        If the source is damaged or of a kind that cannot be read.
    InputError
        If `source` is nothing that could be an image.
    """
    if isinstance(source, (str, os.PathLike)):
        return _read_path(os.fspath(source), image)
    if is_layer(source):
        return read_layer(source)
    if isinstance(source, (list, tuple)) and source and all(is_layer(each) for each in source):
        return read_layers(source)
    if hasattr(source, "members") and hasattr(source, "store"):
        return _read_group(source, image)
    if is_array(source):
        return read_arrays([source])
    if isinstance(source, (list, tuple)) and source and all(is_array(a) for a in source):
        return read_arrays(list(source))
    raise InputError(
        f"{type(source).__name__} {str(source)[:60]!r} is no image source; pass a path or URL, "
        "an array, a list of arrays (finest first), a zarr group or a napari layer."
    )


def _read_path(path: str, image: str | int | None) -> RawImage:
    from napari_muvit.data.sources.omezarr import read_zarr
    from napari_muvit.data.sources.pictures import SUFFIXES as PICTURES
    from napari_muvit.data.sources.pictures import read_picture
    from napari_muvit.data.sources.tiff import SUFFIXES as TIFFS
    from napari_muvit.data.sources.tiff import read_tiff

    path = local_path(path)
    if not path.strip():
        raise InputError("the source is empty; pass the path or URL of an image.")
    suffix = url_suffix(path) if is_url(path) else Path(path).suffix.lower()
    if suffix in REFUSED:
        raise _refusal(path, suffix)
    if is_url(path):
        check_protocol(path)
    else:
        path = _existing(path)
        if Path(path).is_dir():
            _check_folder(path)
            return read_zarr(path, image)
    if suffix in TIFFS:
        return read_tiff(path, image)
    if suffix in PICTURES:
        return read_picture(path)
    if is_url(path):
        return read_zarr(path, image)
    advice = ADVICE.get(
        suffix, f"Convert it with Bio-Formats: bioformats2raw {path} {Path(path).stem}.ome.zarr")
    raise SourceError(
        f"{path} is a file of an unknown kind ({suffix or 'no suffix'}); OME-Zarr folders, "
        f"{', '.join(TIFFS[:6])} and {', '.join(PICTURES[:3])} files can be read. {advice}.", path,
    )


def images_in(folder: Path) -> list[Path]:
    """The images in a folder that can be read, by their names: files and zarr stores."""
    from napari_muvit.data.sources.pictures import SUFFIXES as PICTURES
    from napari_muvit.data.sources.tiff import SUFFIXES as TIFFS

    return [
        entry for entry in sorted(folder.iterdir())
        if entry.suffix.lower() in (*TIFFS, *PICTURES)
        or any((entry / name).is_file() for name in METADATA_FILES)
    ]


def _check_folder(path: str) -> None:
    """Refuse a folder of images, and name them."""
    folder = Path(path)
    if any((folder / name).exists() for name in METADATA_FILES):
        return
    images = [entry.name for entry in images_in(folder)]
    if images:
        more = len(images) - MOST_LISTED
        listed = ", ".join(images[:MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
        raise SourceError(
            f"{path} is a folder of {len(images)} images, none itself: {listed}. Give the path "
            f"of one, for example {folder / images[0]}.", path,
        )


def _existing(path: str) -> str:
    """`path` as an absolute path, or the error that names what there is instead."""
    expanded = Path(path).expanduser()
    if expanded.exists():
        return str(expanded.absolute())
    folder = expanded.parent
    near = None
    if folder.is_dir():
        near = nearest_name(expanded.name, [entry.name for entry in folder.iterdir()])
    hint = f" Did you mean {folder / near}?" if near else " Check the path."
    raise SourceNotFoundError(f"{path} does not exist.{hint}", path)


def _refusal(path: str, suffix: str) -> SourceError:
    return SourceError(
        f"{path}: {REFUSED[suffix]} cannot be read directly. Convert it once with: "
        f"bioformats2raw {path} {Path(path).stem}.ome.zarr", path,
    )


def _read_group(group: Any, image: str | int | None) -> RawImage:
    """An open zarr group; reopened by its address so that workers can do the same."""
    from napari_muvit.data.sources.omezarr import read_zarr

    address = _address(group)
    if address is not None:
        return read_zarr(address, image)
    arrays = [node for _, node in group.members() if hasattr(node, "shape")]
    if not arrays:
        raise SourceError("the zarr group holds no arrays. Pass the group of an image.", group)
    return read_arrays(sorted(arrays, key=lambda array: -array.size))


def _address(group: Any) -> str | None:
    """Path or URL of an open zarr group; None where only this process has it."""
    root = getattr(group.store, "root", None)
    if root is not None:
        return str(Path(str(root)) / group.path)
    system = getattr(group.store, "fs", None)
    if system is None:
        return None
    return str(system.unstrip_protocol(f"{group.store.path}/{group.path}".rstrip("/")))
