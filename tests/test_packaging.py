"""Wheel and sdist: built without a network, they hold what a user needs and nothing more."""

from __future__ import annotations

import configparser
import email
import email.message
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import napari_muvit

ROOT = Path(__file__).resolve().parents[1]
NAME = f"napari_muvit-{napari_muvit.__version__}"
BINDINGS = {"pyqt5", "pyqt6", "pyside2", "pyside6"}
USED_BY_MAKE = ("pyproject.toml", "constraints.txt", "constraints-lowest.txt", "README.md",
                "scripts/system_packages.sh")


def build(target: str, source: Path, output: Path) -> Path:
    """A wheel or sdist of `source`, by the build backend itself, without isolation."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(output)]
    ran = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    (made,) = output.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files in a folder, as pip would lay them out."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def metadata(installed: Path) -> email.message.Message:
    text = (installed / f"{NAME}.dist-info" / "METADATA").read_text(encoding="utf-8")
    return email.message_from_string(text)


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def run_installed(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with the unpacked wheel before everything else, away from the working copy."""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=installed, env=environment, capture_output=True,
        text=True, check=False,
    )


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    assert wheel.name == f"{NAME}-py3-none-any.whl"
    source = ROOT / "src"
    expected = {
        path.relative_to(source).as_posix() for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    found = {name for name in names_in(wheel) if not name.startswith(f"{NAME}.dist-info/")}
    assert found == expected
    assert {"napari_muvit/napari.yaml", "napari_muvit/py.typed"} <= found
    assert f"{NAME}.dist-info/licenses/LICENSE" in names_in(wheel)


def test_the_sdist_makes_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    again = build("wheel", tmp_path / NAME, tmp_path / "dist")
    assert names_in(again) == names_in(wheel)


def test_the_sdist_holds_what_make_and_the_docs_name(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.removeprefix(f"{NAME}/") for name in archive.getnames()}
    recipes = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").glob("*.yaml")}
    assert recipes
    assert recipes | set(USED_BY_MAKE) <= names
    assert {"CITATION.cff", "tests/conftest.py", "docs/conf.py", "napari.yaml"} <= names
    assert not [name for name in names if ".ome.zarr" in name or name.endswith(".safetensors")]


def test_metadata_says_what_the_napari_hub_reads(metadata: email.message.Message) -> None:
    assert metadata["Name"] == "napari-muvit"
    assert metadata["Version"] == napari_muvit.__version__
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata["Requires-Python"] == "<3.14,>=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata["Summary"]
    assert metadata.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")
    classifiers = metadata.get_all("Classifier", [])
    assert "Framework :: napari" in classifiers
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)} <= set(
        classifiers)
    assert "https://arxiv.org/abs/2602.24222" in " ".join(metadata.get_all("Project-URL", []))


def test_neither_napari_nor_a_qt_binding_is_forced_on_anyone(
    metadata: email.message.Message,
) -> None:
    needed = metadata.get_all("Requires-Dist", [])
    always = {re.split(r"[<>=!\[; ]", line)[0].lower() for line in needed if "extra ==" not in line}
    assert {"torch", "zarr", "qtpy"} <= always
    assert not always & (BINDINGS | {"napari", "torchvision", "muvit", "bioimageio-spec"})
    extras = set(metadata.get_all("Provides-Extra", []))
    assert {"gui", "cluster", "remote", "tensorboard", "test", "docs", "bench"} <= extras
    assert any(re.match(r"napari\[pyqt6\].*extra == 'gui'", line) for line in needed)


def test_entry_points_lead_somewhere(installed: Path) -> None:
    parser = configparser.ConfigParser(delimiters=("=",))
    parser.read(installed / f"{NAME}.dist-info" / "entry_points.txt", encoding="utf-8")
    command = parser["console_scripts"]["napari-muvit"]
    assert callable(EntryPoint("napari-muvit", command, "console_scripts").load())
    package, _, manifest = parser["napari.manifest"]["napari-muvit"].partition(":")
    assert (installed / package / manifest).is_file()


