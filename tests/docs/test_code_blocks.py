"""Every Python block of the README and the docs runs; every shell command names what exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import napari_muvit as muvit
from napari_muvit import api
from napari_muvit.__main__ import COMMANDS
from napari_muvit.config import FinetuneConfig, PredictConfig, PretrainConfig
from napari_muvit.doors.options import flag_of

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FLAGS = {flag_of(name) for kind in (PretrainConfig, FinetuneConfig, PredictConfig)
         for name in kind.model_fields}
OWN_FLAGS = {"--config", "--format", "--help", "--image", "--labels", "--unlabelled", "--json",
             "--level", "--levels", "--output", "--name", "--license", "--author"}


def blocks(language: str) -> Iterator[Any]:
    for page in PAGES:
        pattern = rf"^```{language}\n(.*?)^```"
        found = re.findall(pattern, page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        for number, text in enumerate(found):
            yield pytest.param(text, id=f"{page.name}-{number}")


@pytest.fixture
def small_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images A and B and their labels, and trainings of one step."""
    rng = np.random.default_rng(0)
    for name in ("A", "B"):
        image = rng.integers(0, 255, (160, 160), np.uint8)
        labels = rng.integers(1, 3, (160, 160), np.uint8)
        list(api.convert(image, tmp_path / f"{name}.ome.zarr", levels=(1, 4), chunk=64))
        list(api.convert(labels, tmp_path / f"{name}_labels.ome.zarr", levels=(1,), chunk=64,
                         as_labels=True))
    small = {"levels": [1, 4], "crop_size": 32, "preset": "tiny", "num_layers": 1, "dim": 64,
             "heads": 2, "steps": 1, "batch_size": 1}
    for verb in ("pretrain", "finetune"):
        whole = getattr(api, verb)
        monkeypatch.setattr(muvit, verb, lambda c, whole=whole: whole({**c, **small}),
                            raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("text", list(blocks("python")))
def test_python_blocks_run(text: str, small_world: Path) -> None:
    exec(compile(text, "block", "exec"), {})


def shell_lines() -> Iterator[Any]:
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            match = re.match(r"\s*(napari-muvit|python -m napari_muvit\.train) (\S+)(.*)", line)
            if match:
                yield pytest.param(match[1], match[2], match[3], id=f"{page.name}: {line.strip()}")


@pytest.mark.parametrize(("door", "command", "rest"), list(shell_lines()))
def test_shell_lines_name_commands_and_flags_that_exist(
    door: str, command: str, rest: str
) -> None:
    known = COMMANDS if door == "napari-muvit" else {"pretrain", "finetune", "resume"}
    assert command in known or command == "COMMAND"
    assert set(re.findall(r"--[a-z][a-z-]*", rest)) <= FLAGS | OWN_FLAGS
