"""The SLURM example, with stand-ins for SLURM's own commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from napari_muvit.training.folder import RunFolder

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "slurm_train.sh"

STANDINS = {
    # srun runs the command once, as the only task; its own options come first
    "srun": 'while [ "${1#-}" != "$1" ]; do shift; done\n'
            'SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NTASKS=1 $WRAP "$@"',
    "scontrol": 'echo "scontrol $*" >> "$SLURM_LOG"; echo node1',
    "python": f'exec "{sys.executable}" "$@"',
}


def submit(folder: Path, wrap: str = "") -> tuple[int, str]:
    """Run the job's script; its exit status and what it asked of SLURM."""
    bin_folder, log = folder / "bin", folder / "slurm.log"
    bin_folder.mkdir(exist_ok=True)
    log.write_text("", encoding="utf-8")
    for name, text in STANDINS.items():
        (bin_folder / name).write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        (bin_folder / name).chmod(0o755)
    environment = {
        **os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "WRAP": wrap,
        "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "7", "SLURM_LOG": str(log),
        "SLURM_CPUS_PER_TASK": "1",
    }
    done = subprocess.run(
        ["bash", str(SCRIPT), str(folder / "run"), str(folder / "config.yaml")],
        env=environment, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, log.read_text(encoding="utf-8") + done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SLURM runs on Linux")
def test_a_job_that_runs_out_of_time_queues_itself_until_the_run_is_complete(
    pretrain_options, tmp_path
):
    options = {**pretrain_options, "levels": [1, 2], "steps": 4000, "checkpoint_every": 4000}
    del options["output"], options["val"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(options), encoding="utf-8")
    status, text = submit(tmp_path, wrap="timeout -s USR1 12")
    assert "scontrol requeue 7" in text, text
    first = RunFolder(tmp_path / "run").status()
    assert (status, first.state) == (0, "stopped"), text
    folder = RunFolder(tmp_path / "run")
    (folder.path / "config.yaml").write_text(
        (folder.path / "config.yaml").read_text(encoding="utf-8").replace(
            "\nsteps: 4000", f"\nsteps: {first.step + 3}"), encoding="utf-8")
    status, text = submit(tmp_path)
    assert (status, folder.status().state) == (0, "completed"), text
    assert "requeue" not in text


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SLURM runs on Linux")
def test_a_job_whose_run_failed_is_not_queued_again(pretrain_options, tmp_path):
    options = {**pretrain_options, "levels": [1, 2], "learning_rate": 1e30, "clip": 1e30,
               "warmup": 0.0, "steps": 50}
    del options["output"], options["val"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(options), encoding="utf-8")
    status, text = submit(tmp_path)
    assert status == 1, text
    assert "requeue" not in text
    assert "is not finite" in text
