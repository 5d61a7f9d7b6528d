"""Full disks, read-only folders, images that go away, folders that move: a sentence each."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
import torch

from napari_muvit.data.omezarr import create_pyramid
from napari_muvit.errors import MuvitError, RunError
from napari_muvit.models.checkpoint import load_model
from napari_muvit.training import files as training_files
from napari_muvit.training import find_model, resume_run, start_pretrain
from napari_muvit.training.events import StepEvent
from napari_muvit.training.folder import RunFolder
from napari_muvit.training.state import load_state

pytestmark = pytest.mark.faults


@pytest.fixture
def options(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 200, (128, 128)).astype(np.uint8)
    arrays = create_pyramid(tmp_path / "image", shape=(128, 128), axes="yx", levels=(1, 2),
                            dtype="uint8", chunk=16)
    for array, level in zip(arrays, (1, 2), strict=True):
        array[:] = image[::level, ::level]
    return {
        "images": [str(tmp_path / "image")], "levels": [1, 2], "crop_size": [16],
        "preset": "tiny", "dim": 48, "num_layers": 1, "heads": 2, "patch_size": [4],
        "dim_decoder": 48, "steps": 8, "batch_size": 2, "checkpoint_every": 2,
        "device": "cpu", "tissue": "none", "threads": 1, "normalization": "constant",
        "output": str(tmp_path / "run"),
    }


def step_to(run, step):
    for event in run:
        if isinstance(event, StepEvent) and event.step == step:
            return
    raise AssertionError("the run ended before")


@pytest.mark.parametrize(("number", "words"), [
    (errno.ENOSPC, "the disk is full"), (errno.EROFS, "Make it writable"),
])
def test_a_disk_that_takes_nothing_more(options, monkeypatch, number, words):
    run = start_pretrain(options)
    step_to(run, 3)

    def full(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(training_files.os, "fsync", full)
    with pytest.raises(RunError, match=words):
        list(run)
    monkeypatch.undo()
    folder = RunFolder(options["output"])
    assert list(folder.path.rglob("*.part")) == []  # a full disk gets its room back
    assert load_state(folder.state_path).progress.step == 2
    assert folder.status().state in {"failed", "interrupted"}
    assert resume_run(options["output"]).wait().reason == "completed"


def test_records_that_cannot_be_written(options, monkeypatch):
    from napari_muvit.training import records

    run = start_pretrain(options)
    step_to(run, 3)

    def full(path, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(records, "append", full)
    with pytest.raises(RunError, match="the disk is full"):
        list(run)
    assert load_model(find_model(options["output"])) is not None


def test_a_disk_that_is_full_in_the_middle_of_a_checkpoint(options, monkeypatch):
    from napari_muvit.training import state

    run = start_pretrain(options)
    step_to(run, 3)

    class FullDisk(io.BytesIO):
        def write(self, data):
            if self.tell() > 2000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    monkeypatch.setattr(state, "open_whole", lambda path: contextlib.closing(FullDisk()))
    with pytest.raises(RunError, match="the disk is full"):
        list(run)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_output_is_refused_at_the_start(options, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(RunError, match="Choose another output"):
        start_pretrain({**options, "output": str(tmp_path / "closed" / "run")})


def test_an_output_below_a_file_is_refused_at_the_start(options, tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(RunError, match="cannot be made"):
        start_pretrain({**options, "output": str(tmp_path / "file" / "run")})


@pytest.mark.parametrize("damage", ["deleted", "garbled"])
def test_an_image_that_goes_bad_while_running(options, tmp_path, damage):
    from napari_muvit.data.memory import shared_cache

    run = start_pretrain(options)
    step_to(run, 3)
    shared_cache.clear()
    if damage == "deleted":
        shutil.rmtree(tmp_path / "image")
    else:
        for chunk in (tmp_path / "image").rglob("c/*/*"):
            chunk.write_bytes(b"this is no chunk")
    with pytest.raises(MuvitError) as caught:
        list(run)
    folder = RunFolder(options["output"])
    assert folder.status().state == "failed"
    assert "image" in str(caught.value)
    assert load_state(folder.state_path).progress.step >= 2
    assert load_model(find_model(options["output"])) is not None


def test_a_run_folder_that_is_moved_while_running(options, tmp_path):
    run = start_pretrain(options)
    step_to(run, 3)
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(RunError, match="moved"):
        list(run)
    assert resume_run(tmp_path / "moved").wait().reason == "completed"


def test_a_damaged_checkpoint_is_named(options, tmp_path):
    run = start_pretrain(options)
    step_to(run, 3)
    run.close()
    path = RunFolder(tmp_path / "run").state_path
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(MuvitError, match=r"state\.pt.*cannot be read"):
        resume_run(tmp_path / "run")


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    torch.save({"format": 1, "progress": Evil()}, tmp_path / "state.pt")
    with pytest.raises(MuvitError, match="cannot be read"):
        load_state(tmp_path / "state.pt")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_saves_and_ends_the_run(options, tmp_path, name):
    script = textwrap.dedent("""
        import json, sys
        from napari_muvit.training import start_pretrain
        run = start_pretrain(json.loads(sys.argv[1]))
        with run.stopping_on_signals():
            for event in run:
                print(type(event).__name__, flush=True)
    """)
    import json

    child = subprocess.Popen(
        [sys.executable, "-c", script, json.dumps({**options, "steps": 100_000})],
        stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if "StepEvent" in line:
            break
    child.send_signal(getattr(signal, name))
    begun = time.monotonic()
    rest = child.communicate(timeout=60)[0]
    assert time.monotonic() - begun < 20
    assert child.returncode == 0
    assert rest.splitlines()[-1] == "FinishedEvent"
    folder = RunFolder(tmp_path / "run")
    assert folder.status().state == "stopped"
    assert load_state(folder.state_path).progress.step == folder.status().step


def kill_loaders() -> None:
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # a child of another test may be ending
            if "spawn_main" in " ".join(child.cmdline()):
                child.kill()


def test_a_loader_process_that_is_killed_ends_the_run_with_a_sentence(options):
    run = start_pretrain({**options, "workers": 1, "steps": 10_000})
    step_to(run, 2)
    # torch raises from a signal handler wherever the main thread is, which must be in the run
    threading.Timer(0.5, kill_loaders).start()
    with pytest.raises(RunError, match="loader process died"):
        list(run)
    assert RunFolder(options["output"]).status().state == "failed"
