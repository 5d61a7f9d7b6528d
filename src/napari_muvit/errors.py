"""The one family of errors.

Every message says what was given, what the rule is, and what to do. Children also inherit
the builtin that a caller would otherwise expect, so ``except ValueError`` keeps working.
Facts that an interface needs are attributes, never something to be parsed out of the text.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MuvitError(Exception):
    """Anything this package refuses or cannot do, said in one sentence."""


class InputError(MuvitError, ValueError):
    """A value at a public door has the wrong shape, range or meaning."""


class ChannelError(InputError, RuntimeError):
    """An image has another number of channels than the model expects."""


class SourceError(MuvitError, ValueError):
    """An image source cannot be read; ``source`` holds what was given."""

    def __init__(self, message: str, source: object = None) -> None:
        super().__init__(message)
        self.source = source


class SourceNotFoundError(SourceError, FileNotFoundError):
    """An image source does not exist."""


class ConfigError(MuvitError, ValueError):
    """A configuration is wrong; ``field`` holds the dotted name of the option."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class CheckpointError(MuvitError, ValueError):
    """A model folder or a training state cannot be read, or does not fit."""


class RunError(MuvitError, RuntimeError):
    """A run cannot start or go on."""


class RunExistsError(RunError, FileExistsError):
    """The output folder already holds something that would be overwritten."""


class LockedError(MuvitError, RuntimeError):
    """A store is open for writing elsewhere; ``owner`` says by whom."""

    def __init__(self, message: str, owner: str | None = None) -> None:
        super().__init__(message)
        self.owner = owner


class MissingExtraError(MuvitError, ImportError):
    """An optional dependency is not installed; the message names the pip command."""


class MuvitWarning(UserWarning):
    """Something the user should know and can ignore."""


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """The known name that most resembles `name`, or None when nothing does."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def require_extra(module: str, extra: str, purpose: str) -> MissingExtraError:
    """The error to raise when `module` is missing; `purpose` completes "... needs"."""
    return MissingExtraError(
        f"{purpose} needs the package {module!r}, which is not installed. "
        f"Install it with: pip install 'napari-muvit[{extra}]'"
    )
