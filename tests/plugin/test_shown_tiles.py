"""Layers whose tiles are kept show what the image holds, wherever the view moves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_muvit.plugin import label_layers, shown_tiles
from napari_muvit.plugin.label_layers import LevelArray, level_arrays


@pytest.fixture(autouse=True, scope="module")
def wishes() -> Iterator[list[Any]]:
    """What is wanted ahead; nothing is read in the background."""
    wanted: list[Any] = []
    before = label_layers.AHEAD
    stub: Any = SimpleNamespace(want=lambda soon, later: wanted.append((soon, later)))
    label_layers.AHEAD = stub
    yield wanted
    label_layers.AHEAD = before


class Counted:
    """A (C, z, y, x) or (C, y, x) image that counts what is read of it."""

    def __init__(self, image: np.ndarray, chunk: tuple[int, ...] | None = None) -> None:
        self.image, self.shape, self.dtype = image, image.shape, image.dtype
        self.shapes, self.chunks = [image.shape[1:]], [chunk]
        self.reads: list[tuple[Any, Any]] = []

    def read(self, index: int, start: list[int], size: list[int]) -> np.ndarray:
        self.reads.append((tuple(start), tuple(size)))
        place = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
        return self.image[(slice(None), *place)].copy()


def colours(height: int = 700, width: int = 900) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (3, height, width), np.uint8)


SPANS = st.tuples(st.integers(0, 899), st.integers(1, 900), st.integers(1, 3))


@given(rows=SPANS, columns=SPANS, axes=st.sampled_from(["yxc", "cyx", "yx"]))
def test_any_region_is_what_the_image_holds(
    rows: tuple[int, int, int], columns: tuple[int, int, int], axes: str
) -> None:
    image = colours()[: 1 if axes == "yx" else 3]
    array = LevelArray(Counted(image, (256, 256)), 0, axes)
    y = slice(min(rows[0], 699), min(rows[0] + rows[1], 700), rows[2])
    x = slice(columns[0], min(columns[0] + columns[1], 900), columns[2])
    whole = {"yxc": np.moveaxis(image, 0, -1), "cyx": image, "yx": image[0]}[axes]
    key = (slice(None), y, x) if axes == "cyx" else (y, x)
    assert np.array_equal(array[key], whole[key])
    one = (1, 5, 7) if axes == "cyx" else (5, 7)
    assert np.array_equal(array[one], whole[one])


def test_volumes_and_colours_lie_as_napari_wants_them() -> None:
    volume = np.random.default_rng(1).integers(0, 9, (1, 4, 300, 400)).astype(np.uint16)
    array = LevelArray(Counted(volume), 0, "zyx")
    assert np.array_equal(array[2, 10:290, 5:399], volume[0, 2, 10:290, 5:399])
    assert np.array_equal(array[1:3], volume[0, 1:3])
    assert LevelArray(Counted(colours()), 0, "yxc")[100:600, 100:800].flags.c_contiguous


def test_moving_the_view_reads_only_what_is_new() -> None:
    source = Counted(colours(), (256, 256))
    array = LevelArray(source, 0, "yxc")
    array[10:500, 10:500]
    assert sorted(start for start, _ in source.reads) == [(0, 0), (0, 256), (256, 0), (256, 256)]
    array[12:510, 14:512]
    assert len(source.reads) == 4
    array[12:510, 14:520]
    assert len(source.reads) == 6
    again = LevelArray(source, 0, "yxc")
    again[10:500, 10:500]
    assert len(source.reads) == 10


def keys(reads: list[Any]) -> list[tuple[int, int]]:
    return sorted(key[-2:] for key, _ in reads)


def test_what_may_be_shown_next_is_wanted(wishes: list[Any]) -> None:
    source = Counted(np.zeros((3, 2048, 2048), np.uint8), (256, 256))
    source.shapes = [(2048, 2048), (1024, 1024), (512, 512)]
    source.chunks = [(256, 256)] * 3
    source.read = lambda index, start, size: np.zeros((3, *size), np.uint8)  # type: ignore[method-assign]
    middle = level_arrays(source, "yxc")[1]
    middle[300:500, 300:500]
    soon, later = wishes[-1]
    assert keys(soon) == [(i, j) for i in range(3) for j in range(3)]
    finer, coarser = middle.beside
    assert keys([wish for wish in later if wish[0][0] is finer._token]) == [
        (i, j) for i in (2, 3) for j in (2, 3)]
    assert keys([wish for wish in later if wish[0][0] is coarser._token]) == [
        (i, j) for i in (0, 1) for j in (0, 1)]
    assert soon[4][1]().shape == (256, 256, 3)
    assert middle.chunks == (256, 256, 3)


def test_wishes_are_read_in_the_background_and_the_newest_count() -> None:
    cache = shown_tiles.TileCache(1000)
    ahead = shown_tiles.Prefetcher(cache)
    begun, go_on, read = threading.Event(), threading.Event(), threading.Event()

    def slow() -> np.ndarray:
        begun.set()
        go_on.wait(20)
        return np.zeros(1)

    def fail() -> np.ndarray:
        raise OSError("gone")

    def last() -> np.ndarray:
        read.set()
        return np.zeros(1)

    ahead.want([("slow", slow), ("forgotten", lambda: np.zeros(1))], [])
    assert begun.wait(20)
    ahead.want([("broken", fail)], [("last", last)])
    go_on.set()
    assert read.wait(20)
    assert cache.has("slow")
    assert not cache.has("forgotten")
    assert not cache.has("broken")


def test_large_regions_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from napari_muvit.plugin import label_layers

    monkeypatch.setattr(label_layers, "MOST_PIXELS", 600 * 600)
    source = Counted(colours())
    array = LevelArray(source, 0, "yxc")
    assert np.array_equal(np.asarray(array), np.moveaxis(source.image, 0, -1))
    assert source.reads == [((0, 0), (700, 900))]


def test_tiles_follow_the_chunks_of_the_store() -> None:
    assert [shown_tiles.tile_side(chunk) for chunk in (
        (512, 512), (1, 300, 400), (64, 64), (4096, 4096), (1, 5000), None,
    )] == [512, 400, 256, 256, 256, 256]


def test_what_was_not_asked_for_longest_goes() -> None:
    cache = shown_tiles.TileCache(250)
    reads: list[int] = []

    def read(number: int) -> np.ndarray:
        reads.append(number)
        return np.zeros(100, np.uint8)

    for number in (1, 2, 1, 3, 1, 2):
        cache.get(number, lambda number=number: read(number))
    assert reads == [1, 2, 3, 2]
