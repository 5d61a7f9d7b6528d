"""Every block of the README and the docs runs: Python, YAML, and the lines of a shell.

A command that needs a cluster, other data or an hour is read and not run: its flags and files
must be there.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from skimage.io import imsave

import napari_muvit as muvit
from napari_muvit import api, train
from napari_muvit.__main__ import COMMANDS, dispatch
from napari_muvit.config import FinetuneConfig, PredictConfig, PretrainConfig
from napari_muvit.doors.options import flag_of

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FLAGS = {flag_of(name) for kind in (PretrainConfig, FinetuneConfig, PredictConfig)
         for name in kind.model_fields}
OWN_FLAGS = {"--config", "--format", "--help", "--image", "--labels", "--unlabelled", "--json",
             "--level", "--levels", "--output", "--name", "--license", "--author"}
NOT_CODE = {"text", "{toctree}", "{image}", "{eval-rst}"}
TRAIN = ["python", "-m", "napari_muvit.train"]
SMALL: dict[str, Any] = {
    "levels": [1, 4], "crop_size": 32, "preset": "tiny", "num_layers": 1, "dim": 64, "heads": 2,
    "steps": 1, "batch_size": 1,
}
SMALL_FLAGS = [
    "--levels", "1", "4", "--crop-size", "32", "--preset", "tiny", "--num-layers", "1", "--dim",
    "64", "--heads", "2", "--steps", "1", "--batch-size", "1", "--tissue", "none", "--kernels",
    "torch", "--device", "cpu", "--threads", "1",
]
ONLY_READ = (
    "demo",  # tests/test_main_job.py runs it
    "--cluster",  # tests/inference/test_cluster.py
    "configs/", "rings512",  # need the data of a recipe
)
"""Parts of words of commands that are not run here."""


def fences(page: Path) -> Iterator[tuple[str, str]]:
    """Language and text of every fenced block."""
    pattern = r"^```(\S*)[^\n]*\n(.*?)^```$"
    yield from re.findall(pattern, page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def blocks(language: str) -> list[Any]:
    return [pytest.param(text, id=f"{page.name}-{number}") for page in PAGES
            for number, (kind, text) in enumerate(fences(page)) if kind == language]


def make_world(folder: Path) -> None:
    """Images A and B, their labels, and all other files that the pages name."""
    rng = np.random.default_rng(0)
    table = api.ClassTable((api.LabelClass(1, "one", "#cc3333"),
                            api.LabelClass(2, "two", "#3333cc")), unlabelled=0)
    for name in ("A", "B"):
        image = rng.integers(0, 255, (160, 160), np.uint8)
        labels = rng.integers(1, 3, (160, 160), np.uint8)
        list(api.convert(image, folder / f"{name}.ome.zarr", levels=(1, 4), chunk=64))
        list(api.convert(labels, folder / f"{name}_labels.ome.zarr", levels=(1,), chunk=64,
                         as_labels=True, classes=table))
    for name, copy in (("A", "IMAGE"), ("A_labels", "LABELS"), ("A_labels", "TRUTH.ome.zarr")):
        shutil.copytree(folder / f"{name}.ome.zarr", folder / copy)
    imsave(folder / "slide.tif", rng.integers(0, 255, (160, 160, 3), np.uint8))
    (folder / "slide.tif").rename(folder / "slide.svs")
    write_outlines(folder / "OUTLINES.geojson")


def write_outlines(path: Path) -> None:
    """Two classes as QuPath exports them."""
    squares = [{"type": "Feature", "properties": {"classification": {"name": name}},
                "geometry": {"type": "Polygon", "coordinates": [
                    [[x, 20], [x + 60, 20], [x + 60, 90], [x, 90], [x, 20]]]}}
               for name, x in (("one", 10), ("two", 90))]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": squares}), "utf-8")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    options = {**SMALL, "images": [str(folder / "A.ome.zarr")], "tissue": "none",
               "labels": [str(folder / "A_labels.ome.zarr")], "output": str(folder / "RUN"),
               "token_coordinates": "span", "attention_mode": "all"}
    muvit.finetune(options).wait()
    return folder


@pytest.fixture
def small_world(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the world to work in, where trainings take one step."""
    here = tmp_path / "here"
    shutil.copytree(world, here)
    for verb in ("pretrain", "finetune"):
        whole = getattr(api, verb)
        monkeypatch.setattr(muvit, verb, lambda c, whole=whole: whole({**c, **SMALL}),
                            raising=False)
    monkeypatch.chdir(here)
    return here


