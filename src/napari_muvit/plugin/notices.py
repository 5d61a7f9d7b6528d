"""What went wrong, as one sentence in a napari notification."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, TypeVar

from napari_muvit.errors import MuvitError

TILE = re.compile(r"^tile \(.*?\) (cannot be predicted|is left unfinished): ")

Method = TypeVar("Method", bound=Callable[..., Any])


def sentence(error: BaseException) -> str:
    """What to tell the user about `error`."""
    if isinstance(error, MuvitError):
        return str(error)
    text = str(error).strip().split("\n")[0]
    if isinstance(error, MemoryError) or "can't allocate memory" in text:  # torch's words
        return "There is not enough memory for this. Take fewer levels or a smaller crop size."
    if "out of memory" in text.lower():
        return (
            "The graphics card has not enough free memory for this. Take a smaller crop size or "
            "choose the device 'cpu'."
        )
    if isinstance(error, OSError) and error.strerror:
        place = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{place}."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def show_failure(error: BaseException) -> None:
    """Tell the user about `error`; the traceback of a surprise goes to the log."""
    from napari.utils.notifications import show_error

    log_surprise(error)
    show_error(sentence(error))


def log_surprise(error: BaseException) -> None:
    """Write the traceback of an `error` that no sentence was written for to the log."""
    import logging

    if not isinstance(error, (MuvitError, OSError, MemoryError)):
        logging.getLogger("napari_muvit").error("unexpected failure", exc_info=error)


def show_hint(text: str) -> None:
    """Tell the user something that is no failure."""
    from napari.utils.notifications import show_info

    show_info(text)


class Reasons:
    """Of warnings about the parts of an image, each reason once: mostly it is that of all parts."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def fresh(self, text: str) -> str:
        """What to tell about the warning `text`; "" where its reason was told before."""
        reason = TILE.sub("", text)
        if reason in self._told:
            return ""
        self._told.add(reason)
        return text if reason == text else f"A part of the image cannot be predicted: {reason}"


def notifies(method: Method) -> Method:
    """A slot whose errors become notifications."""

    @functools.wraps(method)
    def guarded(self: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return method(self, *arguments, **named)
        except Exception as error:  # noqa: BLE001 - whatever it is, the user is told
            show_failure(error)
            return None

    return guarded  # type: ignore[return-value]
