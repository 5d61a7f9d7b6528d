"""Choices come back; a broken memory is an empty one."""

from __future__ import annotations

from pathlib import Path

import pytest

from napari_muvit.plugin import remembered


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(remembered, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def test_choices_come_back_for_their_image() -> None:
    assert remembered.recall("a.tif", "model") is None
    remembered.remember("a.tif", model="run-1", levels=[1, 8])
    remembered.remember("b.tif", model="run-2")
    remembered.remember("a.tif", model="run-3")
    assert remembered.recall("a.tif", "model") == "run-3"
    assert remembered.recall("a.tif", "levels") == [1, 8]
    assert remembered.recall("b.tif", "model") == "run-2"


def test_any_image_stands_in() -> None:
    remembered.remember(None, runs="somewhere")
    assert remembered.recall("new.tif", "runs") == "somewhere"


def test_only_so_many_images_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "MOST_IMAGES", 3)
    for number in range(5):
        remembered.remember(f"{number}.tif", model="run")
    assert remembered.recall("0.tif", "model") is None
    assert remembered.recall("4.tif", "model") == "run"


def test_damaged_memory_is_empty(folder: Path) -> None:
    remembered.remember("a.tif", model="run")
    (folder / remembered.FILE).write_text("{half")
    assert remembered.recall("a.tif", "model") is None


def test_full_disk_is_no_failure(folder: Path) -> None:
    folder.write_text("a file in the way")
    remembered.remember("a.tif", model="run")
    assert remembered.recall("a.tif", "model") is None
