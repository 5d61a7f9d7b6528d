"""The tutorials name what is there: buttons and fields, pages, pictures that the script makes."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from napari_muvit.config import FinetuneConfig, PredictConfig, PretrainConfig

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
MAKER = DOCS / "make_screenshots.py"
NAPARI_MENUS = {"File", "Open Sample", "Plugins", "MuViT"}
NOT_NAMES = {"you", "napari-muvit", "not judged"}
"""What the tutorials stress without its being written on a widget."""


def shown_words() -> set[str]:
    """Every text that a widget, the form of an option or the manifest can show."""
    words = {field.title for kind in (PretrainConfig, FinetuneConfig, PredictConfig)
             for field in kind.model_fields.values()}
    for path in (ROOT / "src" / "napari_muvit" / "plugin").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        words |= {node.value for node in ast.walk(tree)
                  if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    manifest = yaml.safe_load((ROOT / "src" / "napari_muvit" / "napari.yaml").read_text("utf-8"))
    offered = manifest["contributions"]
    words |= {entry["display_name"] for entry in (*offered["widgets"], *offered["sample_data"])}
    return words | NAPARI_MENUS


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_what_a_tutorial_says_to_press_is_there(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\*\*.*?\*\*", "", text)
    named = {part for name in re.findall(r"\*([^*\n]+)\*", text) for part in name.split(" > ")}
    assert not named - shown_words() - NOT_NAMES


def pictures_in(page: Path) -> set[Path]:
    found = re.findall(r"(?:\]\(|\{image\} )([^)\s]+\.png)", page.read_text("utf-8"))
    return {(page.parent / name).resolve() for name in found if "://" not in name}


def test_every_picture_is_shown_and_there() -> None:
    pages = [ROOT / "README.md", *DOCS.rglob("*.md")]
    shown = set().union(*map(pictures_in, pages))
    made = {path.resolve() for path in (DOCS / "images").glob("*.png")}
    assert {path for path in shown if path.parent.name == "images"} == made
    script = MAKER.read_text(encoding="utf-8")
    for path in made:
        assert path.stem.removesuffix("_dark").removesuffix("_light") in script


@pytest.mark.slow
@pytest.mark.gui
def test_the_tutorials_can_be_walked(tmp_path: Path) -> None:
    """All steps by real clicks, with trainings of a few steps; asks for a display of 1280 x 800."""
    ran = subprocess.run([sys.executable, str(MAKER), str(tmp_path), "--steps", "6"],
                         capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    made = {path.name for path in tmp_path.glob("*.png")}
    assert made == {path.name for path in (DOCS / "images").glob("*.png")}
