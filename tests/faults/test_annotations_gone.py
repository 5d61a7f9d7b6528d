"""An annotation store, or the disk that it lies on, goes away while it is open."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from napari_muvit import api
from napari_muvit.data.stroke_writer import WriteError
from napari_muvit.errors import SourceNotFoundError

pytestmark = pytest.mark.faults
STROKE = np.ones((2, 2), bool)


def open_store(folder: Path) -> api.AnnotationStore:
    image = api.pyramid_from_arrays([np.zeros((64, 64), np.uint8)], axes="yx", name="slide")
    store: api.AnnotationStore = api.open_annotations(
        image, path=folder / "slide_annotations.ome.zarr")
    return store


@pytest.mark.parametrize("what", ["store", "disk"])
def test_strokes_wait_for_a_store_that_comes_back(what: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    store = open_store(disk)
    store.write(1, (0, 0), STROKE, 1)
    store.flush()
    place = store.path if what == "store" else disk
    elsewhere = place.rename(place.with_name("elsewhere"))
    store.write(1, (8, 8), STROKE, 2)
    with pytest.raises(WriteError, match="kept in memory"):
        store.flush()
    assert not store.path.exists()
    assert not store.is_saved
    elsewhere.rename(place)
    deadline = time.monotonic() + 20
    while not store.is_saved and time.monotonic() < deadline:
        time.sleep(0.05)
    assert store.class_counts() == {1: 4, 2: 4}
    store.close()


def test_what_is_gone_is_not_read_as_unlabelled(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.write(1, (0, 0), STROKE, 1)
    store.flush()
    with api.AnnotationStore(store.path, writable=False) as reader:
        elsewhere = store.path.rename(tmp_path / "elsewhere")
        for opened in (store, reader):
            with pytest.raises(SourceNotFoundError, match="is gone"):
                opened.read(1, (0, 0), (4, 4))
            with pytest.raises(SourceNotFoundError, match="is gone"):
                opened.labelled_boxes()
            with pytest.raises(SourceNotFoundError, match="is gone"):
                api.export_geojson(opened, tmp_path / "outlines.geojson")
        with pytest.raises(SourceNotFoundError, match="is gone"):
            store.set_classes(store.classes)
        elsewhere.rename(store.path)
    assert store.read(1, (0, 0), (4, 4)).sum() == 4
    store.close()
