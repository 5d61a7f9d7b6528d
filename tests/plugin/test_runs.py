"""What the folders of runs tell, without a viewer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from napari_muvit.plugin import run_control, runs


def write_config(folder: Path, **options: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"preset": "tiny", **options}))
    return folder


def test_differences_name_what_is_not_alike(tmp_path: Path) -> None:
    first = write_config(
        tmp_path / "one", output="a", levels=[1, 4], dim=128, patch_size=[8, 8],
        pretrained=str(tmp_path / "runs" / "pretrain-1"), crop_size=[64])
    second = write_config(
        tmp_path / "two", output="b", levels=[1, 8], dim=None, patch_size=None, pretrained=None,
        crop_size=64)
    assert runs.differences(first, second) == [
        "levels 1, 4 / 1, 8", "pretrained pretrain-1 / default"]
    assert runs.differences(first, first) == []
    assert runs.differences(first, tmp_path / "nothing")


def test_runs_of_two_kinds_differ_only_in_what_both_have(tmp_path: Path) -> None:
    first = write_config(tmp_path / "tuned", steps=150, seed=0, decoder="unetr", labels=["l.zarr"])
    second = write_config(tmp_path / "pre", steps=300, seed=0, masking_ratio=0.75, loss="mse")
    assert runs.differences(first, second, ("finetune", "pretrain")) == ["steps 150 / 300"]
    assert runs.differences(first, second, ("finetune", "fit")) == ["steps 150 / 300"]
    assert len(runs.differences(first, second)) == 5

    def picture(folder: Path, kind: str) -> runs.RunPicture:
        return runs.RunPicture(folder, kind, "completed", 1, 1, "Completed.")

    said = runs.Comparison(
        picture(first, "finetune"), picture(second, "pretrain"), ("steps 150 / 300",)).text
    assert said == (
        "Dashed: pre. Completed. This is a fine-tuning, the other a pretraining. Options of both, "
        "here / there: steps 150 / 300."
    )
    alike = runs.Comparison(picture(first, "finetune"), picture(second, "finetune")).text
    assert alike == "Dashed: pre. Completed. No option differs."
    assert runs.Comparison(picture(first, "finetune")).text == ""


def test_long_curves_are_thinned_to_what_a_screen_shows() -> None:
    curve = tuple((step, float(step % 2)) for step in range(1, 100_001))
    thinned = runs.thin(curve)
    assert len(thinned) == runs.MOST_POINTS
    assert [thinned[0][0], thinned[-1][0]] == [50, 99950]
    assert np.allclose([value for _, value in thinned], 0.5)
    assert runs.thin(curve[:10]) == curve[:10]


def test_smooth_curves_keep_their_ends_and_lose_their_noise() -> None:
    curve = tuple((step, step / 100 + (-1) ** step) for step in range(1, 201))
    smoothed = runs.smooth(curve)
    assert [step for step, _ in smoothed] == [step for step, _ in curve]
    assert (smoothed[0], smoothed[-1]) == (curve[0], curve[-1])
    middle = np.array(smoothed)[20:-20]
    assert np.abs(middle[:, 1] - middle[:, 0] / 100).max() < 0.1
    gap = tuple((step, float("nan") if step == 50 else 1.0) for step in range(1, 101))
    assert {value for _, value in runs.smooth(gap)} == {1.0}


def test_a_run_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    from napari_muvit import api

    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    assert [line.text for line in runs.list_runs(api, tmp_path)] == ["broken: cannot be read"]
    assert runs.find_runs(tmp_path / "nothing") == []


@pytest.mark.parametrize(("text", "device"), [
    ("device: cuda:1", "cuda:1"), ("preset: tiny", "auto"), ("- 1", "auto"), ("{", "auto"),
])
def test_device_of_a_run(text: str, device: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    assert run_control.device_of(tmp_path) == device


def test_a_folder_without_a_run_is_not_found(tmp_path: Path) -> None:
    assert run_control.find_trained(tmp_path) is None
    assert not run_control.is_trained(tmp_path)
    assert not run_control.ask_run(tmp_path, "stop")


def test_scores_are_dice_alone(tmp_path: Path) -> None:
    """A temperature is no share, and would flatten the curves beside it."""
    rows = [{"split": "val", "step": 5, "mdsc": 0.5, "loss": 1.0, "dice_nuclei": 0.6,
             "temperature": 1.4}]
    folder = write_config(tmp_path / "run")
    run = SimpleNamespace(
        kind="finetune", metrics=lambda: rows, previews=list,
        status=lambda: SimpleNamespace(state="completed", step=5, steps=5, remaining=None,
                                       message=""))
    picture = runs.read_run(SimpleNamespace(RunFolder=lambda path: run), folder)
    assert picture is not None
    assert set(picture.scores) == {"mDSC", "Dice nuclei"}
    assert set(picture.losses) == {"validation"}
