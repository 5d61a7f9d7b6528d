"""The annotation store: sparse, standard, locked, and nothing painted is ever lost."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from napari_muvit.data.annotations import AnnotationStore, open_annotations
from napari_muvit.data.labels import ClassTable, LabelClass, read_class_table
from napari_muvit.data.pyramid import open_pyramid
from napari_muvit.data.stroke_writer import WriteError
from napari_muvit.errors import (
    InputError,
    LockedError,
    MuvitError,
    SourceError,
    SourceNotFoundError,
)

SHAPE = (700, 1300)
TABLE = ClassTable(
    (LabelClass(1, "background", "#808080"), LabelClass(2, "gland", "#ff0000"),
     LabelClass(3, "stroma", "#00ff00")), unlabelled=0, background=1,
)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "slide.ome.tif"
    tifffile.imwrite(path, np.zeros(SHAPE, np.uint8))
    return path


@pytest.fixture
def store(image: Path) -> Iterator[AnnotationStore]:
    with open_annotations(image, classes=TABLE) as opened:
        yield opened


def chunk_files(store: AnnotationStore) -> list[str]:
    folder = store.path / "0" / "c"
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


def test_store_lies_beside_the_image_and_is_empty(store: AnnotationStore, image: Path) -> None:
    assert store.path == image.with_name("slide_annotations.ome.zarr")
    assert store.shape == SHAPE
    assert store.levels == (1, 2, 4)
    assert chunk_files(store) == []
    assert store.class_counts() == {}
    assert store.labelled_boxes().shape == (0, 2, 2)


def test_only_touched_chunks_exist_and_erased_ones_go(store: AnnotationStore) -> None:
    edit = store.write(1, (600, 1100), np.ones((4, 4), bool), 2)
    store.flush()
    assert chunk_files(store) == [str(Path("1") / "2")]
    np.testing.assert_array_equal(store.labelled_boxes(), [[[511.5, 1023.5], [699.5, 1299.5]]])
    store.undo(edit)
    assert chunk_files(store) == []


def test_labels_and_classes_come_back_when_opened_again(image: Path) -> None:
    with open_annotations(image, classes=TABLE) as store:
        store.write(1, (10, 20), np.ones((3, 4), bool), 2)
    with open_annotations(image) as store:
        assert store.classes == TABLE
        assert (store.read(1, (10, 20), (3, 4)) == 2).all()
        assert store.class_counts() == {2: 12}
    leftovers = {f.name for f in image.parent.iterdir()}
    assert leftovers == {image.name, store.path.name}


def test_store_is_a_standard_label_image_for_others(store: AnnotationStore) -> None:
    from ome_zarr_models import open_ome_zarr

    store.write(4, (0, 0), np.ones((2, 2), bool), 3)
    store.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = open_ome_zarr(zarr.open_group(str(store.path), mode="r"))
    assert model.ome_zarr_version == "0.5"
    ome = dict(zarr.open_group(str(store.path), mode="r").attrs["ome"])
    colors = {row["label-value"]: row["rgba"] for row in ome["image-label"]["colors"]}
    assert colors[2] == [255, 0, 0, 255]
    pyramid = open_pyramid(str(store.path))
    assert pyramid.is_labels
    assert read_class_table(pyramid) == TABLE
    assert pyramid.read(0, (0, 0), (8, 8)).min() == 3


def test_physical_place_of_the_image_is_kept(tmp_path: Path) -> None:
    pyramid = open_pyramid(_calibrated_tiff(tmp_path))
    with open_annotations(pyramid) as store:
        found = open_pyramid(str(store.path))
    np.testing.assert_allclose(found.pixel_size[0], pyramid.pixel_size[0])


def _calibrated_tiff(folder: Path) -> Path:
    path = folder / "calibrated.ome.tif"
    metadata = {"axes": "YX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5}
    tifffile.imwrite(path, np.zeros((64, 80), np.uint8), metadata=metadata, ome=True)
    return path


def test_class_table_can_be_replaced_while_pixels_stay(store: AnnotationStore) -> None:
    store.write(1, (0, 0), np.ones((2, 2), bool), 2)
    renamed = ClassTable((LabelClass(2, "tumour", "#0000ff"),), unlabelled=0)
    store.set_classes(renamed)
    assert store.classes == renamed
    store.close()
    with AnnotationStore(store.path, writable=False) as again:
        assert again.classes == renamed
        assert again.class_counts() == {2: 4}


@pytest.mark.parametrize("table", [
    ClassTable((LabelClass(0, "background", "#808080"),), background=0),
    ClassTable((LabelClass(1, "a", "#808080"),), unlabelled=9),
    ClassTable((LabelClass(300, "a", "#808080"),)),
])
def test_tables_in_which_0_is_not_unlabelled_are_refused(
    store: AnnotationStore, table: ClassTable
) -> None:
    with pytest.raises(InputError, match="0 is unlabelled"):
        store.set_classes(table)


def test_second_writer_is_refused_and_readers_are_not(store: AnnotationStore, image: Path) -> None:
    store.write(1, (0, 0), np.ones((2, 2), bool), 2)
    store.flush()
    with pytest.raises(LockedError) as caught:
        open_annotations(image)
    assert str(os.getpid()) in str(caught.value)
    with open_annotations(image, writable=False) as reader:
        assert reader.read(1, (0, 0), (2, 2)).min() == 2
        with pytest.raises(MuvitError, match="reading only"):
            reader.write(1, (0, 0), np.ones((1, 1), bool), 1)


def test_reading_what_does_not_exist_tells_so(image: Path) -> None:
    with pytest.raises(SourceNotFoundError, match="no annotations"):
        open_annotations(image, writable=False)


def test_folders_that_are_no_annotation_store_are_refused(image: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "other.ome.zarr"
    zarr.create_group(str(foreign))
    with pytest.raises(SourceError, match="no annotation store"):
        open_annotations(image, path=foreign)
    assert not list(tmp_path.glob(".other*"))


def test_annotations_of_another_image_are_refused(image: Path, tmp_path: Path) -> None:
    with open_annotations(image) as store:
        path = store.path
    smaller = tmp_path / "smaller.tif"
    tifffile.imwrite(smaller, np.zeros((90, 80), np.uint8))
    with pytest.raises(SourceError, match="another annotation store"):
        open_annotations(smaller, path=path)
    twin = tmp_path / "twin.tif"
    tifffile.imwrite(twin, np.zeros(SHAPE, np.uint8))
    with pytest.raises(SourceError, match="another folder or path"):
        open_annotations(twin, path=path)
    image.rename(tmp_path / "moved.ome.tif")
    with open_annotations(tmp_path / "moved.ome.tif", path=path) as again:
        assert again.shape == SHAPE


def test_a_folder_of_the_users_choice(image: Path, tmp_path: Path) -> None:
    with open_annotations(image, folder=tmp_path / "mine" / "here") as store:
        assert store.path == tmp_path / "mine" / "here" / "slide_annotations.ome.zarr"


def test_a_folder_that_cannot_be_written_is_told_with_the_way_out(
    image: Path, tmp_path: Path
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file, not a folder")
    with pytest.raises(SourceError, match="another folder"):
        open_annotations(image, folder=blocked / "inside")


def test_undo_restores_what_was_below_but_not_what_came_after(store: AnnotationStore) -> None:
    store.write(1, (0, 0), np.ones((8, 8), bool), 1)
    coarse = store.write(4, (0, 0), np.ones((2, 2), bool), 2)
    store.write(1, (0, 0), np.ones((1, 8), bool), 3)
    redo = store.undo(coarse)
    expected = np.ones((8, 8))
    expected[0] = 3
    np.testing.assert_array_equal(store.read(1, (0, 0), (8, 8)), expected)
    assert redo is not None
    store.undo(redo)
    expected[1:] = 2
    np.testing.assert_array_equal(store.read(1, (0, 0), (8, 8)), expected)
    assert store.undo(12345) is None


def test_undo_that_needs_too_much_memory_is_forgotten_whole(store: AnnotationStore) -> None:
    assert store._writer is not None
    store._writer.history._max_bytes = 400
    rng = np.random.default_rng(0)
    large = store.write(1, (0, 0), rng.random((512, 512)) < 0.5, 1)
    store.write(1, (600, 600), np.ones((2, 2), bool), 1, large)
    small = store.write(1, (650, 600), np.ones((2, 2), bool), 1)
    assert store.undo(large) is None
    assert store.undo(small) is not None


def test_class_counts_follow_the_strokes(store: AnnotationStore) -> None:
    store.write(1, (0, 0), np.ones((10, 10), bool), 1)
    assert store.class_counts() == {1: 100}
    labels = np.tile(np.arange(2, dtype=np.uint8) + 2, (10, 5))
    edit = store.write(1, (5, 0), np.ones((10, 10), bool), labels)
    assert store.class_counts() == {1: 50, 2: 50, 3: 50}
    store.undo(edit)
    assert store.class_counts() == {1: 100}
    store.write(1, (0, 0), np.ones((10, 10), bool), 0)
    assert store.class_counts() == {}


def test_values_that_do_not_fit_are_refused(store: AnnotationStore) -> None:
    with pytest.raises(InputError, match="0 to 255"):
        store.write(1, (0, 0), np.ones((2, 2), bool), np.full((2, 2), 300))
    with pytest.raises(InputError, match="0 to 255"):
        store.write(1, (0, 0), np.ones((2, 2), bool), -1)


def test_full_disk_loses_nothing_and_is_told(
    store: AnnotationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        store.write(1, (0, 0), np.ones((2, 2), bool), 2)
        with pytest.raises(WriteError, match="No space left"):
            store.flush()
        assert store.error is not None
        assert not store.is_saved
        with pytest.raises(WriteError, match="kept in memory"):
            store.close()
        store.write(1, (10, 0), np.ones((2, 2), bool), 3)
    store.flush()
    assert store.error is None
    assert store.is_saved
    assert store.class_counts() == {2: 4, 3: 4}


def test_failure_between_log_and_image_is_tried_again(
    store: AnnotationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = store.arrays._store_block
    failures = iter([True, True, False, False, False, False])

    def flaky(*args: object) -> object:
        if next(failures):
            raise PermissionError(13, "used by another process")
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(store.arrays, "_store_block", flaky)
    store.write(1, (0, 0), np.ones((2, 2), bool), 2)
    deadline = time.monotonic() + 10
    while not store.is_saved and time.monotonic() < deadline:
        time.sleep(0.05)
    assert store.class_counts() == {2: 4}


def test_strokes_are_on_disk_within_two_seconds_without_being_asked(
    store: AnnotationStore,
) -> None:
    store.write(1, (0, 0), np.ones((2, 2), bool), 2)
    deadline = time.monotonic() + 2
    while not store.is_saved and time.monotonic() < deadline:
        time.sleep(0.02)
    with AnnotationStore(store.path, writable=False) as reader:
        assert reader.class_counts() == {2: 4}


def test_log_left_behind_is_brought_in_on_opening(image: Path) -> None:
    with open_annotations(image, classes=TABLE) as store:
        store.write(1, (0, 0), np.ones((2, 2), bool), 2)
        store.flush()
        path = store.path
    from napari_muvit.data.stroke_log import Change, StrokeLog

    StrokeLog(path.with_name(f".{path.name}.strokes")).append(
        [Change(1, (5, 5), np.ones((2, 2), bool), 3)]
    )
    (path / "0" / "c" / "0" / "0.abc.partial").write_bytes(b"half")
    with open_annotations(image) as store:
        assert store.class_counts() == {2: 4, 3: 4}
        assert not list(path.rglob("*.partial"))


EXIT_WITHOUT_CLOSING = """
import sys, numpy as np
from napari_muvit.data.annotations import AnnotationStore
store = AnnotationStore(sys.argv[1])
for i in range(20):
    store.write(1, (i, 0), np.ones((1, 600), bool), 2)
