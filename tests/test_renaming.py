"""Files that somebody reads while they are replaced, as on Windows."""

from __future__ import annotations

import os

import pytest

from napari_muvit import renaming
from napari_muvit.models.model_files import filled_folder, replace_file
from napari_muvit.renaming import PAUSES, rename_over
from napari_muvit.training.files import write_whole


@pytest.fixture
def refuse(monkeypatch):
    """Let renaming be refused so many times; the pauses that were made."""
    rename, pauses = os.replace, []

    def start(times):
        left = [times]

        def replace(source, target):
            left[0] -= 1
            if left[0] >= 0:
                raise PermissionError(13, "Access is denied", str(target))
            rename(source, target)

        monkeypatch.setattr(os, "replace", replace)
        return pauses

    monkeypatch.setattr(renaming.time, "sleep", pauses.append)
    return start


def fill(folder):
    with filled_folder(folder) as made:
        (made / "file").write_bytes(b"new")


@pytest.mark.parametrize("write", [
    lambda path: replace_file(path, lambda beside: beside.write_bytes(b"new")),
    lambda path: write_whole(path, b"new"), lambda path: fill(path.parent),
])
def test_what_is_being_read_is_replaced_a_little_later(tmp_path, refuse, write):
    path = tmp_path / "folder" / "file"
    path.parent.mkdir()
    path.write_bytes(b"old")
    pauses = refuse(2)
    write(path)
    assert path.read_bytes() == b"new"
    assert pauses == list(PAUSES[:2])
    assert list(path.parent.iterdir()) == [path]


def test_what_stays_refused_is_an_error_after_a_second(tmp_path, refuse):
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "old").write_bytes(b"old")
    pauses = refuse(100)
    with pytest.raises(PermissionError):
        rename_over(tmp_path / "new", tmp_path / "old")
    assert 0.5 < sum(pauses) < 2
    assert (tmp_path / "old").read_bytes() == b"old"
