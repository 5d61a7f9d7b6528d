"""``kill -9`` anywhere in a run: resumed, it ends with the same weights bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_muvit.data.labels import ClassTable, LabelClass
from napari_muvit.data.omezarr import create_pyramid
from napari_muvit.models.checkpoint import load_model
from napari_muvit.training import resume_run, start_finetune, start_pretrain
from napari_muvit.training.folder import RunFolder

pytestmark = pytest.mark.faults

CHILD = Path(__file__).with_name("train_child.py")
STEPS = 8
PLACES = [
    ("pretrain", "start", 1), ("pretrain", "checkpoint", 2), ("finetune", "records", 6),
    ("finetune", "model", 3), ("pretrain", "step", 6),
]
"""Kind of run, place and the how-manieth time: the five of the quick suite."""

STARTERS = {"pretrain": start_pretrain, "finetune": start_finetune}


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Options of a tiny run of either kind, but for its output."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    labels = (rng.random((64, 64)) < 0.5).astype(np.uint8) + 1
    image = (60 * labels + rng.integers(0, 20, (64, 64))).astype(np.uint8)
    table = ClassTable((LabelClass(1, "a", "#377eb8"), LabelClass(2, "b", "#e41a1c")))
    for name, pixels, classes in (("image", image, None), ("labels", labels, table)):
        arrays = create_pyramid(
            folder / name, shape=(64, 64), axes="yx", levels=(1, 2), dtype="uint8", chunk=32,
            classes=classes)
        for array, level in zip(arrays, (1, 2), strict=True):
            array[:] = pixels[::level, ::level]
    common = {
        "images": [str(folder / "image")], "val": [str(folder / "image")], "levels": [1, 2],
        "crop_size": [16], "preset": "tiny", "dim": 48, "num_layers": 1, "heads": 2,
        "patch_size": [4], "steps": STEPS, "batch_size": 2, "checkpoint_every": 2,
        "validate_every": 3, "preview_every": 4, "val_samples": 2, "device": "cpu",
        "tissue": "none", "threads": 1, "ema": 0.9,
    }
    labelled = {**common, "labels": [str(folder / "labels")], "val_labels":
                [str(folder / "labels")], "norm": "batch"}
    return {"pretrain": {**common, "dim_decoder": 48}, "finetune": labelled}


@pytest.fixture(scope="module")
def whole(options, tmp_path_factory):
    """Weights of the last and the best model of a run that nobody disturbed."""
    found = {}
    for kind, start in STARTERS.items():
        folder = tmp_path_factory.mktemp("whole") / kind
        start({**options[kind], "output": str(folder)}).wait()
        found[kind] = [load_model(RunFolder(folder).model_folder(best)).state_dict()
                       for best in (False, True)]
    return found


def train_and_die(options, place, number, kind, tmp_path, kill_after=None):
    """Run the child until it is dead."""
    path = tmp_path / "options.json"
    path.write_text(json.dumps(options), encoding="utf-8")
    child = subprocess.Popen(
        [sys.executable, str(CHILD), str(path), kind, place, str(number)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if kill_after is not None:
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(kill_after)
        child.kill()
    _, errors = child.communicate(timeout=120)
    return child.returncode, errors.decode()


def finish(kind, options):
    """Resume what is there, or start again where there is nothing."""
    output = Path(options["output"])
    run = resume_run(output) if output.exists() else STARTERS[kind](options)
    assert run.wait().reason == "completed"
    return [load_model(RunFolder(output).model_folder(best)).state_dict()
            for best in (False, True)]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(("kind", "place", "number"), PLACES)
def test_killed_within(kind, place, number, options, whole, tmp_path):
    mine = {**options[kind], "output": str(tmp_path / "run")}
    code, errors = train_and_die(mine, place, number, kind, tmp_path)
    assert code == -signal.SIGKILL, errors
    assert_same(finish(kind, mine), whole[kind])
    steps = [r["step"] for r in RunFolder(tmp_path / "run").metrics() if r["split"] == "train"]
    assert steps == list(range(1, STEPS + 1))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25))
def test_killed_at_a_random_moment(seed, options, whole, tmp_path):
    rng = random.Random(seed)
    kind = rng.choice(sorted(STARTERS))
    mine = {**options[kind], "output": str(tmp_path / "run")}
    code, errors = train_and_die(mine, "none", 1, kind, tmp_path, kill_after=rng.uniform(0, 1.2))
    assert code in {0, -signal.SIGKILL}, errors
    assert_same(finish(kind, mine), whole[kind])
