"""One of several processes of a run: ``ranks_child.py OPTIONS.json [die]``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from napari_muvit.errors import MuvitError
from napari_muvit.training import resume_run, start_finetune, start_pretrain


def main() -> None:
    options = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    mode = sys.argv[2] if len(sys.argv) > 2 else ""
    start = start_finetune if "labels" in options else start_pretrain
    run = resume_run(options["output"]) if mode == "resume" else start(options)
    try:
        for event in run:
            if mode == "die" and event.step == 2 and os.environ["RANK"] == "1":
                os._exit(9)
            if mode == "stop" and event.step == 2 and os.environ["RANK"] == "1":
                run.stop()
    except MuvitError as error:
        print(f"RANK {os.environ['RANK']}: {error}", flush=True)
        # The group cannot be left in order when a member is gone.
        os._exit(1)


if __name__ == "__main__":
    main()
