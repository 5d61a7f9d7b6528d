"""Ctrl-C in a shell: one sentence, what is finished is kept, and the work goes on later."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from inference.models import make_model, save

from napari_muvit.__main__ import main
from napari_muvit.api import RunFolder
from napari_muvit.data.omezarr import create_pyramid

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to one process"),
]
SHAPE = (260, 230)
BLOCKS = 12
"""Blocks of 72 px, which the child makes in place of those of 1024 px."""
CHILD = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from napari_muvit.inference import job
job.choose_block = lambda step, *_: tuple(3 * s for s in step)
runpy.run_module("napari_muvit", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.ome.zarr"
    array, = create_pyramid(path, shape=SHAPE, axes="yx", levels=(1,), dtype=np.uint8, chunk=64)
    array[:] = np.random.default_rng(0).integers(0, 255, SHAPE, np.uint8)
    return path


def start(*arguments: str) -> subprocess.Popen[str]:
    """`napari-muvit` with arguments in a process of its own, as a shell would start it."""
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments, "--tissue", "none", "--device", "cpu",
         "--threads", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )


def predict(image: Path, output: Path) -> subprocess.Popen[str]:
    model = image.parent / "model"
    if not model.exists():
        save(make_model(), model)
    return start("predict", str(image), "--model", str(model), "--output", str(output),
                 "--probabilities")


def finished_blocks(output: Path) -> int:
    journals = output.glob("*.jsonl")
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in journals)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()}


def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(
    image: Path, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole.ome.zarr", tmp_path / "cut.ome.zarr"
    child = predict(image, whole)
    _, said = child.communicate(timeout=120)
    assert child.returncode == 0, said

    child = predict(image, cut)
    until = time.monotonic() + 120
    while finished_blocks(cut) < 2 and child.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    child.send_signal(signal.SIGINT)
    out, said = child.communicate(timeout=60)
    assert child.returncode == 130, said
    assert said.splitlines()[-1] == "interrupted; what was finished is kept"
    assert "Traceback" not in said
    assert out == ""
    kept = finished_blocks(cut)
    assert 2 <= kept < BLOCKS

    child = predict(image, cut)
    _, said = child.communicate(timeout=120)
    assert child.returncode == 0, said
    assert "predict: 0/" not in said
    assert "finished; wrote" in said
    for suffix in ("", "_probabilities"):
        a, b = (files_of(tmp_path / f"{name}{suffix}.ome.zarr") for name in ("whole", "cut"))
        assert a
        assert a == b


def test_ctrl_c_in_a_training_writes_a_checkpoint_that_resume_takes(
    image: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    child = start("train", "pretrain", "--images", str(image), "--output", str(run), "--levels",
                  "1", "--crop-size", "32", "--preset", "tiny", "--num-layers", "1",
                  "--batch-size", "1", "--steps", "100000", "--kernels", "torch")
    assert child.stderr is not None
    assert any("step 1/100000" in line for line in child.stderr)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 0, said
    assert "stopping; writing a checkpoint" in said
    assert said.splitlines()[-1] == f"pretrain: stopped; the run folder is {run}"
    assert "Traceback" not in said
    reached = RunFolder(run).status().step
    assert reached >= 1
    assert main(["train", "resume", str(run), "--steps", str(reached + 1)]) == 0
    assert RunFolder(run).status().step == reached + 1