def test_the_shipped_manifest_names_what_exists(installed: Path) -> None:
    text = (installed / "napari_muvit" / "napari.yaml").read_text(encoding="utf-8")
    assert text == (ROOT / "src" / "napari_muvit" / "napari.yaml").read_text(encoding="utf-8")
    manifest = yaml.safe_load(text)
    assert manifest["name"] == "napari-muvit"
    targets = [c["python_name"] for c in manifest["contributions"]["commands"]]
    assert targets
    for target in targets:
        module, _, _ = target.partition(":")
        path = installed / Path(*module.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), target


def test_the_installed_command_answers(installed: Path) -> None:
    where = run_installed(installed, "-c", "import napari_muvit; print(napari_muvit.__file__)")
    assert Path(where.stdout.strip()).is_relative_to(installed)
    ran = run_installed(installed, "-m", "napari_muvit", "demo", "--help")
    assert ran.returncode == 0, ran.stderr
    assert "--image SOURCE" in ran.stdout
    version = run_installed(installed, "-m", "napari_muvit", "--version")
    assert version.stdout.strip() == napari_muvit.__version__


def test_every_public_name_of_the_installed_package_resolves(installed: Path) -> None:
    program = "import napari_muvit as m; [getattr(m, n) for n in m.__all__]; print(m.__file__)"
    ran = run_installed(installed, "-W", "error::DeprecationWarning:napari_muvit", "-c", program)
    assert ran.returncode == 0, ran.stderr
    assert Path(ran.stdout.strip()).is_relative_to(installed)


def pins(name: str) -> dict[str, str]:
    """Versions by normalised name in a constraints file."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {re.sub(r"[._]", "-", package.lower()): version for package, version in pairs}


def requirements(*extras: str) -> Iterator[tuple[str, Requirement]]:
    """What the project and some of its extras need, with normalised names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    offered = project["optional-dependencies"]
    for line in [*project["dependencies"], *(line for extra in extras for line in offered[extra])]:
        requirement = Requirement(line)
        yield re.sub(r"[._]", "-", requirement.name.lower()), requirement


def test_the_lowest_versions_that_are_tested_are_those_that_are_allowed() -> None:
    pinned = pins("constraints-lowest.txt")
    for name, requirement in requirements("gui", "cluster", "remote", "tensorboard", "test"):
        (lowest,) = (s.version for s in requirement.specifier if s.operator == ">=")
        assert f"{pinned[name]}.".startswith(f"{lowest}."), requirement


def test_every_pin_of_the_environment_satisfies_the_project() -> None:
    pinned = pins("constraints.txt")
    extras = ("gui", "cluster", "remote", "tensorboard", "test", "screen", "lint", "docs", "parity")
    for name, requirement in requirements(*extras):
        assert requirement.specifier.contains(pinned[name]), requirement


in_a_clone = pytest.mark.skipif(
    not (ROOT / ".github").is_dir(), reason="workflows are in a clone, not in the sdist")


def commands_of_workflows() -> Iterator[tuple[str, str]]:
    """Every shell line of a GitHub workflow, with the workflow's name."""
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
        for step in (step for job in jobs.values() for step in job["steps"]):
            for line in step.get("run", "").splitlines():
                yield path.stem, line


@in_a_clone
def test_workflows_run_what_is_there() -> None:
    found = set(commands_of_workflows())
    assert {"docs", "release", "test", "weekly"} <= {name for name, _ in found}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for _, line in found:
        assert set(re.findall(r"\bmake ([a-z-]+)", line)) <= targets, line
        assert all((ROOT / name).is_file() for name in re.findall(r"\bscripts/\S+", line)), line
        for extras in re.findall(r"\.\[(.+?)\]", line):
            assert set(extras.split(",")) <= set(project["optional-dependencies"]), line


@in_a_clone
def test_the_matrix_is_three_systems_by_three_pythons() -> None:
    text = (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    matrix = yaml.safe_load(text)["jobs"]["test"]["strategy"]["matrix"]
    assert len(matrix["os"]) == 3
    offered = {f"Programming Language :: Python :: {version}" for version in matrix["python"]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert offered == {c for c in project["classifiers"] if re.search(r":: 3\.\d+$", c)}
    assert "unverified" in text
