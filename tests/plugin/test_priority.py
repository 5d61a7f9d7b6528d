"""Training gives way to the viewer."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from napari_muvit.plugin import priority

SPIN = "while True: pass"
SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def test_a_process_gives_way() -> None:
    process = subprocess.Popen(SLEEP)
    try:
        before = psutil.Process(process.pid).nice()
        priority.lower_process(process.pid)
        after = psutil.Process(process.pid).nice()
        if os.name == "nt":
            assert after == psutil.BELOW_NORMAL_PRIORITY_CLASS
        else:
            assert after == max(before, priority.NICENESS)
    finally:
        process.kill()
        process.wait()
    priority.lower_process(process.pid)


AUTOGROUP = Path("/proc/self/autogroup")


@pytest.mark.skipif(
    not os.access(AUTOGROUP, os.W_OK), reason="only Linux shares out among sessions")
def test_a_session_gives_way_and_not_that_of_napari() -> None:
    own = AUTOGROUP.read_text()
    shared = subprocess.Popen(SLEEP)
    alone = subprocess.Popen(SLEEP, start_new_session=True)
    try:
        for process in (shared, alone):
            priority.lower_process(process.pid)
        found = Path(f"/proc/{alone.pid}/autogroup").read_text()
        assert found.endswith(f"nice {priority.NICENESS}\n")
        assert AUTOGROUP.read_text() == own
    finally:
        for process in (shared, alone):
            process.kill()
            process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="processor time is told apart on Linux")
def test_who_gives_way_still_gets_what_nobody_wants() -> None:
    """A weight, no class of its own: the run does not starve while the viewer rests."""
    process = subprocess.Popen([sys.executable, "-c", SPIN], start_new_session=True)
    try:
        priority.lower_process(process.pid)
        assert os.sched_getscheduler(process.pid) == os.SCHED_OTHER
        before, start = psutil.Process(process.pid).cpu_times().user, time.monotonic()
        time.sleep(2)
        used = psutil.Process(process.pid).cpu_times().user - before
        # Of an idle machine it is all of a core; something may run beside the tests.
        assert used > 0.05 * (time.monotonic() - start)
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")
def test_a_thread_gives_way_alone() -> None:
    found: list[int] = []

    def work() -> None:
        priority.lower_thread()
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [max(before, priority.NICENESS)]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before
