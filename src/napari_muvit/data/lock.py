"""One writer at a time: a lock file that names its owner and dies with it.

The operating system holds the lock (`flock` on Linux and macOS, `LockFileEx` through `msvcrt`
on Windows), so the lock of a killed process is free at once. Where a network file system does
not tell one computer of another's lock, the time of the file's last change does: a thread of
the owner touches it every few seconds, whatever else the owner does.
"""

from __future__ import annotations

import contextlib
import errno
import getpass
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

from napari_muvit.errors import LockedError

HEARTBEAT_SECONDS = 10.0
"""How often the owner touches the lock file."""

STALE_SECONDS = 60.0
"""A lock of another computer that was not touched for so long belongs to a dead process."""

JOIN_SECONDS = 1.0
"""How long a released lock waits for its thread, which ends at once unless the disk hangs."""

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
        # A reentrant lock: a signal handler may release what the thread that it interrupts touches.
        self._guard = threading.RLock()
        self._released = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="muvit-lock", daemon=True)
        self._heart.start()

    def _acquire(self) -> int:
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                locked = _try_lock(descriptor)
                if locked is False:
                    raise self._locked(_read_owner(self.path))
                if _is_same_file(descriptor, self.path):
                    owner = _read_owner(self.path)
                    if _lives_unseen(self.path, owner, is_seen=locked is not None):
                        raise self._locked(owner)
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            # The former owner removed the file between our opening and locking it.
            os.close(descriptor)

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
        """Tell other computers that the owner lives; does something every ten seconds at most.

        A file that someone removed is written anew. What fails is tried again the next time.
        """
        with self._guard:
            now = time.monotonic()
            if self._file is None or now - self._touched <= HEARTBEAT_SECONDS:
                return
            self._touched = now
            with contextlib.suppress(OSError):
                if _is_same_file(self._file, self.path):
                    os.utime(self.path)
                else:
                    self._renew()

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_SECONDS):
            self.touch()

    def _renew(self) -> None:
        """Lock a new file in the place of one that is gone, unless another one has done so."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if _try_lock(descriptor) is False:
            os.close(descriptor)
            return
        gone, self._file = self._file, descriptor
        if gone is not None:
            os.close(gone)
        self._write_owner()

    def release(self) -> None:
        """Let others write; calling it again does nothing."""
        self._released.set()
        with self._guard:
            if self._file is not None:
                descriptor, self._file = self._file, None
                self._free(descriptor)
        if threading.current_thread() is not self._heart:  # which may collect who forgot to close
            self._heart.join(timeout=JOIN_SECONDS)

    def _free(self, descriptor: int) -> None:
        if sys.platform == "win32":
            os.ftruncate(descriptor, 0)
            _unlock(descriptor)
            os.close(descriptor)
            # Another process may have opened the file meanwhile; then it stays, and is theirs.
            with contextlib.suppress(PermissionError, FileNotFoundError):
                self.path.unlink()
        else:
            # Removed while still locked: whoever waits notices that its file is gone.
            if _is_same_file(descriptor, self.path):
                with contextlib.suppress(FileNotFoundError):
                    self.path.unlink()
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def is_held(path: str | os.PathLike[str]) -> bool:
    """Whether a living process holds the lock at `path`; looks, and leaves the file as it is.

    Raises
    ------
    OSError
        If the file cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        locked = _try_lock(descriptor, is_shared=True)
        if locked and sys.platform == "win32":
            _unlock(descriptor)
        return locked is False or _lives_unseen(
            Path(path), _read_owner(Path(path)), is_seen=locked is not None)
    except FileNotFoundError:  # released at this moment
        return False
    finally:
        os.close(descriptor)


def _lives_unseen(path: Path, owner: dict[str, Any], is_seen: bool) -> bool:
    """Whether a lock that this file system does not show to us has a living owner."""
    is_local = owner.get("host", socket.gethostname()) == socket.gethostname()
    if not owner or (is_local and is_seen):
        return False
    return time.time() - path.stat().st_mtime < STALE_SECONDS


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

    def _try_lock(descriptor: int, *, is_shared: bool = False) -> bool | None:
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

    def _try_lock(descriptor: int, *, is_shared: bool = False) -> bool | None:
        """Whether the lock is ours; None where the file system knows no locks.

        Shared locks keep writers out, but not each other, where there are such (not on Windows).
        """
        kind = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return None
            raise
        return True
