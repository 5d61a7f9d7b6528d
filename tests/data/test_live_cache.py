"""Caches of live prediction: room is made, and never at the cost of one that is in use."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from napari_muvit import renaming
from napari_muvit.data import live_cache as room
from napari_muvit.data.live_cache import CacheLayout, LiveCache, prune_caches
from napari_muvit.data.lock import WriterLock
from napari_muvit.errors import MuvitWarning


def make_cache(root: Path, name: str, tiles: int, age: float) -> Path:
    """What pruning looks at: meta file with its date, and states."""
    folder = root / name
    folder.mkdir()
    np.ones(tiles, np.uint8).tofile(folder / "states.bin")
    meta = folder / "cache.json"
    meta.write_text(json.dumps({"cell_bytes": 100}))
    os.utime(meta, (age, age))
    return folder


def test_the_longest_unused_go_first(tmp_path):
    new, middle, old = (make_cache(tmp_path, name, 5, age) for name, age in
                        (("new", 300), ("middle", 200), ("old", 100)))
    own = make_cache(tmp_path, "own", 99, 1)
    prune_caches(tmp_path, own, 1000)
    assert [folder.exists() for folder in (new, middle, old, own)] == [True, True, False, True]


def test_a_damaged_cache_goes_and_takes_no_other_along(tmp_path):
    damaged, good = make_cache(tmp_path, "damaged", 1, 200), make_cache(tmp_path, "good", 1, 100)
    (damaged / "cache.json").write_text("{")
    prune_caches(tmp_path, tmp_path / "own", 1000)
    assert not damaged.exists()
    assert good.exists()


def test_a_cache_that_is_in_use_stays(tmp_path):
    used = make_cache(tmp_path, "used", 99, 100)
    with WriterLock(used / "lock"):
        prune_caches(tmp_path, tmp_path / "own", 10)
    assert (used / "states.bin").exists()


def test_a_cache_that_another_process_deletes_meanwhile_is_no_error(tmp_path, monkeypatch):
    gone, left = make_cache(tmp_path, "gone", 1, 200), make_cache(tmp_path, "left", 1, 100)
    found = [folder / "cache.json" for folder in (gone, left)]
    monkeypatch.setattr(type(tmp_path), "glob", lambda *_: found)
    for file in gone.iterdir():
        file.unlink()
    gone.rmdir()
    prune_caches(tmp_path, tmp_path / "own", 1000)
    assert left.exists()


@pytest.mark.parametrize("shape", [(83, 61), (64, 96), (50, 17)])
def test_coarse_arrays_take_the_pixel_at_the_middle_of_theirs(tmp_path, monkeypatch, shape):
    monkeypatch.setattr(room, "SMALLEST", 8)
    layout = CacheLayout(shape, (12, 20), "yx", "uint16", 0, "image")
    cache = LiveCache(tmp_path / "cache", layout, "model")
    labels = np.arange(1, 1 + shape[0] * shape[1], dtype=np.uint16).reshape(shape)
    for tile in np.ndindex(layout.tiles):
        sides = zip(tile, layout.cell, shape, strict=True)
        region = tuple(slice(i * side, min((i + 1) * side, n)) for i, side, n in sides)
        cache.write(tile, region, labels[region], confidence=labels[region] % 200 + 1,
                    entropy=0.0)
    assert cache.num_levels > 2
    for number, factor in enumerate(layout.levels):
        rows, columns = (
            np.minimum(np.arange(count) * factor + factor // 2, n - 1)
            for count, n in zip(cache.level_shape(number), shape, strict=True))
        found = cache.read(number, (slice(None), slice(None)))
        np.testing.assert_array_equal(found, labels[np.ix_(rows, columns)])
    np.testing.assert_array_equal(cache.coarsest, found)
    cache.close()


LAYOUT = CacheLayout((64, 96), (16, 16), "yx", "uint8", 0, "image")
REGION = (slice(16, 32), slice(0, 16))


def write_tile(cache: LiveCache) -> None:
    full = np.full((16, 16), 3, np.uint8)
    cache.write((1, 0), REGION, full, confidence=full, entropy=0.5)


def empty_chunks(folder: Path) -> None:
    """What a power cut leaves of files that were just written."""
    chunks = [path for path in (folder / room.LABELS).rglob("*")
              if path.is_file() and path.suffix != ".json"]
    assert chunks
    for path in chunks:
        path.write_bytes(b"")


@pytest.mark.parametrize("damage", [
    lambda folder: (folder / "states.bin").write_bytes(b""),
    lambda folder: (folder / "entropies.bin").write_bytes(bytes(8)),
    lambda folder: (folder / "states.bin").unlink(),
    lambda folder: (folder / room.CONFIDENCE / "zarr.json").write_text("{"),
    empty_chunks,
], ids=["empty states", "short entropies", "no states", "metadata", "empty chunks"])
def test_a_damaged_cache_begins_anew(tmp_path, damage):
    cache = LiveCache(tmp_path / "cache", LAYOUT, "model")
    write_tile(cache)
    cache.close()
    damage(tmp_path / "cache")
    with pytest.warns(MuvitWarning, match="damaged .* predicted again"):
        cache = LiveCache(tmp_path / "cache", LAYOUT, "model")
    assert not cache.states.any()
    assert not cache.coarsest.any()
    write_tile(cache)
    cache.close()
    cache = LiveCache(tmp_path / "cache", LAYOUT, "model")
    assert np.argwhere(cache.states == room.DONE).tolist() == [[1, 0]]
    assert (cache.coarsest[REGION] == 3).all()
    cache.close()


@pytest.fixture
def refuse(monkeypatch):
    """Lets the system refuse to replace or remove files, as Windows does while they are read."""
    left = [0]

    def patch(name):
        real = getattr(os, name)

        def act(path, *arguments, **options):
            if left[0] and (name == "replace" or not str(path).endswith(".partial")):
                left[0] -= 1
                raise PermissionError(13, "Access is denied")
            return real(path, *arguments, **options)

        monkeypatch.setattr(os, name, act)

    patch("replace")
    patch("unlink")
    monkeypatch.setattr(renaming, "PAUSES", (0.0,) * 4)

    def set_left(times):
        before, left[0] = left[0], times
        return before

    return set_left


def test_a_chunk_that_is_being_read_is_written_a_moment_later(tmp_path, refuse):
    cache = LiveCache(tmp_path / "cache", LAYOUT, "model")
    refuse(3)
    write_tile(cache)
    assert refuse(3) == 0
    assert (cache.read(0, REGION) == 3).all()
    cache.forget((1, 0))
    assert refuse(3) == 0
    assert not cache.read(0, REGION).any()
    assert not cache.states.any()
    cache.set_model("another")
    assert refuse(99) == 0
    assert json.loads((cache.folder / "cache.json").read_text())["model"] == "another"
    with pytest.raises(PermissionError):
        write_tile(cache)
    refuse(0)
    cache.close()
