"""Two gloo processes give one process's losses with the same global batch."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from napari_muvit.errors import RunError
from napari_muvit.training import resume_run, start_finetune, start_pretrain
from napari_muvit.training.folder import RunFolder
from napari_muvit.training.parallel import Parallel

CHILD = Path(__file__).with_name("ranks_child.py")


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def run_two(options, tmp_path, mode="") -> list[tuple[int, str]]:
    """Exit status and output of both processes."""
    path = tmp_path / "options.json"
    path.write_text(json.dumps(options), encoding="utf-8")
    common = {**os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1",
              "CUDA_VISIBLE_DEVICES": "", "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": str(free_port())}
    children = [
        subprocess.Popen([sys.executable, str(CHILD), str(path), mode], stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True,
                         env={**common, "RANK": str(r), "LOCAL_RANK": str(r)})
        for r in range(2)
    ]
    outputs = [child.communicate(timeout=120)[0] for child in children]
    return [(child.returncode, out) for child, out in zip(children, outputs, strict=True)]


def losses(folder):
    rows = RunFolder(folder).metrics()
    return {split: [row["loss"] for row in rows if row["split"] == split]
            for split in ("train", "val")}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_two_processes_equal_one(kind, pretrain_options, finetune_options, tmp_path):
    options = {**(pretrain_options if kind == "pretrain" else finetune_options),
               "batch_size": 3, "val_samples": 5}
    start = start_pretrain if kind == "pretrain" else start_finetune
    start({**options, "output": str(tmp_path / "one")}).wait()
    for code, text in run_two({**options, "output": str(tmp_path / "two")}, tmp_path):
        assert code == 0, text
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    for split, values in one.items():
        assert two[split] == pytest.approx(values, abs=1e-5)
    assert RunFolder(tmp_path / "two").facts()["processes"] == 2


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_and_one_process_resumes_it(pretrain_options, tmp_path):
    options = {**pretrain_options, "checkpoint_every": 1}
    start_pretrain({**options, "output": str(tmp_path / "one")}).wait()
    (code, text), (dead, _) = run_two({**options, "output": str(tmp_path / "two")}, tmp_path, "die")
    assert dead == 9
    assert code == 1, text
    assert "another of the 2 processes of this run died" in text
    assert RunFolder(tmp_path / "two").status().state == "failed"
    resume_run(tmp_path / "two").wait()
    assert losses(tmp_path / "two")["train"] == pytest.approx(
        losses(tmp_path / "one")["train"], abs=1e-5)


@pytest.mark.slow
def test_a_stop_in_one_process_stops_all(pretrain_options, tmp_path):
    options = {**pretrain_options, "device": "auto"}  # which is the CPU here
    for code, text in run_two(options, tmp_path, "stop"):
        assert code == 0, text
    status = RunFolder(pretrain_options["output"]).status()
    assert (status.state, status.step) == ("stopped", 2)


@pytest.mark.slow
def test_a_pause_in_one_process_holds_all(pretrain_options, tmp_path):
    (code, text), (other, said) = run_two(pretrain_options, tmp_path, "pause")
    assert (code, other) == (0, 0), text + said
    assert float(re.search(r"held ([\d.]+) s", said).group(1)) > 1.4
    rows = [r for r in RunFolder(pretrain_options["output"]).metrics() if r["split"] == "train"]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_the_folder_pauses_and_stops_several_processes(pretrain_options, tmp_path):
    options = {**pretrain_options, "steps": 100_000}
    del options["val"]
    found = []
    thread = threading.Thread(target=lambda: found.extend(run_two(options, tmp_path)))
    thread.start()
    folder = wait_for(lambda: RunFolder(options["output"]))
    wait_for(lambda: folder.status().step > 2 or None)
    folder.ask("pause")
    wait_for(lambda: None if folder.control_path.exists() else True)
    time.sleep(1.0)
    step = folder.status().step
    time.sleep(1.0)
    assert folder.status().step == step
    folder.ask("resume")
    wait_for(lambda: folder.status().step > step or None)
    folder.ask("stop")
    thread.join(timeout=60)
    assert [code for code, _ in found] == [0, 0], found
    assert folder.status().state == "stopped"
    assert not folder.control_path.exists()


def wait_for(look, seconds=60):
    """What `look` finds, as soon as it finds something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(RunError):
            if (found := look()) is not None:
                return found
        time.sleep(0.05)
    raise AssertionError("it never came")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["gone", "spoilt"])
def test_what_one_process_meets_ends_all_with_its_reason(pretrain_options, tmp_path, mode):
    (code, text), (other, said) = run_two({**pretrain_options, "steps": 50}, tmp_path, mode)
    assert (code, other) == (1, 1), text + said
    message = RunFolder(pretrain_options["output"]).status().message
    if mode == "gone":  # in the second process only
        assert "the disc went away" in said
        assert "another process of this run could not read its samples" in message
    else:
        assert "is not finite" in message
        assert "image 'a.ome'" in message or "image 'a" in message
        assert text.split("RANK 0: ")[1] == said.split("RANK 1: ")[1]


@pytest.mark.slow
def test_one_process_begins_and_two_go_on(finetune_options, tmp_path):
    options = {**finetune_options, "batch_size": 3, "checkpoint_every": 1}
    start_finetune({**options, "output": str(tmp_path / "one")}).wait()
    run = start_finetune({**options, "output": str(tmp_path / "two")})
    for event in run:
        if event.step == 3:
            run.stop()
    for code, text in run_two({**options, "output": str(tmp_path / "two")}, tmp_path, "resume"):
        assert code == 0, text
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    for split, values in one.items():
        assert two[split] == pytest.approx(values, abs=1e-5)


@pytest.mark.slow
def test_an_output_that_exists_ends_every_process(pretrain_options, tmp_path):
    (tmp_path / "pre").mkdir()
    (tmp_path / "pre" / "x").write_text("x", encoding="utf-8")
    for code, text in run_two(pretrain_options, tmp_path):
        assert code == 1
        assert "not empty" in text


def test_shares_cover_a_batch_once():
    for world in (1, 2, 3, 7):
        parts = [Parallel(rank, world).share(20) for rank in range(world)]
        assert [n for part in parts for n in range(20)[part]] == list(range(20))


def test_a_group_that_is_not_the_announced_one_is_refused(monkeypatch):
    import accelerate

    class Alone:
        num_processes = 1

        def __init__(self, **options):
            pass

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(accelerate, "PartialState", Alone)
    with pytest.raises(RunError, match="announced 2 processes, but 1 found one another"):
        Parallel.from_environment(cpu=True)


def test_alone_without_a_launcher(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = Parallel.from_environment(cpu=True)
    assert (alone.rank, alone.world, alone.is_main) == (0, 1, True)
