"""Options of the config that act through a whole run, each with its effect."""

from __future__ import annotations

import pytest
import torch

from napari_muvit.errors import MissingExtraError
from napari_muvit.models.checkpoint import load_model
from napari_muvit.training import find_model, resume_run, start_finetune, start_pretrain
from napari_muvit.training.events import (
    CheckpointEvent,
    EpochEvent,
    PreviewEvent,
    StepEvent,
    ValidationEvent,
)
from napari_muvit.training.folder import RunFolder


def final(options, start=start_pretrain):
    return load_model(find_model(start(options).wait().folder)).state_dict()


def alike(a, b, tolerance=0.0):
    return all(torch.allclose(a[k], b[k], atol=tolerance, rtol=0) for k in a)


@pytest.fixture
def twice(pretrain_options, tmp_path):
    """Final weights without and with some options."""
    del pretrain_options["val"]
    pretrain_options["steps"] = 3

    def run(**changed):
        a = final({**pretrain_options, "output": str(tmp_path / "a")})
        b = final({**pretrain_options, **changed, "output": str(tmp_path / "b")})
        return a, b

    return run


def test_activation_checkpointing_changes_memory_not_weights(twice, monkeypatch):
    from napari_muvit.models import encoder

    calls = []
    original = encoder.checkpoint
    monkeypatch.setattr(encoder, "checkpoint", lambda *a, **k: calls.append(1) or original(*a, **k))
    assert alike(*twice(activation_checkpointing=True), tolerance=1e-7)
    assert len(calls) == 3 * 2  # steps times layers, in the second run only


def test_accumulation_gives_the_same_weights(twice):
    assert alike(*twice(accumulate=2), tolerance=2e-6)


@pytest.mark.parametrize("changed", [
    {"learning_rate": 1e-2}, {"weight_decay": 0.9}, {"warmup": 0.9}, {"clip": 1e-4},
    {"ema": 0.5}, {"batch_size": 3}, {"seed": 9}, {"masking_ratio": 0.5}, {"loss": "norm_mse"},
    {"mask_per_sample": True},
])
def test_option_changes_the_weights(twice, changed):
    a, b = twice(**changed)
    assert not alike(a, b)


@pytest.mark.parametrize("changed", [
    {"deterministic": True}, {"kernels": "torch"}, {"epoch_size": 2}, {"checkpoint_every": 1},
    {"preview_every": 1},
])
def test_option_does_not_change_the_weights(twice, changed):
    assert alike(*twice(**changed))


@pytest.mark.slow
def test_loader_processes_do_not_change_the_weights(twice):
    assert alike(*twice(workers=2))


def test_intervals_and_epochs(pretrain_options):
    events = list(start_pretrain({
        **pretrain_options, "validate_every": 2, "checkpoint_every": 4, "preview_every": 5,
        "epoch_size": 4}))

    def steps(kind):
        return [e.step for e in events if isinstance(e, kind)]

    assert steps(ValidationEvent) == [2, 4, 6]
    assert steps(CheckpointEvent) == [4, 6]
    assert steps(PreviewEvent) == [0, 5, 6]
    assert steps(EpochEvent) == [2, 4, 6]


def test_learning_rate_follows_batch_size_and_width_unless_given(pretrain_options, tmp_path):
    peaks = []
    changes = ({}, {"batch_size": 8}, {"dim": 256}, {"learning_rate": 0.5})
    for number, changed in enumerate(changes):
        run = start_pretrain({**pretrain_options, "steps": 1, "warmup": 0.0, **changed,
                              "output": str(tmp_path / str(number))})
        peaks += [e.learning_rate for e in run if isinstance(e, StepEvent)]
    rate = 1e-4 / 8 * 16  # the largest factor that a width gives
    assert peaks == pytest.approx([rate, 2 * rate, rate / 4, 0.5])


def test_number_of_validation_crops(pretrain_options, monkeypatch):
    from napari_muvit.training import mae_task

    seen = []
    original = mae_task.MAETask.scores
    monkeypatch.setattr(mae_task.MAETask, "scores", lambda self, batch: (
        seen.append(len(batch["img"])) or original(self, batch)))
    start_pretrain({**pretrain_options, "val_samples": 5, "steps": 1}).wait()
    assert seen == [2, 2, 1]


def test_bf16_is_measured_and_recorded(pretrain_options):
    run = start_pretrain({**pretrain_options, "precision": "bf16", "steps": 1})
    run.wait()
    facts = RunFolder(run.folder).facts()
    assert facts["precision"] == facts["kernels"]["precision"]


def test_level_supervision_default_and_choice(finetune_options, tmp_path):
    found = {}
    for name, changed in {
        "default": {}, "off": {"level_supervision": 0.0}, "half": {"level_supervision": 0.5},
        "frozen": {"freeze_encoder": True}, "one level": {"levels": (1,)},
    }.items():
        run = start_finetune({**finetune_options, **changed, "steps": 1,
                              "output": str(tmp_path / name)})
        found[name] = run._events.gi_frame.f_locals["self"].task.supervision
        run.close()
    assert found == {"default": 1.0, "off": 0.0, "half": 0.5, "frozen": 0.0, "one level": 0.0}


def test_a_frozen_encoder_keeps_its_weights(pretrain_options, finetune_options):
    start_pretrain(pretrain_options).wait()
    before = load_model(find_model(pretrain_options["output"])).encoder.state_dict()
    after = final({**finetune_options, "pretrained": pretrain_options["output"], "steps": 2,
                   "freeze_encoder": True}, start_finetune)
    assert all(torch.equal(v, after[f"encoder.{k}"]) for k, v in before.items())


def test_tensorboard_is_refused_by_name_where_missing(pretrain_options, monkeypatch, tmp_path):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"napari-muvit\[tensorboard\]"):
        start_pretrain({**pretrain_options, "tensorboard": True})
    assert not (tmp_path / "pre").exists()


def read_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    steps = {name: [s.step for s in found.Scalars(name)] for name in found.Tags()["scalars"]}
    return found, steps


def test_tensorboard_gets_losses_metrics_and_previews(pretrain_options):
    options = {**pretrain_options, "tensorboard": True, "steps": 3}
    run = start_pretrain(options)
    losses = [event.loss for event in run if isinstance(event, StepEvent)]
    found, steps = read_tensorboard(run.folder / "tensorboard")
    assert steps["train/loss"] == steps["train/learning_rate"] == [1, 2, 3]
    assert steps["val/loss"] == [3]
    assert [s.value for s in found.Scalars("train/loss")] == pytest.approx(losses)
    picture = found.Images("preview")[-1]
    assert (picture.step, picture.height, picture.width) == (3, 16 * 2 + 4, 16 * 3 + 8)


def test_tensorboard_leaves_out_what_a_resumed_run_did_again(pretrain_options):
    options = {**pretrain_options, "tensorboard": True, "steps": 8, "checkpoint_every": 4,
               "validate_every": 6}
    run = start_pretrain(options)
    next(event for event in run if isinstance(event, ValidationEvent))  # past the checkpoint
    run.close()
    _, steps = read_tensorboard(run.folder / "tensorboard")
    assert steps["train/loss"] == [1, 2, 3, 4, 5, 6]
    resume_run(run.folder).wait()
    _, steps = read_tensorboard(run.folder / "tensorboard")
    assert steps["train/loss"] == list(range(1, 9))
    assert steps["val/loss"] == [6, 8]

