"""``.fit`` of the drop-in MAE: the official keywords on our engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from napari_muvit.errors import CheckpointError, InputError, RunExistsError
from napari_muvit.models.mae import MAE
from napari_muvit.official import MuViTDataset, MuViTMAE2d
from napari_muvit.training.events import StepEvent, ValidationEvent
from napari_muvit.training.fit import fit_mae, parse_batch
from napari_muvit.training.folder import RunFolder, find_model


class Waves(MuViTDataset):
    """Sample i: waves of a phase that depends on i."""

    ndim, levels, n_channels = 2, (1, 4), 1

    def __len__(self):
        return 8

    def __getitem__(self, idx):
        rows = np.mgrid[:16, :16][0]
        image = np.sin(rows / 3 + idx)[None, None].repeat(2, 0).astype(np.float32)
        boxes = torch.tensor([[[0.0, 0.0], [16.0, 16.0]], [[-24.0, -24.0], [40.0, 40.0]]])
        return {"img": torch.from_numpy(image), "bbox": boxes}


def build() -> MuViTMAE2d:
    torch.manual_seed(0)
    return MuViTMAE2d(
        in_channels=1, levels=(1, 4), patch_size=4, num_layers=1, dim=48, heads=2,
        num_layers_decoder=1, dim_decoder=48)


def loaders(generator=None):
    train = DataLoader(Waves(), batch_size=4, shuffle=generator is not None, generator=generator)
    return train, DataLoader(Waves(), batch_size=8)


OPTIONS = {"accelerator": "cpu", "precision": "32-true"}


def test_fit_leaves_the_official_folder_and_a_run(tmp_path):
    model = build()
    before = model.state_dict()["final.weight"].clone()
    model.fit(*loaders(), output=tmp_path / "run", num_epochs=3, lr=1e-2, **OPTIONS)
    assert not torch.equal(before, model.state_dict()["final.weight"])
    again = MuViTMAE2d.from_folder(tmp_path / "run")
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    folder = RunFolder(tmp_path / "run")
    assert folder.kind == "fit"
    assert folder.status().state == "completed"
    assert len([e for e in folder.events() if isinstance(e, StepEvent)]) == 6
    assert len([e for e in folder.events() if isinstance(e, ValidationEvent)]) == 3
    assert find_model(tmp_path / "run").name == "model-best"
    assert folder.model_folder(best=False) == tmp_path / "run"


def test_fit_learns(tmp_path):
    model = build()
    model.fit(*loaders(), output=tmp_path / "run", num_epochs=20, lr=2e-2, **OPTIONS)
    losses = [e.metrics["loss"] for e in RunFolder(tmp_path / "run").events()
              if isinstance(e, ValidationEvent)]
    assert losses[-1] < 0.5 * losses[0]


def test_fit_goes_on_from_where_it_was(tmp_path):
    whole, cut = build(), build()
    torch.manual_seed(7)
    generator = torch.Generator()
    whole.fit(*loaders(generator), output=tmp_path / "a", num_epochs=4, data_gen=generator,
              **OPTIONS)

    class StoppedError(Exception):
        pass

    class Stops(Waves):
        reads = 0

        def __getitem__(self, idx):
            Stops.reads += 1
            if Stops.reads > 30:
                raise StoppedError
            return super().__getitem__(idx)

    torch.manual_seed(7)
    generator = torch.Generator()
    train, val = loaders(generator)
    broken = DataLoader(Stops(), batch_size=4, shuffle=True, generator=generator)
    with pytest.raises(StoppedError):
        cut.fit(broken, val, output=tmp_path / "b", num_epochs=4, data_gen=generator, **OPTIONS)
    fresh = build()
    fresh.fit(train, val, output=tmp_path / "b", num_epochs=4, data_gen=generator,
              ckpt_path=tmp_path / "b", **OPTIONS)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[key])


def test_nothing_is_written_without_an_output_or_when_dry(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build().fit(*loaders(), output=None, num_epochs=1, **OPTIONS)
    build().fit(*loaders(), output=tmp_path / "dry", num_epochs=1, dry=True, **OPTIONS)
    build().fit(*loaders(), output=tmp_path / "fast", num_epochs=9, fast_dev_run=True, **OPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_fast_dev_run_takes_one_batch(tmp_path):
    last = fit_mae(build(), *loaders(), output=tmp_path / "run", device="cpu", max_batches=1)
    assert last.step == 1


def test_boxes_can_be_left_out():
    batch = {"img": torch.zeros(1, 2, 1, 4, 4), "bbox": torch.zeros(1, 2, 2, 2), "name": "x"}
    assert parse_batch(batch, True).keys() == {"img", "bbox"}
    assert parse_batch(batch, False).keys() == {"img"}
    assert parse_batch((batch["img"], batch["bbox"]), True).keys() == {"img", "bbox"}
    assert parse_batch(batch["img"], True).keys() == {"img"}
    with pytest.raises(InputError, match="type list"):
        parse_batch([1, 2, 3], True)


def test_boxes_change_what_is_learned(tmp_path):
    found = []
    for use_boxes in (True, False):
        torch.manual_seed(1)
        model = build()
        fit_mae(model, *loaders(), output=None, num_epochs=1, device="cpu", precision="fp32",
                use_boxes=use_boxes)
        found.append(model.state_dict()["final.weight"])
    assert not torch.equal(*found)


def test_clip_none_does_not_clip(tmp_path):
    norms = {}
    for clip in (None, 1e-6):
        torch.manual_seed(1)
        model: MAE = build()
        start = model.final.weight.detach().clone()
        fit_mae(model, loaders()[0], output=None, num_epochs=1, device="cpu", precision="fp32",
                clip=clip, learning_rate=1e-3, warmup_epochs=0)
        norms[clip] = (model.final.weight.detach() - start).norm()
    assert norms[None] != norms[1e-6]


class Short:
    """Promises five batches and gives fewer."""

    def __init__(self, count):
        self.given = [torch.zeros(1, 2, 1, 16, 16)] * count

    def __len__(self):
        return 5

    def __iter__(self):
        return iter(self.given)


@pytest.mark.parametrize("count", [3, 0])
def test_a_loader_that_gives_less_than_it_promised_ends_the_run(tmp_path, count):
    model = build()
    with pytest.raises(InputError, match=f"gave {count} batches in one pass.*promised 5"):
        model.fit(Short(count), None, output=tmp_path / "run", num_epochs=2, **OPTIONS)


def test_what_cannot_be_used_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match="ckpt_path"):
        fit_mae(build(), *loaders(), output=tmp_path / "x", resume_from=tmp_path / "none")
    with pytest.raises(InputError, match="train_dataloader has no length"):
        fit_mae(build(), iter([]), None, output=None)
    with pytest.raises(InputError, match="val_dataloader is empty"):
        fit_mae(build(), loaders()[0], [], output=None)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("x", encoding="utf-8")
    with pytest.raises(RunExistsError):
        fit_mae(build(), *loaders(), output=tmp_path / "full", device="cpu")
