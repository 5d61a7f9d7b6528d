"""Which models of earlier runs are offered, without a viewer."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from napari_muvit import api
from napari_muvit.plugin import known_models as models
from napari_muvit.plugin.known_models import (
    KnownModel,
    known_models,
    runs_folder,
    runs_folders,
)
from napari_muvit.plugin.remembered import remember


def write_run(
    folder: Path, date: float, kind: str = "finetune", images: tuple[str, ...] = (),
    has_model: bool = True,
) -> Path:
    (folder / "model").mkdir(parents=True)
    facts = {"kind": kind, "steps": 1, "fingerprints": dict.fromkeys(images, "x")}
    (folder / "run.json").write_text(json.dumps(facts))
    if has_model:
        (folder / "model" / "config.yaml").write_text("kind: segmenter")
        weights = folder / "model" / "weights.safetensors"
        weights.write_bytes(b"")
        os.utime(weights, (date, date))
    return folder


def test_those_of_the_image_come_first_then_the_newest(tmp_path: Path) -> None:
    image, runs = str(tmp_path / "a.zarr"), tmp_path / "runs"
    now = time.time()
    write_run(runs / "old", now - 9e5, images=(image,))
    write_run(runs / "new", now - 60, images=(image, "b.zarr"))
    write_run(runs / "deep" / "other", now)
    write_run(runs / "pretrained", now, kind="pretrain", images=(image,))
    write_run(runs / "young", now, has_model=False)
    (runs / "broken").mkdir()
    (runs / "broken" / "run.json").write_text("{")
    folders = [str(runs), str(runs / "new"), str(tmp_path / "nowhere")]
    found = known_models(api, image, folders, ("finetune",))
    assert [model.folder.name for model in found] == ["new", "old", "other"]
    assert [model.is_here for model in found] == [True, True, False]
    assert found[1].date == pytest.approx(now - 9e5, abs=2)
    assert [m.folder.name for m in known_models(api, None, folders, ("finetune",))] == [
        "other", "new", "old"]
    assert [m.folder.name for m in known_models(api, image, folders, ("pretrain",))] == [
        "pretrained"]


def test_the_text_tells_the_image_and_the_details_the_date() -> None:
    now = time.time()
    known = KnownModel(Path("r/tuned"), now, True)
    assert known.text == "tuned, on this image"
    assert known.details.endswith(f"tuned, {time.strftime('%Y-%m-%d %H:%M', time.localtime(now))}")
    assert KnownModel(Path("r/tuned"), 0.0, False).text == "tuned"


def test_runs_are_looked_for_beside_the_image_and_where_the_last_ones_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{remember.__module__}.cache_folder", lambda: tmp_path)
    image = str(tmp_path / "a.zarr")
    assert runs_folders(None, "finetune") == []
    remember(image, finetune_run="/far/finetune-1")
    remember(None, runs="/shared/runs")
    assert runs_folders(image, "finetune") == [
        str(tmp_path / "muvit-runs"), "/far/finetune-1", "/shared/runs"]


def test_runs_go_beside_the_image_and_never_into_a_folder_called_https(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert runs_folder(str(tmp_path / "a.tif")) == tmp_path / "muvit-runs"
    monkeypatch.setattr(models, "recall", lambda *_: None)
    assert runs_folder("https://example.org/x.ome.zarr") == Path.home() / "muvit-runs"
    monkeypatch.setattr(models, "recall", lambda *_: str(tmp_path / "here"))
    assert runs_folder("s3://bucket/x.ome.zarr") == tmp_path / "here"
