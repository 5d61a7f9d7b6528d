"""Training gives way to the viewer."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import psutil
import pytest

from napari_muvit.plugin import priority

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
