"""Predict a store in a process of its own, slowly enough to be killed in the middle."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from inference.stubs import ContextModel, make_spec

from napari_muvit.inference import job
from napari_muvit.inference.to_store import predict_to_zarr


class SlowModel(ContextModel):
    pause = 0.0

    def judge(self, x, bbox):
        time.sleep(self.pause)
        return super().judge(x, bbox)


def main(source: str, output: str, pause: str) -> None:
    job.choose_block = lambda step, *_: tuple(2 * s for s in step)
    model = SlowModel(make_spec((1, 4), fingerprint="weights"))
    SlowModel.pause = float(pause)
    for event in predict_to_zarr(source, model, output, tissue="none", probabilities=True):
        print(type(event).__name__, getattr(event, "done", ""), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
