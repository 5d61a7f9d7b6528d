"""The short-lived files of a training process."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from napari_muvit.config import PretrainConfig
from napari_muvit.errors import RunError
from napari_muvit.plugin import run_control, run_files


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def instead(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The process that is started in the place of a training: Python with this code."""
    code = ["pass"]
    real = subprocess.Popen

    def popen(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        return real([sys.executable, "-c", code[0], *command[3:]], **options)

    monkeypatch.setattr(run_control.subprocess, "Popen", popen)
    return code


def start(tmp_path: Path) -> run_control.ProcessRun:
    config = PretrainConfig(images=("a.zarr",), output=str(tmp_path / "run"))
    return run_control.start_process("pretrain", config)


def test_one_folder_that_lives_as_long_as_the_process(
    own_temporary_folder: Path, instead: list[str], tmp_path: Path
) -> None:
    instead[0] = "import time; time.sleep(60)"
    control = start(tmp_path)
    try:
        (folder,) = own_temporary_folder.iterdir()
        assert {path.name for path in folder.iterdir()} == {
            "config.yaml", "messages.txt", run_files.OWNER}
        assert "a.zarr" in (folder / "config.yaml").read_text()
        assert control.error() is None
        run_files.remove_left_files()
        assert folder.is_dir()
    finally:
        control._process.kill()
        control.wait(20)
    for _ in range(2):
        assert "was killed" in str(control.error())
    assert not list(own_temporary_folder.iterdir())


def test_what_the_process_said_is_told_before_it_goes(
    own_temporary_folder: Path, instead: list[str], tmp_path: Path
) -> None:
    instead[0] = "import sys; sys.exit(print('error: the image is gone.', file=sys.stderr) or 2)"
    control = start(tmp_path)
    control.wait(20)
    assert str(control.error()) == "the image is gone."
    assert not list(own_temporary_folder.iterdir())


def test_messages_that_the_user_is_sent_to_are_kept(
    own_temporary_folder: Path, instead: list[str], tmp_path: Path
) -> None:
    instead[0] = "import sys; sys.exit(print('Segmentation fault') or 5)"
    control = start(tmp_path)
    control.wait(20)
    said = str(control.error())
    run_files.remove_left_files()
    (folder,) = own_temporary_folder.iterdir()
    assert str(folder / "messages.txt") in said
    assert (folder / "messages.txt").read_text() == "Segmentation fault\n"


def test_files_of_a_process_that_outlived_napari_go_when_it_has_ended(
    own_temporary_folder: Path, instead: list[str], tmp_path: Path
) -> None:
    control = start(tmp_path)
    control.wait(20)
    del control  # nobody asked what it ended with
    assert len(list(own_temporary_folder.iterdir())) == 1
    other = start(tmp_path)
    other.wait(20)
    assert other.error() is None
    assert not list(own_temporary_folder.iterdir())


def test_a_process_that_cannot_be_started_leaves_nothing(
    own_temporary_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_control.subprocess, "Popen", full)
    with pytest.raises(RunError, match="cannot be started"):
        start(tmp_path)
    assert not list(own_temporary_folder.iterdir())
