"""Records come back as they were written, and a torn one is as if it never was."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_muvit.data.stroke_log import Change, StrokeLog, trim_change


def make_change(seed: int, shape: tuple[int, ...] = (6, 9)) -> Change:
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < 0.3
    mask[0, 0] = True
    labels = rng.integers(0, 9, shape).astype(np.uint8)
    change = trim_change(4, (3, 5), mask, 7 if seed % 2 else labels)
    assert change is not None
    return change


def assert_same(one: Change, two: Change) -> None:
    assert (one.level, one.start) == (two.level, two.start)
    np.testing.assert_array_equal(one.mask, two.mask)
    np.testing.assert_array_equal(one.values(), two.values())


@settings(deadline=None)
@given(st.lists(st.integers(0, 1000), max_size=5))
def test_log_gives_back_what_was_appended(tmp_path_factory: pytest.TempPathFactory,
                                          seeds: list[int]) -> None:
    log = StrokeLog(tmp_path_factory.mktemp("log") / "strokes")
    changes = [make_change(seed) for seed in seeds]
    for change in changes:
        log.append([change])
    found = list(log.read())
    assert len(found) == len(changes)
    for one, two in zip(found, changes, strict=True):
        assert_same(one, two)


def test_a_record_cut_anywhere_is_left_out_and_the_ones_before_stay(tmp_path: Path) -> None:
    log = StrokeLog(tmp_path / "strokes")
    log.append([make_change(0), make_change(1)])
    whole = log.path.stat().st_size
    log.append([make_change(2)])
    data = log.path.read_bytes()
    for length in range(whole, len(data)):
        log.path.write_bytes(data[:length])
        assert len(list(log.read())) == 2


@pytest.mark.parametrize("place", [0, 5, 9, 30])
def test_a_damaged_record_ends_the_log(tmp_path: Path, place: int) -> None:
    log = StrokeLog(tmp_path / "strokes")
    log.append([make_change(0)])
    whole = log.path.stat().st_size
    log.append([make_change(1)])
    data = bytearray(log.path.read_bytes())
    data[whole + place] ^= 0x55
    log.path.write_bytes(data)
    assert len(list(log.read())) == 1


def test_append_that_fails_leaves_no_torn_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = StrokeLog(tmp_path / "strokes")
    log.append([make_change(0)])

    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match="No space"):
            log.append([make_change(1)])
    log.append([make_change(2)])
    first, second = log.read()
    assert_same(first, make_change(0))
    assert_same(second, make_change(2))


def test_clear_forgets_and_remove_leaves_nothing(tmp_path: Path) -> None:
    log = StrokeLog(tmp_path / "strokes")
    assert list(log.read()) == []
    log.append([make_change(0)])
    log.clear()
    assert list(log.read()) == []
    log.remove()
    assert not log.path.exists()


def test_trim_finds_the_smallest_block_and_one_label() -> None:
    mask = np.zeros((10, 10), bool)
    mask[3:5, 6] = True
    labels = np.full((10, 10), 2, np.uint8)
    change = trim_change(1, (100, 200), mask, labels)
    assert change is not None
    assert change.start == (103, 206)
    assert change.mask.shape == (2, 1)
    assert change.labels == 2
    assert trim_change(1, (0, 0), np.zeros((4, 4), bool), 1) is None
