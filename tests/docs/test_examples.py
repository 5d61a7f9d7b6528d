"""The examples run as they are, as scripts and as notebooks, in fewer steps."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_muvit import api

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
LESS = {
    "own_image": ("STEPS, CROP_SIZE = 100, 64", "STEPS, CROP_SIZE = 1, 32"),
    "official_features": ('"official-model", 64', '"official-model", 32'),
    "custom_dataset": ("EPOCHS = 2", "EPOCHS = 1"),
    "cluster_prediction": ('"crop_size": 64', '"crop_size": 32'),
    "console_session": ('"", "", 50', '"", "", 1'),
}
"""What each example does more of than a test needs."""
HEADLESS = [name for name in LESS if name != "console_session"]


def shorter(name: str, text: str) -> str:
    """An example, or a part of it, that does less."""
    return text.replace(*LESS[name])


def make_script(name: str, folder: Path) -> Path:
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert LESS[name][0] in text
    script = folder / f"{name}.py"
    script.write_text(shorter(name, text), encoding="utf-8")
    return script


def run_script(name: str, monkeypatch: pytest.MonkeyPatch, folder: Path, *args: str) -> None:
    script = make_script(name, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [str(script), *args])
    runpy.run_path(str(script), run_name="__main__")


def write_image(folder: Path) -> tuple[str, str]:
    rng = np.random.default_rng(0)
    paths = str(folder / "image.ome.zarr"), str(folder / "labels.ome.zarr")
    list(api.convert(rng.integers(0, 255, (128, 128), np.uint8), paths[0], levels=(1, 4)))
    list(api.convert(rng.integers(1, 3, (128, 128), np.uint8), paths[1], levels=(1,),
                     as_labels=True))
    return paths


def test_a_custom_dataset_trains_and_gives_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_script("custom_dataset", monkeypatch, tmp_path, "model")
    assert "features of one sample: (" in capsys.readouterr().out
    image, _ = write_image(tmp_path)
    run_script("official_features", monkeypatch, tmp_path, "model", image, "32")
    assert "levels (1, 4); features (64, 16, 16)" in capsys.readouterr().out


def test_ones_own_image_becomes_a_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_script("own_image", monkeypatch, tmp_path, *write_image(tmp_path), "out")
    assert api.open_pyramid("out/prediction.ome.zarr").spatial_shape == (128, 128)
    assert "mDSC" in capsys.readouterr().out


@pytest.mark.slow
def test_workers_share_a_prediction(tmp_path: Path) -> None:
    script = make_script("cluster_prediction", tmp_path)
    ran = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True,
                         text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert api.open_pyramid(tmp_path / "prediction.ome.zarr").spatial_shape == (256, 256)


@pytest.mark.gui
def test_a_console_session_leaves_its_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_napari_viewer: Any
) -> None:
    import napari

    viewer = make_napari_viewer(show=True)
    monkeypatch.setattr(napari, "Viewer", lambda: viewer)
    monkeypatch.setattr(napari, "run", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run_script("console_session", monkeypatch, tmp_path)
    assert {"immunohistochemistry: lazy prediction"} <= {layer.name for layer in viewer.layers}


@pytest.mark.parametrize("name", list(LESS))
def test_every_notebook_is_that_of_its_script(name: str) -> None:
    """If this fails: python scripts/make_notebooks.py."""
    spec = importlib.util.spec_from_file_location(
        "make_notebooks", ROOT / "scripts" / "make_notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    script = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    notebook = EXAMPLES / "notebooks" / f"{name}.ipynb"
    assert notebook.read_text(encoding="utf-8") == maker.notebook_text(script)


def run_notebook(name: str, folder: Path) -> str:
    """Execute a notebook in a kernel; all that its cells printed."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    book = nbformat.read(EXAMPLES / "notebooks" / f"{name}.ipynb", as_version=4)
    nbformat.validate(book)
    for cell in book.cells:
        cell.source = shorter(name, cell.source)
    nbclient.NotebookClient(
        book, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(folder)}},
    ).execute()
    outputs = [o for cell in book.cells if cell.cell_type == "code" for o in cell.outputs]
    return json.dumps(outputs)


def test_a_notebook_runs_in_a_kernel(tmp_path: Path) -> None:
    assert "levels (1, 4); features" in run_notebook("official_features", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in HEADLESS if name != "official_features"])
def test_every_notebook_runs_in_a_kernel(name: str, tmp_path: Path) -> None:
    words = {"own_image": "mDSC", "custom_dataset": "features of one sample",
             "cluster_prediction": "prediction.ome.zarr"}
    assert words[name] in run_notebook(name, tmp_path)


@pytest.mark.slow
@pytest.mark.gui
def test_the_console_notebook_runs_in_a_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert os.environ.get("DISPLAY") or sys.platform != "linux"
    assert "Pyramid" in run_notebook("console_session", tmp_path)
