"""Two gloo processes give one process's losses with the same global batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

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
              "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
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
    for code, text in run_two(pretrain_options, tmp_path, "stop"):
        assert code == 0, text
    status = RunFolder(pretrain_options["output"]).status()
    assert (status.state, status.step) == ("stopped", 2)


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


def test_alone_without_a_launcher(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = Parallel.from_environment(cpu=True)
    assert (alone.rank, alone.world, alone.is_main) == (0, 1, True)
