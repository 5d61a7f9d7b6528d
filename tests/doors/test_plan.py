"""`napari-muvit doctor IMAGE`: times that were measured, for images and for volumes."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from napari_muvit import api
from napari_muvit.__main__ import main
from napari_muvit.doors import plan
from napari_muvit.errors import RunError

SHAPES = {"image": (160, 120), "volume": (5, 160, 120)}


@pytest.fixture(params=SHAPES)
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"{request.param}.ome.zarr"
    pixels = np.random.default_rng(0).integers(0, 255, SHAPES[request.param], np.uint8)
    source = api.pyramid_from_arrays([pixels], axes="zyx"[-pixels.ndim:],
                                     name=request.param)
    list(api.convert(source, path, levels=(1, 2), chunk=64))
    return path


@pytest.fixture
def small_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "PRESETS", ("tiny",))
    monkeypatch.setattr(api, "suggest_crops", lambda pyramid: (32, (1, 2)), raising=False)


@pytest.mark.usefixtures("small_plan")
def test_the_plan_is_measured_on_the_image(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(image), "--device", "cpu"]) == 0
    *_, head, columns, row = capsys.readouterr().out.splitlines()
    assert head.startswith(image.name.split(".")[0])
    assert ("plane by plane" in head) == (image.name == "volume.ome.zarr")
    assert columns.split()[:4] == ["preset", "pretrain", "fine-tune", "predict"]
    assert re.fullmatch(r"  tiny( +[\d.]+ (s|min|h)){3}", row)


def test_times_grow_with_steps_tiles_and_planes(monkeypatch: pytest.MonkeyPatch) -> None:
    step = SimpleNamespace(learning_rate=1.0, seconds=0.5)
    monkeypatch.setattr(api, "pretrain", lambda config: [step], raising=False)
    monkeypatch.setattr(api, "finetune", lambda config: [step, step], raising=False)
    monkeypatch.setattr(plan, "_painted_block", lambda *given: "labels")
    monkeypatch.setattr(plan, "_seconds_per_tile", lambda *given: 2.0)

    def times(*shape: int) -> plan.PresetTimes:
        pyramid: Any = SimpleNamespace(spatial_shape=shape)
        return plan.measure(pyramid, "image", "tiny", 64, (1, 4), "cpu")

    flat = times(480, 960)
    assert flat.pretrain == flat.finetune == 0.5 * plan.STEPS * plan.BATCH_SIZE
    assert flat.predict == 10 * 20 * 2.0
    assert times(7, 480, 960).predict == 7 * flat.predict


@pytest.mark.usefixtures("small_plan")
def test_a_preset_that_cannot_run_is_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any) -> None:
        raise RunError("the memory is full. Choose a smaller model.")

    monkeypatch.setattr(plan, "measure", fail)
    np.save(tmp_path / "a.npy", np.zeros((64, 64), np.uint8))
    assert list(plan.plan(str(tmp_path / "a.npy")))[-1] == (
        "  tiny    not measured: the memory is full. Choose a smaller model.")