"""


def test_program_that_ends_without_closing_loses_nothing(image: Path) -> None:
    with open_annotations(image, classes=TABLE) as store:
        path = store.path
    done = subprocess.run(
        [sys.executable, "-c", EXIT_WITHOUT_CLOSING, str(path)],
        capture_output=True, text=True, timeout=60, check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    with AnnotationStore(path) as store:
        assert store.class_counts() == {2: 20 * 600}


def test_store_that_is_forgotten_gives_its_lock_back(image: Path) -> None:
    store = open_annotations(image, classes=TABLE)
    store.write(1, (0, 0), np.ones((2, 2), bool), 2)
    del store
    gc.collect()
    with open_annotations(image) as again:
        assert again.class_counts() == {2: 4}


def test_volume_is_painted_plane_by_plane(tmp_path: Path) -> None:
    path = tmp_path / "volume.ome.tif"
    tifffile.imwrite(path, np.zeros((3, 64, 80), np.uint8), metadata={"axes": "ZYX"}, ome=True)
    with open_annotations(path) as store:
        assert store.shape == (3, 64, 80)
        window = store.window(center=(1, 30, 30), level=2, size=20)
        assert window.labels.shape == (1, 20, 20)
        window.labels[...] = 2
        window.commit()
        found = store.read(1, (0, 0, 0), (3, 64, 80))
        assert not found[0].any()
        assert not found[2].any()
        assert np.count_nonzero(found[1]) == 40 * 40


@pytest.mark.parametrize(("start", "mask", "labels"), [
    ((0,), np.ones((4, 4), bool), 2), ((0, 0, 0), np.ones((1, 4, 4), bool), 2),
    ((0, 0), np.ones(4, bool), 2), ((0, 0), np.ones((4, 4), bool), np.full((4, 5), 2, np.uint8)),
])
def test_blocks_of_other_axes_hold_nothing_up(
    store: AnnotationStore, start: tuple[int, ...], mask: np.ndarray, labels: object
) -> None:
    with pytest.raises(InputError, match="2 axes of the store"):
        store.write(1, start, mask, labels)  # type: ignore[arg-type]
    store.write(1, (5, 6), np.ones((2, 3)), 3)  # type: ignore[arg-type]
    store.flush()
    assert (store.read(1, (5, 6), (2, 3)) == 3).all()


def test_closed_store_refuses_and_closing_twice_is_fine(image: Path) -> None:
    store = open_annotations(image, classes=TABLE)
    store.close()
    store.close()
    with pytest.raises(MuvitError):
        store.write(1, (0, 0), np.ones((1, 1), bool), 1)


def test_image_in_memory_needs_a_folder(tmp_path: Path) -> None:
    pyramid = open_pyramid(np.zeros((60, 70), np.uint8))
    with pytest.raises(SourceError, match="folder"):
        open_annotations(pyramid)
    with open_annotations(pyramid, folder=tmp_path) as store:
        assert store.image is None


def test_metadata_is_plain_json(store: AnnotationStore) -> None:
    store.window(center=(100, 100), level=2, size=64)
    text = json.loads((store.path / "zarr.json").read_text())
    assert text["attributes"]["muvit"]["windows"][0]["level"] == 2
