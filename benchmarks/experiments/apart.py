"""Jobs in processes of their own: memory that is theirs alone, and no traces of the last one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from experiments.memory import peak_bytes
from experiments.table import write_json

JOB, DONE, LOG = "job.json", "done.json", "log.txt"


def run_apart(script: Path, job: dict[str, Any], place: Path) -> dict[str, Any]:
    """What ``python script --job FILE`` writes for `job`; found where it was done before.

    Raises
    ------
    SystemExit
        If the process fails; its last words, and where the others are.
    """
    done = place / DONE
    if not done.is_file():
        place.mkdir(parents=True, exist_ok=True)
        write_json(place / JOB, job)
        with (place / LOG).open("w", encoding="utf-8") as log:
            command = [sys.executable, str(script), "--job", str(place / JOB)]
            ran = subprocess.run(command, stdout=log, stderr=log, check=False)
        if ran.returncode or not done.is_file():
            lines = (place / LOG).read_text(encoding="utf-8").splitlines()
            raise SystemExit(f"a job ended with status {ran.returncode}: "
                             f"{lines[-1] if lines else 'no output'}. All of it: {place / LOG}")
    found: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
    return found


def peak_memory() -> dict[str, float]:
    """Most MB that this process held, as ``memory``, and on a GPU as ``gpu_memory``."""
    import torch

    found = {"memory": peak_bytes() / 1e6}
    if torch.cuda.is_available():
        found["gpu_memory"] = torch.cuda.max_memory_allocated() / 1e6
    return found
