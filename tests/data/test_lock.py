"""One writer at a time, and dead writers are not in the way."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from napari_muvit.data import lock as room
from napari_muvit.data.lock import HEARTBEAT_SECONDS, STALE_SECONDS, WriterLock, is_held
from napari_muvit.errors import LockedError

HOLD = """
import sys, time
from napari_muvit.data.lock import WriterLock
lock = WriterLock(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


def wait_until(is_true: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.01)


def hold_elsewhere(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "held"
    return process


def test_second_writer_in_one_process_is_told_who_owns_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "store.lock"
    with WriterLock(path), pytest.raises(LockedError) as caught:
        WriterLock(path, "slide_annotations")
    assert f"process {os.getpid()}" in str(caught.value)
    assert "slide_annotations" in str(caught.value)
    assert caught.value.owner in str(caught.value)


def test_release_removes_the_file_and_frees_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "store.lock"
    lock = WriterLock(path)
    lock.release()
    lock.release()
    assert not path.exists()
    WriterLock(path).release()


def test_lock_of_another_process_holds_until_that_process_dies(tmp_path: Path) -> None:
    path = tmp_path / "store.lock"
    process = hold_elsewhere(path)
    try:
        with pytest.raises(LockedError) as caught:
            WriterLock(path)
        assert f"process {process.pid}" in str(caught.value)
    finally:
        process.kill()
        process.communicate()
    assert path.exists()
    lock = WriterLock(path)
    assert json.loads(path.read_text())["pid"] == os.getpid()
    lock.release()


def test_living_owner_on_another_computer_is_respected_until_its_heart_stops(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store.lock"
    path.write_text(json.dumps({"host": "elsewhere", "user": "ada", "pid": 7}))
    with pytest.raises(LockedError, match="ada on elsewhere"):
        WriterLock(path)
    old = time.time() - 2 * STALE_SECONDS
    os.utime(path, (old, old))
    WriterLock(path).release()


def test_touch_keeps_the_file_young(tmp_path: Path) -> None:
    path = tmp_path / "store.lock"
    with WriterLock(path) as lock:
        os.utime(path, (0, 0))
        lock.touch()
        assert time.time() - path.stat().st_mtime < STALE_SECONDS


def test_an_owner_that_does_nothing_keeps_its_file_young(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(room, "HEARTBEAT_SECONDS", 0.02)
    path = tmp_path / "store.lock"
    with WriterLock(path) as lock:
        for _ in range(2):
            os.utime(path, (0, 0))
            wait_until(lambda: time.time() - path.stat().st_mtime < STALE_SECONDS)
    assert not lock._heart.is_alive()
    assert not path.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="nobody can remove a file that is open")
def test_a_file_that_someone_removed_is_written_anew(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(room, "HEARTBEAT_SECONDS", 0.02)
    path = tmp_path / "store.lock"
    with WriterLock(path):
        content = path.read_bytes()
        path.unlink()
        wait_until(lambda: path.exists() and path.read_bytes() == content)
        with pytest.raises(LockedError, match=f"process {os.getpid()}"):
            WriterLock(path)
    assert not path.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="nobody can remove a file that is open")
def test_a_lock_that_another_one_took_over_is_theirs(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(room, "HEARTBEAT_SECONDS", 0.0)
    path = tmp_path / "store.lock"
    with WriterLock(path) as lock:
        path.unlink()
        path.write_text("{}")
        os.utime(path, (0, 0))
        lock.touch()
        assert path.read_text() == "{}"
        assert path.stat().st_mtime == 0
    assert path.exists()


def test_a_lock_that_nobody_released_does_not_keep_its_process_alive(tmp_path: Path) -> None:
    begin = time.monotonic()
    code = HOLD.replace("time.sleep(60)", "")
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "lock")], check=True, timeout=30,
                   stdout=subprocess.DEVNULL)
    assert time.monotonic() - begin < HEARTBEAT_SECONDS


def test_looking_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "store.lock"
    assert not is_held(path)
    with WriterLock(path):
        content = path.read_bytes()
        assert is_held(path)
        assert path.read_bytes() == content
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": 7}))  # of a killed process
    assert not is_held(path)
    assert json.loads(path.read_text())["pid"] == 7


def test_who_does_not_see_the_lock_goes_by_the_heart_and_leaves_the_file(
    tmp_path: Path, monkeypatch,
) -> None:
    path = tmp_path / "store.lock"
    with WriterLock(path):
        monkeypatch.setattr(room, "_try_lock", lambda *_, **__: True)  # as on another computer
        monkeypatch.setattr(room, "_unlock", lambda *_: None, raising=False)
        monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
        assert is_held(path)
        os.utime(path, (0, 0))
        assert not is_held(path)
        assert path.exists()


def test_damaged_lock_file_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "store.lock"
    path.write_bytes(b"\xff\x00 not json")
    WriterLock(path).release()