def make_room(output: str) -> None:
    """Take away what the world holds where a block is about to write."""
    shutil.rmtree(output, ignore_errors=True)


def test_every_block_says_what_it_is() -> None:
    kinds = {kind for page in PAGES for kind, _ in fences(page)}
    assert kinds <= {"python", "sh", "yaml"} | NOT_CODE


@pytest.mark.parametrize("text", blocks("python"))
def test_python_blocks_run(text: str, small_world: Path) -> None:
    for output in re.findall(r'"output": "(\w+)"', text):
        make_room(output)
    exec(compile(text, "block", "exec"), {})


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_blocks_are_yaml(text: str) -> None:
    assert yaml.safe_load(text)


def lines_of(block: str) -> Iterator[list[str]]:
    """The words of every command of a shell block, without comments."""
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line.replace("\\Scripts\\", "/Scripts/"), comments=True)
        if words:
            yield [words[0].removeprefix(".venv/bin/"), *words[1:]]


@pytest.mark.parametrize("text", blocks("sh"))
def test_shell_blocks_run(text: str, small_world: Path) -> None:
    for words in lines_of(text):
        if words[0] != "napari-muvit" and words[:3] != TRAIN:
            check_other(words)
        elif any(part in word for part in ONLY_READ for word in words):
            check_ours(words)
        elif words[:3] == TRAIN:
            run_ours(train.train, words[3:])
        else:
            run_ours(dispatch, words[1:])


def run_ours(door: Any, args: list[str]) -> None:
    """One command of ours, made small, in this process."""
    if args[0] in {"pretrain", "finetune"}:
        if "--output" in args:
            make_room(args[args.index("--output") + 1])
        args = [*args, *SMALL_FLAGS]
    elif args[0] == "predict":
        args = [*args, "--device", "cpu", "--threads", "1", "--tissue", "none"]
    assert door(args) == 0, args


def check_ours(words: list[str]) -> None:
    """Command and flags exist."""
    names = COMMANDS if words[0] == "napari-muvit" else {"pretrain", "finetune", "resume"}
    command = words[1] if words[0] == "napari-muvit" else words[words.index("-m") + 2]
    assert command in names
    own = {flag for flag in words[words.index(command):] if flag.startswith("--")}
    assert own <= FLAGS | OWN_FLAGS
    for word in words:
        assert not word.startswith("configs/") or (ROOT / word).is_file()


def check_other(words: list[str]) -> None:
    """What is not ours is known, and names what is there."""
    if words[0] in {"torchrun", "accelerate"}:
        check_ours(["python", *words[words.index("-m"):]])
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    elif words[0] == "pip" or words[1:3] == ["-m", "pip"]:
        check_install(words)
    elif words[:2] == ["python", "-c"]:
        compile(words[2], "line", "exec")
    elif words[0] in {"python", "sbatch"}:
        assert words[1] == "-m" or (ROOT / words[1]).is_file()
    else:
        assert words[0] == "export"


def check_install(words: list[str]) -> None:
    """Extras and files of a pip line are there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for extra in re.findall(r"(?:napari-muvit|\.)\[(.+?)\]", " ".join(words)):
        assert set(extra.split(",")) <= set(project["optional-dependencies"])
    for word in words:
        assert not word.endswith(".txt") or (ROOT / word).is_file()


def commands_in_text() -> Iterator[Any]:
    for page in PAGES:
        for code in re.findall(r"`((?:napari-muvit|python -m napari_muvit\.train) [^`\n]+)`",
                               page.read_text(encoding="utf-8")):
            yield pytest.param(code.split(), id=f"{page.name}: {code}")


@pytest.mark.parametrize("words", list(commands_in_text()))
def test_commands_within_sentences_exist(words: list[str]) -> None:
    if words[1] != "COMMAND":
        check_ours(words)


def test_the_table_of_levels_is_what_init_proposes() -> None:
    text = (ROOT / "docs" / "levels.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\d ]+)(?: to ([\d ]+))? px.*?\| (\d+) \| ([\d, ]+) \|$", text,
                      re.MULTILINE)
    assert len(rows) >= 5
    for first, last, crop_size, levels in rows:
        expected = int(crop_size), tuple(int(level) for level in levels.split(","))
        for side in (first, last or first):
            number = int(side.replace(" ", ""))
            sizes = [(number // k, number // k // 2) for k in (1, 2) if number > k]
            image = api.pyramid_from_arrays(
                [np.broadcast_to(np.uint8(0), size) for size in sizes or [(1, 1)]], axes="yx")
            assert api.suggest_crops(image) == expected, side
