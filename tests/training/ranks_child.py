"""One of several processes of a run: ``ranks_child.py OPTIONS.json [die]``."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from napari_muvit.errors import MuvitError, SourceError
from napari_muvit.training import Run, loader, resume_run, start_finetune, start_pretrain
from napari_muvit.training.events import Event, StepEvent

paused_at = 0.0


def pause(run: Run, event: Event) -> None:
    """Hold the run for a second after its second step, and say how long the third one took."""
    global paused_at
    if not isinstance(event, StepEvent):
        return
    if event.step == 2:
        paused_at = time.monotonic()
        run.pause()
        threading.Timer(1.5, run.resume).start()
    elif event.step == 3:
        print(f"held {time.monotonic() - paused_at:.2f} s, used {time.process_time():.2f}",
              flush=True)


def spoil(mode: str) -> None:
    """From the third step on this process cannot read, or reads values that are no numbers."""
    original = loader.read_batch

    def read(dataset: Any, numbers: Sequence[int]) -> loader.Batch:
        batch = original(dataset, numbers)
        if numbers[0] >= 4 and dataset.samples.augment:
            if mode == "gone":
                raise SourceError("the disc went away. Plug it in.")
            batch["img"] = batch["img"] * float("nan")
        return batch

    loader.read_batch = read


def main() -> None:
    options = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    mode = sys.argv[2] if len(sys.argv) > 2 else ""
    start = start_finetune if "labels" in options else start_pretrain
    if mode in {"gone", "spoilt"} and os.environ["RANK"] == "1":
        spoil(mode)
    run = resume_run(options["output"]) if mode == "resume" else start(options)
    try:
        for event in run:
            if mode == "die" and event.step == 2 and os.environ["RANK"] == "1":
                os._exit(9)
            if mode == "stop" and event.step == 2 and os.environ["RANK"] == "1":
                run.stop()
            if mode == "pause" and os.environ["RANK"] == "1":
                pause(run, event)
    except MuvitError as error:
        print(f"RANK {os.environ['RANK']}: {error}", flush=True)
        # The group cannot be left in order when a member is gone.
        os._exit(1)


if __name__ == "__main__":
    main()
