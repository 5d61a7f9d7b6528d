"""What waits to be written holds up only who asks for it, and large fills are cheap."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from napari_muvit.data import chunk_files
from napari_muvit.data.annotations import AnnotationStore, open_annotations
from napari_muvit.data.pyramid import open_pyramid
from napari_muvit.data.stroke_log import Change
from napari_muvit.data.stroke_writer import WriteError

SHAPE = (1100, 1300)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AnnotationStore]:
    image = open_pyramid(np.zeros(SHAPE, np.uint8))
    with open_annotations(image, path=tmp_path / "a_annotations.ome.zarr") as opened:
        yield opened


def test_only_reading_what_is_not_yet_written_waits(
    store: AnnotationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, found = threading.Event(), []
    writer = store._writer
    assert writer is not None
    monkeypatch.setattr(writer, "_check", lambda: go_on.wait(60))
    store.write(4, (0, 0), np.ones((100, 100), bool), 2)
    # Beside the change at several levels, and a window that is opened there.
    assert not store.read(1, (400, 0), (700, 400)).any()
    assert not store.read(4, (0, 100), (100, 50)).any()
    assert not store.read(8, (50, 0), (20, 20)).any()
    assert not store.window(corner=(700, 700), level=2, size=64).labels.any()
    assert not store.is_saved
    reader = threading.Thread(target=lambda: found.append(store.read(8, (49, 49), (2, 2))))
    reader.start()
    reader.join(0.1)
    assert found == []
    go_on.set()
    reader.join(20)
    np.testing.assert_array_equal(found, [[[2, 0], [0, 0]]])


def test_a_stroke_that_cannot_be_written_holds_up_its_own_place_alone(
    store: AnnotationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "used by another process")

    with monkeypatch.context() as patch:
        patch.setattr(store.arrays, "_store_block", refuse)
        store.write(1, (0, 0), np.ones((2, 2), bool), 2)
        with pytest.raises(WriteError, match="used by another process"):
            store.read(1, (1, 1), (9, 9))
        assert not store.read(1, (2, 0), (9, 9)).any()
    assert store.read(1, (1, 1), (9, 9)).any()


def test_a_fill_of_what_is_empty_reads_nothing(
    store: AnnotationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    get = zarr.Array.__getitem__

    def note(array: zarr.Array, key: Any) -> Any:
        read.append(array.path)
        return get(array, key)

    monkeypatch.setattr(zarr.Array, "__getitem__", note)
    change = Change(32, (0, 0), np.ones((35, 41), bool), 2)
    pairs = [pair for found in store.arrays.apply([change]) for pair in found]
    # Four chunks of level 2 and one of level 4 are made from the level before.
    assert read == ["0", "0", "0", "0", "1"]
    assert sum(np.count_nonzero(before.mask) for before, _ in pairs) == SHAPE[0] * SHAPE[1]
    assert all(before.labels == 0 and after.labels == 2 for before, after in pairs)
    for array in store.arrays.arrays:
        assert (np.asarray(array[...]) == 2).all()


@pytest.mark.skipif(sys.platform != "linux", reason="os.sync waits only there")
def test_many_files_are_synced_in_one_call(
    store: AnnotationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    monkeypatch.setattr(chunk_files, "MANY_FILES", 3)
    monkeypatch.setattr(chunk_files, "_sync_file", lambda file: called.append(file.name))
    monkeypatch.setattr(os, "sync", lambda: called.append("all"))
    store.write(32, (0, 0), np.ones((35, 41), bool), 2)
    store.close()
    # nine chunks of level 1, four of level 2, one of level 4
    assert sorted(called) == ["0", "all", "all"]
