"""Memory that runs out: smaller parts where that helps, a sentence where it does not."""

from __future__ import annotations

import pytest
import torch
from training_stub import StubTask, make_engine, run_all

from napari_muvit.errors import RunError
from napari_muvit.models.mae import MAE
from napari_muvit.training import start_finetune
from napari_muvit.training.events import StepEvent, ValidationEvent, WarningEvent
from napari_muvit.training.fit import fit_mae
from napari_muvit.training.folder import RunFolder

FULL = torch.OutOfMemoryError("CUDA out of memory")


def fail(error: Exception):
    def call(*args, **kwargs):
        raise error

    return call


def test_validation_is_computed_in_the_parts_that_memory_asks_for(tmp_path):
    class Large(StubTask):
        def scores(self, batch):
            sizes.append(len(batch["x"]))
            if sizes[-1] > most:
                raise FULL
            return super().scores(batch)

    metrics = []
    for most in (8, 2):
        sizes = []
        engine = make_engine(tmp_path / str(most), task=Large(), accumulate=2, validate_every=12)
        events = run_all(engine)
        metrics += [e.metrics["loss"] for e in events if isinstance(e, ValidationEvent)]
        assert not any(isinstance(e, WarningEvent) for e in events)
    assert metrics == [pytest.approx(metrics[0], rel=1e-6)] * 2
    assert sizes == [4, *8 * [2], *4 * [1]]  # 20 samples, 8 in a batch


def test_validation_that_never_fits_ends_with_advice(tmp_path):
    task = StubTask()
    task.scores = fail(FULL)
    with pytest.raises(RunError, match=r"one sample at a time.*smaller crop_size"):
        list(make_engine(tmp_path / "run", task=task).events())


@pytest.mark.parametrize("error", [FULL, MemoryError()])
def test_what_cannot_be_split_is_a_sentence_and_the_run_goes_on_later(tmp_path, error):
    engine = make_engine(tmp_path / "run")
    engine.stepper.optimizer.step = fail(error)
    with pytest.raises(RunError, match=r"memory ran out on cpu.*Close what else uses"):
        list(engine.events())
    status = RunFolder(tmp_path / "run").status()
    assert status.state == "failed"
    assert status.message.startswith("memory ran out on cpu")
    events = run_all(make_engine(tmp_path / "run"))
    assert [e.step for e in events if isinstance(e, StepEvent)] == list(range(1, 13))


def test_a_model_that_does_not_fit_is_said_before_anything_is_written(
    finetune_options, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.nn.ModuleDict, "to", fail(FULL))
    with pytest.raises(RunError, match="does not fit into the memory of cpu"):
        start_finetune(finetune_options)
    monkeypatch.undo()
    assert not (tmp_path / "fine").exists()


def test_a_scripts_model_that_does_not_fit_leaves_no_folder(tmp_path, monkeypatch):
    model = MAE(in_channels=1, levels=(1, 2), patch_size=4, num_layers=1, dim=24, heads=1)
    loader = [torch.zeros(1, 2, 1, 16, 16)]
    monkeypatch.setattr(MAE, "to", fail(FULL))
    with pytest.raises(RunError, match="does not fit"):
        fit_mae(model, loader, output=tmp_path / "run", device="cpu", precision="fp32")
    assert not (tmp_path / "run").exists()
