"""Trains in a process of its own and kills itself (-9) at a named place.

``python train_child.py OPTIONS.json KIND PLACE NUMBER``: the `NUMBER`-th time that training
comes by `PLACE`, the process dies. With the place ``none`` the parent does the killing.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Countdown:
    def __init__(self, number: int) -> None:
        self.left = number

    def is_now(self) -> bool:
        self.left -= 1
        return self.left == 0


def arm(place: str, count: Countdown) -> None:
    import torch

    from napari_muvit.training import engine, folder, records, stepper

    def dying(original: Any, before: Any = None) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if count.is_now():
                if before is not None:
                    before(*args, **kwargs)
                die()
            return original(*args, **kwargs)
        return wrapped

    save = torch.save

    def half_a_file(content: Any, file: Any) -> None:
        buffer = io.BytesIO()
        save(content, buffer)
        file.write(buffer.getvalue()[: buffer.tell() // 2])
        file.flush()

    append = records.append

    def half_a_line(path: Path, text: str) -> None:
        append(path, text[: len(text) // 2])

    if place == "start":
        folder.write_config = dying(folder.write_config)
    elif place == "checkpoint":
        torch.save = dying(save, half_a_file)
    elif place == "model":
        engine.Engine._save_model = dying(engine.Engine._save_model)
    elif place == "records":
        records.append = dying(append, half_a_line)
    elif place == "step":
        stepper.split_batch = dying(stepper.split_batch)


def main() -> None:
    options, kind, place, number = sys.argv[1:]
    from napari_muvit.training import start_finetune, start_pretrain

    arm(place, Countdown(int(number)))
    start = start_pretrain if kind == "pretrain" else start_finetune
    run = start(json.loads(Path(options).read_text(encoding="utf-8")))
    print("started", flush=True)
    for event in run:
        print(type(event).__name__, flush=True)


if __name__ == "__main__":
    main()
