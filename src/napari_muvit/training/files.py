"""Files that are whole or absent: written beside, synced, renamed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from napari_muvit.errors import RunError
from napari_muvit.renaming import rename_over


@contextmanager
def open_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which takes its place at `path` when the block ends well.

    A crash leaves either the old file or the new one; a disk that is full gets its room back.
    """
    beside = path.with_name(f".{path.name}.part")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        rename_over(beside, path)
    except BaseException:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: bytes) -> None:
    """Put `content` at `path`; see `open_whole`."""
    with open_whole(path) as file:
        file.write(content)


def disk_error(error: OSError, folder: Path) -> RunError:
    """What an `OSError` while writing to `folder` means to its user, with the remedy."""
    place = f"the run folder {str(folder)!r}"
    if error.errno in {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}:
        text = f"{place} cannot be written: the disk is full. Free some space"
    elif error.errno in {errno.EROFS, errno.EACCES, errno.EPERM}:
        text = f"{place} cannot be written: {error.strerror}. Make it writable"
    elif not folder.exists():
        text = f"{place} is gone while the run goes on. If it was moved, go to its new place"
    else:
        text = f"{place} cannot be used: {error.strerror or error}. Repair that"
    return RunError(f"{text} and resume; the last checkpoint is whole.")
