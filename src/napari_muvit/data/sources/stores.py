"""Opening zarr stores by path or URL, with errors that name the file and the remedy."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.data.sources.direct import DirectArray, find_layout
from napari_muvit.data.sources.remote import is_url, not_there, open_store_url, remote_error
from napari_muvit.errors import MuvitError, SourceError, SourceNotFoundError

LFS_HEAD = b"version https://git-lfs"
METADATA_FILES = ("zarr.json", ".zattrs", ".zgroup", ".zarray")
LARGEST_METADATA = 64 * 2**20
"""Bytes of a metadata file beyond which it is refused unread."""


def open_store(path: str, inside: str = "", array_first: bool = False) -> Any:
    """The zarr group or array at `inside` of the store `path`, read-only.

    Parameters
    ----------
    array_first
        Whether an array is likelier: far away, each wrong guess costs a round trip.

    Raises
    ------
    SourceNotFoundError, SourceError
    """
    where = f"{path}/{inside}" if inside else path
    try:
        store = open_store_url(path) if is_url(path) else _open_local(path, inside)
        with warnings.catch_warnings():
            # of unstable codecs and the like: what matters is whether the chunks can be read
            warnings.simplefilter("ignore")
            return _open_node(store, inside, array_first)
    except MuvitError:
        raise
    except FileNotFoundError as error:
        if is_url(path):
            raise not_there(where) from error
        raise SourceNotFoundError(
            f"there is no zarr group or array at {where}. Check the path; an OME-Zarr folder "
            "holds a file zarr.json or .zattrs.", path,
        ) from error
    except Exception as error:
        if is_url(path):
            raise remote_error(where, error) from error
        raise SourceError(
            f"the zarr metadata at {where} cannot be read ({describe_error(error)}). "
            "Copy the store again, or repair its zarr.json, .zattrs or .zarray.", path,
        ) from error


def check_there(path: str, pixels: NDArray[Any]) -> None:
    """Refuse pixels of one value where the store is gone: chunks that are missing read so.

    Raises
    ------
    SourceNotFoundError
        If `pixels` are all alike, and nothing lies at `path` any more.
    """
    if is_url(path) or not pixels.size or pixels.flat[0] != pixels.flat[-1]:
        return
    if (pixels != pixels.flat[0]).any():
        return
    if not Path(path).exists():
        raise SourceNotFoundError(f"{path} is gone. Put it back, and go on.", path)


def _open_local(path: str, inside: str) -> Any:
    import zarr

    check_metadata_files(Path(path) / inside)
    return zarr.storage.LocalStore(path, read_only=True)


def _open_node(store: Any, inside: str, array_first: bool) -> Any:
    """A group or an array, whichever there is; stale consolidated metadata is ignored."""
    import zarr

    def group() -> Any:
        return zarr.open_group(store, path=inside, mode="r", use_consolidated=False)

    def array() -> Any:
        return zarr.open_array(store, path=inside, mode="r")

    first, second = (array, group) if array_first else (group, array)
    try:
        return first()
    except (FileNotFoundError, zarr.errors.NodeTypeValidationError,
            zarr.errors.ContainsArrayError, zarr.errors.ContainsGroupError):
        return second()


def describe_error(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def check_metadata_files(folder: Path) -> None:
    """Refuse metadata that is no JSON object, with the file's name, before zarr stumbles."""
    for name in METADATA_FILES:
        file = folder / name
        if not file.is_file():
            continue
        if file.stat().st_size > LARGEST_METADATA:
            raise SourceError(
                f"{file} has {file.stat().st_size} bytes; zarr metadata are at most "
                f"{LARGEST_METADATA >> 20} MiB. The file is damaged; copy the store again.",
                str(folder),
            )
        content = file.read_bytes()
        refuse_lfs_pointer(content, file)
        try:
            parsed = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise SourceError(
                f"{file} is no valid JSON ({describe_error(error)[:120]}). It is damaged or cut "
                "short; copy the store again.", str(folder),
            ) from error
        if not isinstance(parsed, dict):
            raise SourceError(
                f"{file} holds {type(parsed).__name__}, where a JSON object must be. Repair the "
                "file or copy the store again.", str(folder),
            )


def refuse_lfs_pointer(head: bytes, file: Path | str) -> None:
    if head.startswith(LFS_HEAD):
        raise SourceError(
            f"{file} is a git-LFS pointer, not the data itself. Fetch the data with: "
            "git lfs pull", str(file),
        )


@dataclass(frozen=True)
class ZarrArray:
    """An array of a zarr store, opened again in each process."""

    store: str
    path: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...] | None

    @classmethod
    def of(cls, store: str, path: str, array: Any) -> ZarrArray:
        return cls(store, path, tuple(map(int, array.shape)), np.dtype(array.dtype),
                   tuple(map(int, array.chunks)))

    @property
    def label(self) -> str:
        return self.path or "."

    @property
    def in_memory(self) -> bool:
        return False

    def open(self) -> Any:
        array = open_store(self.store, self.path, array_first=True)
        if is_url(self.store):
            return array
        layout = find_layout(Path(self.store) / self.path, array)
        return array if layout is None else DirectArray(array, layout)

    def explain(self, error: Exception) -> str:
        if is_url(self.store):
            return (f"a chunk of array {self.label!r} could not be fetched or decoded "
                    f"({describe_error(error)}); check the network, and try again")
        for file in _some_chunk_files(Path(self.store) / self.path):
            with file.open("rb") as stream:
                refuse_lfs_pointer(stream.read(len(LFS_HEAD)), file)
        return (f"a chunk of array {self.label!r} is damaged or cut short "
                f"({describe_error(error)}); copy the store again")


def _some_chunk_files(folder: Path, most: int = 64) -> list[Path]:
    """The first files below an array's folder that are not metadata."""
    found: list[Path] = []
    for file in folder.rglob("*"):
        if file.is_file() and file.name not in METADATA_FILES:
            found.append(file)
            if len(found) >= most:
                break
    return found


def date_of(source: str | None) -> tuple[int, int] | None:
    """Date and size of a local source's own metadata, so that a new file is a new image."""
    if source is None:
        return None
    path = Path(source)
    for candidate in (path / "zarr.json", path / ".zattrs", path / ".zarray", path):
        if candidate.exists():
            status = os.stat(candidate)
            return status.st_mtime_ns, status.st_size
    return None
