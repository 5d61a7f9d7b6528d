"""Windows at any place and level write the pixels of a stroke and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from napari_muvit.data.annotation_window import WindowPlace
from napari_muvit.data.annotations import AnnotationStore, open_annotations
from napari_muvit.errors import InputError

SHAPE = (600, 1100)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AnnotationStore]:
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, np.zeros(SHAPE, np.uint8))
    with open_annotations(path) as opened:
        yield opened


def whole(store: AnnotationStore) -> np.ndarray:
    return store.read(1, (0, 0), SHAPE)


def test_window_lies_where_it_was_asked_for(store: AnnotationStore) -> None:
    window = store.window(center=(300, 500), level=4, size=50)
    assert window.labels.shape == (50, 50)
    np.testing.assert_array_equal(window.box, [[199.5, 399.5], [399.5, 599.5]])
    np.testing.assert_array_equal(window.factor, [4, 4])
    np.testing.assert_array_equal(window.offset, window.box[0] + 2)


def test_window_is_cut_at_the_image_and_refused_outside(store: AnnotationStore) -> None:
    window = store.window(corner=(-20.5, 1000), level=1, size=200)
    assert window.place.start == (0, 1000)
    assert window.labels.shape == (180, 100)
    with pytest.raises(InputError, match="outside the image"):
        store.window(center=(5000, 5000), size=10)


def test_painting_the_label_that_is_shown_sets_what_lies_below(store: AnnotationStore) -> None:
    store.write(1, (80, 80), np.ones((2, 8), bool), 2)
    store.write(1, (82, 80), np.ones((1, 8), bool), 3)
    coarse = store.window(corner=(-0.5, -0.5), level=8, size=32)
    assert coarse.labels[10, 10] == 2
    coarse.touch((np.array([10]), np.array([10])))
    assert coarse.commit() == 1
    assert coarse.commit() == 0
    assert (store.read(1, (80, 80), (8, 8)) == 2).all()
    assert coarse.undo()
    assert np.array_equal(np.unique(store.read(1, (80, 80), (8, 8))), [0, 2, 3])


def test_coarse_stroke_leaves_fine_labels_beside_it_alone(store: AnnotationStore) -> None:
    rng = np.random.default_rng(0)
    fine = store.window(corner=(-0.5, -0.5), level=1, size=256)
    fine.labels[...] = rng.integers(0, 3, fine.labels.shape)
    fine.commit()
    coarse = store.window(corner=(-0.5, -0.5), level=8, size=32)
    coarse.labels[10, 10:20] = 2
    assert coarse.commit() <= 10
    expected = fine.labels.copy()
    painted = coarse.labels[10, 10:20] != coarse.store.read(8, (10, 10), (1, 10))
    assert not painted.any()
    found = store.read(1, (0, 0), (256, 256))
    differing = np.argwhere(found != expected)
    assert len(differing)
    assert differing[:, 0].min() >= 80
    assert differing[:, 0].max() < 88
    assert differing[:, 1].min() >= 80
    assert differing[:, 1].max() < 160


def test_commit_counts_and_writes_a_change_once(store: AnnotationStore) -> None:
    window = store.window(center=(100, 100), level=2, size=64)
    assert window.commit() == 0
    window.labels[:3, :5] = 2
    assert window.commit() == 15
    assert window.commit() == 0
    assert store.class_counts() == {2: 60}


def test_stroke_in_parts_is_undone_as_one(store: AnnotationStore) -> None:
    window = store.window(center=(100, 100), size=64)
    for row in range(3):
        window.labels[row] = 2
        window.commit(is_stroke_done=row == 2)
    window.labels[10] = 1
    window.commit()
    assert window.undo()
    assert store.class_counts() == {2: 3 * 64}
    assert window.undo()
    assert store.class_counts() == {}
    assert not window.labels.any()
    assert not window.undo()
    assert window.redo()
    assert window.redo()
    assert store.class_counts() == {1: 64, 2: 3 * 64}
    assert not window.redo()


def test_painting_after_undo_ends_redo(store: AnnotationStore) -> None:
    window = store.window(center=(100, 100), size=64)
    window.labels[0] = 2
    assert window.undo()
    window.labels[1] = 2
    window.commit()
    assert not window.redo()


def test_undo_of_a_coarse_stroke_brings_fine_labels_back(store: AnnotationStore) -> None:
    rng = np.random.default_rng(1)
    fine = store.window(corner=(-0.5, -0.5), size=300)
    fine.labels[...] = rng.integers(0, 3, fine.labels.shape)
    fine.commit()
    before = whole(store)
    coarse = store.window(corner=(-0.5, -0.5), level=16, size=16)
    coarse.labels[...] = 3
    coarse.commit()
    assert (whole(store)[:256, :256] == 3).all()
    coarse.undo()
    np.testing.assert_array_equal(whole(store), before)


def test_undo_leaves_strokes_of_other_windows(store: AnnotationStore) -> None:
    one = store.window(center=(100, 100), size=64)
    two = store.window(center=(100, 100), size=64)
    one.labels[...] = 1
    one.commit()
    two.labels[:2] = 2
    two.commit()
    one.undo()
    assert store.class_counts() == {2: 2 * 64}
    np.testing.assert_array_equal(one.labels[:2], 2)
    # Below the second stroke lay the first one.
    two.undo()
    assert store.class_counts() == {1: 2 * 64}


def test_stale_window_writes_only_its_own_stroke(store: AnnotationStore) -> None:
    one = store.window(center=(100, 100), size=64)
    two = store.window(center=(100, 100), size=64)
    one.labels[:10] = 1
    one.commit()
    two.labels[20:] = 2
    two.commit()
    assert store.class_counts() == {1: 640, 2: 44 * 64}
    two.refresh()
    assert (two.labels[:10] == 1).all()


def test_places_are_remembered(store: AnnotationStore) -> None:
    store.window(center=(100, 100), size=64)
    store.window(center=(200, 300), level=4, size=64, name="tumour edge")
    store.window(center=(100, 200), size=64)
    names = [place.name for place in store.window_places]
    assert names == ["window 1", "tumour edge", "window 2"]
    store.close()
    with AnnotationStore(store.path) as again:
        assert again.window_places == store.window_places
        window = again.reopen(again.window_places[1])
        assert window.place.level == 4
        again.set_window_places(again.window_places[:1])
        assert len(again.window_places) == 1


def test_place_survives_plain_data() -> None:
    place = WindowPlace("a", 4, (1, 2), (3, 4))
    assert WindowPlace.from_dict(place.to_dict()) == place


@settings(max_examples=15, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1))
def test_random_strokes_equal_painting_one_large_array(
    store: AnnotationStore, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    expected = whole(store)
    for _ in range(4):
        level = int(rng.choice([1, 2, 5, 8]))
        window = store.window(
            center=rng.uniform((0, 0), SHAPE), level=level, size=int(rng.integers(1, 80))
        )
        before = window.labels.copy()
        cut = tuple(slice(*np.sort(rng.integers(0, n + 1, 2))) for n in before.shape)
        window.labels[cut] = rng.integers(0, 4)
        window.commit()
        changed = np.argwhere(window.labels != before)
        for pixel in changed:
            low = (pixel + window.place.start) * level
            expected[low[0] : low[0] + level, low[1] : low[1] + level] = window.labels[
                tuple(pixel)
            ]
    np.testing.assert_array_equal(whole(store), expected)
