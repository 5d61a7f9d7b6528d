"""What every command does around its work: warnings and errors become sentences.

Bad input ends with one sentence on stderr and exit status 2; Ctrl-C with 130.
"""

from __future__ import annotations

import atexit
import errno
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import TextIO

from napari_muvit.errors import MuvitError, MuvitWarning

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def run_command(command: Callable[[], int | None]) -> int:
    """Run `command`; its exit status, with errors of ours said in one sentence."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", MuvitWarning)
        warnings.showwarning = _WarningPrinter()
        try:
            return command() or 0
        except BrokenPipeError:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
            return 0
        except (MuvitError, KeyboardInterrupt, OSError) as error:
            text, status = _describe(error)
            say(text)
            atexit.register(_hush)
            return status


def _describe(error: BaseException) -> tuple[str, int]:
    """The sentence that ends a command, and its exit status."""
    if isinstance(error, MuvitError):
        return f"error: {error}", EXIT_BAD_INPUT
    if isinstance(error, OSError):
        text, status = describe_os_error(error)
        return f"error: {text}", status
    return "interrupted; what was finished is kept", EXIT_INTERRUPTED


def _hush() -> None:
    """Keep still about reads that an error left pending: zarr has one task for each chunk, and
    asyncio would list every one of them as the process ends.
    """
    logging.getLogger("asyncio").disabled = True
    sys.unraisablehook = lambda _: None
    warnings.simplefilter("ignore")


def describe_os_error(error: OSError) -> tuple[str, int]:
    """What the system refused, with a remedy, and the exit status; 1 where no input is to blame."""
    place = f" ({error.filename})" if error.filename else ""
    text = f"{error.strerror or error}{place}"
    is_cut = error.errno is None and "requested and" in text  # how numpy says that a disk is full
    if error.errno in {errno.ENOSPC, errno.EDQUOT} or is_cut:
        return f"{text}. Free some space and run again.", 1
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return f"{text}. Check the permissions, or choose another output.", EXIT_BAD_INPUT
    if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR}:
        return f"{text}. Check the path; every part of it but the last must be a folder.", \
            EXIT_BAD_INPUT
    return text, 1


def say(text: str) -> None:
    """One line on stderr."""
    sys.stderr.write(" ".join(text.split("\n")) + "\n")
    sys.stderr.flush()


class _WarningPrinter:
    """Prints each warning of ours once, however many planes or images give it."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(
        self, message: Warning | str, category: type[Warning], filename: str, lineno: int,
        file: TextIO | None = None, line: str | None = None,
    ) -> None:
        text = str(message)
        if issubclass(category, MuvitWarning) and text not in self._said:
            self._said.add(text)
            say(f"warning: {text}")


def duration(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
