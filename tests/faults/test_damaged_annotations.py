"""One chunk file of an annotation store is damaged: one chunk is lost, and it is said which."""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from napari_muvit.data import chunk_files, stroke_writer
from napari_muvit.data.annotations import AnnotationStore, open_annotations
from napari_muvit.data.pyramid import open_pyramid
from napari_muvit.data.stroke_log import Change, StrokeLog
from napari_muvit.data.stroke_writer import WriteError
from napari_muvit.errors import MuvitWarning

pytestmark = pytest.mark.faults

SHAPE = (1100, 1300)
RNG = np.random.default_rng(0)
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "cut short": lambda data: data[: len(data) // 2],
    "cut to less than a header": lambda data: data[:10],
    "zeros from the middle on": lambda data: data[:200] + bytes(len(data) - 200),
    "something else": lambda data: RNG.bytes(len(data)),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with noise in its first chunk and a square in its last."""
    image = open_pyramid(np.zeros(SHAPE, np.uint8))
    with open_annotations(image, path=tmp_path / "a_annotations.ome.zarr") as store:
        noise = RNG.integers(1, 3, (512, 512)).astype(np.uint8)
        store.write(1, (0, 0), np.ones((512, 512), bool), noise)
        store.write(1, (1050, 1250), np.ones((4, 4), bool), 2)
    return store.path


def damage(path: Path, chunk: str, how: Callable[[bytes], bytes] = DAMAGES["empty"]) -> bytes:
    data = how((path / chunk).read_bytes())
    (path / chunk).write_bytes(data)
    return data


def write_all(store: AnnotationStore, start: tuple[int, int], value: int) -> None:
    store.write(1, start, np.ones((3, 3), bool), value)
    store.flush()


def check_others(store: AnnotationStore) -> None:
    """What was painted elsewhere is there, and coarse arrays agree with the fine one."""
    assert (store.read(1, (1050, 1250), (4, 4)) == 2).all()
    assert store.read(4, (262, 312), (2, 2)).all()


@pytest.mark.parametrize("how", DAMAGES.values(), ids=DAMAGES)
def test_one_chunk_is_lost_and_everything_else_goes_on(
    path: Path, how: Callable[[bytes], bytes]
) -> None:
    data = damage(path, "0/c/0/0", how)
    with AnnotationStore(path) as store:
        store.write(1, (1090, 0), np.ones((2, 2), bool), 1)
        name = str(Path("0", "c", "0", "0")).replace("\\", "\\\\")
        with pytest.warns(MuvitWarning, match=rf"{name} is damaged.*0\.damaged") as caught:
            assert not store.read(1, (0, 0), (512, 512)).any()
        assert len(caught) == 1
        assert "[0, 0] to [511, 511]" in str(caught[0].message)
        assert (path / "0/c/0/0.damaged").read_bytes() == data
        check_others(store)
        assert not store.read(4, (0, 0), (128, 128)).any()
        assert store.class_counts() == {1: 4, 2: 16}
        store.write(1, (5, 5), np.ones((3, 3), bool), 2)
        assert store.class_counts() == {1: 4, 2: 25}
    with AnnotationStore(path) as store:
        assert store.class_counts() == {1: 4, 2: 25}


@pytest.mark.parametrize("how", DAMAGES.values(), ids=DAMAGES)
def test_a_coarse_chunk_is_made_anew(path: Path, how: Callable[[bytes], bytes]) -> None:
    with AnnotationStore(path, writable=False) as store:
        before = store.read(2, (0, 0), store.arrays.level_shape(2))
    damage(path, "1/c/0/0", how)
    with AnnotationStore(path) as store:
        store.write(2, (300, 300), np.ones((2, 2), bool), 3)
        before[300:302, 300:302] = 3
        store.flush()
        np.testing.assert_array_equal(store.read(2, (0, 0), before.shape), before)


def test_a_stroke_into_a_damaged_chunk_is_written(path: Path) -> None:
    damage(path, "0/c/0/0")
    with AnnotationStore(path) as store:
        with pytest.warns(MuvitWarning, match="is damaged"):
            write_all(store, (5, 5), 2)
        check_others(store)
        assert store.class_counts() == {2: 25}


def test_a_log_that_leads_into_a_damaged_chunk_is_replayed(path: Path) -> None:
    damage(path, "0/c/0/0")
    log = StrokeLog(path.with_name(f".{path.name}.strokes"))
    log.append([Change(1, (5, 5), np.ones((3, 3), bool), 2)])
    with pytest.warns(MuvitWarning, match="is damaged"):
        store = AnnotationStore(path)
    assert store.class_counts() == {2: 25}
    store.close()


def test_a_reader_leaves_the_files_alone(path: Path) -> None:
    damage(path, "0/c/0/0")
    damage(path, "0/c/2/2", DAMAGES["zeros from the middle on"])
    damage(path, "2/c/0/0")
    with AnnotationStore(path, writable=False) as store:
        with pytest.warns(MuvitWarning, match="is damaged") as caught:
            assert not store.read(1, (0, 0), SHAPE).any()
        assert store.read(4, (0, 0), (100, 100)).all()  # from the array before it
    assert {Path(str(w.message).split(" is damaged")[0]).relative_to(path).as_posix()
            for w in caught} == {"0/c/0/0", "0/c/2/2"}
    assert not list(path.rglob("*.damaged*"))


def test_a_second_damage_keeps_both_files(path: Path) -> None:
    for number in (1, 2):
        damage(path, "0/c/0/0", lambda data, n=number: bytes([n]))
        with AnnotationStore(path) as store, pytest.warns(MuvitWarning, match="is damaged"):
            write_all(store, (0, 0), 1)
    assert (path / "0/c/0/0.damaged").read_bytes() == b"\1"
    assert (path / "0/c/0/0.damaged2").read_bytes() == b"\2"


def test_an_error_that_no_chunk_is_to_blame_for_sets_nothing_aside(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zarr

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("cannot schedule new futures after shutdown")

    with AnnotationStore(path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(zarr.Array, "__getitem__", refuse)
            patch.setattr(zarr, "open_array", refuse)
            with pytest.raises(RuntimeError, match="after shutdown"):
                store.read(1, (0, 0), (9, 9))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert store.read(1, (0, 0), (9, 9)).all()


def test_chunks_are_on_the_disk_before_the_log_is_emptied(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = path.with_name(f".{path.name}.strokes")
    synced: list[tuple[str, bool]] = []
    sync_file = chunk_files._sync_file

    def sync(file: Path) -> None:
        synced.append((file.relative_to(path).as_posix(), log.stat().st_size > 0))
        sync_file(file)

    def refuse(file: Path) -> None:
        raise OSError(5, "Input/output error")

    store = AnnotationStore(path)
    with monkeypatch.context() as patch:
        patch.setattr(chunk_files, "_sync_file", refuse)
        store.write(1, (600, 0), np.ones((2, 2), bool), 1)
        store.flush()  # in the image, but not for certain
        with pytest.raises(WriteError, match="Input/output error"):
            store.close()
        assert log.stat().st_size > 0
    monkeypatch.setattr(chunk_files, "_sync_file", sync)
    store.close()
    assert sorted(synced) == [("0/c/1/0", True), ("1/c/0/0", True), ("2/c/0/0", True)]
    assert not log.exists()


def test_a_large_log_is_emptied_while_painting_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stroke_writer, "LARGE_LOG", 500)
    log, sizes = path.with_name(f".{path.name}.strokes"), []
    with AnnotationStore(path) as store:
        for row in range(30):
            write_all(store, (600 + row, 0), 1)
            sizes.append(log.stat().st_size)
    assert sum(after < before for before, after in itertools.pairwise(sizes)) > 2
    assert max(sizes) < 1500


def test_the_log_is_emptied_once_nobody_paints_any_more(path: Path) -> None:
    log = path.with_name(f".{path.name}.strokes")
    with AnnotationStore(path) as store:
        store.write(1, (600, 0), np.ones((2, 2), bool), 1)
        store.flush()
        assert log.stat().st_size > 0
        deadline = time.monotonic() + 20
        while log.stat().st_size and time.monotonic() < deadline:
            time.sleep(0.05)
        assert log.stat().st_size == 0
