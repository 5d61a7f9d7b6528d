"""One writer at a time: a lock file that names its owner and dies with it.

The operating system holds the lock (`flock` on Linux and macOS, `LockFileEx` through `msvcrt`
on Windows), so the lock of a killed process is free at once. Where a network file system does
not tell one computer of another's lock, the time of the file's last change does: the owner
touches it every few seconds.
"""

from __future__ import annotations

import contextlib
import errno
import getpass
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any, Self

from napari_muvit.errors import LockedError

HEARTBEAT_SECONDS = 10.0
"""How often the owner touches the lock file."""

STALE_SECONDS = 60.0
"""A lock of another computer that was not touched for so long belongs to a dead process."""

_GUARD_BYTE = 1 << 30
"""The byte that is locked on Windows, far behind the text so that others can read who owns it."""


class WriterLock:
    """The right to write to one store, held from construction to `release`.

    Parameters
    ----------
    path
        The lock file; it is made, and removed again by `release`.
    subject
        What is locked, for the error message.

    Raises
    ------
    LockedError
        If another process, or another object in this process, holds the lock.
    """

    def __init__(self, path: str | os.PathLike[str], subject: str = "this store") -> None:
        self.path = Path(path)
        self._subject = subject
        self._touched = 0.0
        self._file: int | None = self._acquire()
        self._write_owner()

    def _acquire(self) -> int:
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                locked = _try_lock(descriptor)
                if locked is False:
                    raise self._locked(_read_owner(self.path))
                if _is_same_file(descriptor, self.path):
                    self._refuse_unseen(_read_owner(self.path), is_seen=locked is not None)
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            # The former owner removed the file between our opening and locking it.
            os.close(descriptor)

    def _refuse_unseen(self, owner: dict[str, Any], is_seen: bool) -> None:
        """Respect a living owner whose lock this file system does not show to us."""
        is_local = owner.get("host", socket.gethostname()) == socket.gethostname()
        if not owner or (is_local and is_seen):
            return
        if time.time() - self.path.stat().st_mtime < STALE_SECONDS:
            raise self._locked(owner)

    def _locked(self, owner: dict[str, Any]) -> LockedError:
        who = describe_owner(owner)
        return LockedError(
            f"{self._subject} is open for writing by {who}; only one process may write to it. "
            "Close it there first, or open it here for reading only.", owner=who,
        )

    def _write_owner(self) -> None:
        owner = {
            "pid": os.getpid(), "host": socket.gethostname(), "user": _user_name(),
            "program": Path(sys.argv[0]).name or "python",
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        if self._file is not None:
            os.ftruncate(self._file, 0)
            os.lseek(self._file, 0, os.SEEK_SET)
            os.write(self._file, json.dumps(owner).encode("utf-8"))

    def touch(self) -> None:
        """Tell other computers that the owner lives; does something every ten seconds at most."""
        now = time.monotonic()
        if self._file is not None and now - self._touched > HEARTBEAT_SECONDS:
            self._touched = now
            os.utime(self.path)

    def release(self) -> None:
        """Let others write; calling it again does nothing."""
        if self._file is None:
            return
        descriptor, self._file = self._file, None
        if sys.platform == "win32":
            os.ftruncate(descriptor, 0)
            _unlock(descriptor)
            os.close(descriptor)
            # Another process may have opened the file meanwhile; then it stays, and is theirs.
            with contextlib.suppress(PermissionError, FileNotFoundError):
                self.path.unlink()
        else:
            # Removed while still locked: whoever waits notices that its file is gone.
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def describe_owner(owner: dict[str, Any]) -> str:
    """The owner in words, from the content of a lock file."""
    if not owner:
        return "another process"
    return (
        f"{owner.get('user', 'someone')} on {owner.get('host', 'this computer')} "
        f"({owner.get('program', 'a process')}, process {owner.get('pid', '?')}, "
        f"since {owner.get('since', '?')})"
    )


def _read_owner(path: Path) -> dict[str, Any]:
    """Content of the lock file; empty where it is not written yet or damaged."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # no name known: containers, services on Windows
        return "an unknown user"


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool | None:
        os.lseek(descriptor, _GUARD_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, _GUARD_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    _UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

    def _try_lock(descriptor: int) -> bool | None:
        """Whether the lock is ours; None where the file system knows no locks."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return None
            raise
        return True
