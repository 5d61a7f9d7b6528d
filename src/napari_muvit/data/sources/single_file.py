"""What every image in a single file shares: its name, and how a failed opening is told."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from napari_muvit.data.sources.remote import is_url
from napari_muvit.data.sources.stores import describe_error
from napari_muvit.errors import MuvitError, SourceError, SourceNotFoundError


def file_name(file: str) -> str:
    """The name of a file, here or at an address, without its folder."""
    return file.rsplit("/", 1)[-1] if is_url(file) else Path(file).name


@contextlib.contextmanager
def told_as(kind: str, file: str, better: str) -> Iterator[None]:
    """Tell whatever goes wrong inside in one sentence.

    Parameters
    ----------
    kind
        What the file was read as.
    better
        The kinds of file that it may be converted to.

    Raises
    ------
    SourceNotFoundError
        If the file does not exist.
    SourceError
        If it cannot be read.
    """
    try:
        yield
    except MuvitError:
        raise
    except FileNotFoundError as error:
        raise SourceNotFoundError(f"{file} does not exist. Check the path.", file) from error
    except Exception as error:
        raise SourceError(
            f"{file} cannot be read as {kind} ({describe_error(error)}). It is damaged, cut "
            f"short or of another kind; copy it again, or convert it to {better}.", file,
        ) from error
