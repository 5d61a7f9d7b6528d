"""One writer at a time, and dead writers are not in the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from napari_muvit.data.lock import STALE_SECONDS, WriterLock
from napari_muvit.errors import LockedError

HOLD = """
import sys, time
from napari_muvit.data.lock import WriterLock
lock = WriterLock(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


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


def test_damaged_lock_file_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "store.lock"
    path.write_bytes(b"\xff\x00 not json")
    WriterLock(path).release()
