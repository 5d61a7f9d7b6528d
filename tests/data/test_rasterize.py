"""Polygons and label images become painted labels, exactly where they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_muvit.data import rasterize
from napari_muvit.data.annotations import AnnotationStore, open_annotations
from napari_muvit.data.labels import ClassTable, make_classes
from napari_muvit.data.pyramid import open_pyramid
from napari_muvit.data.rasterize import (
    Polygon,
    fill_rings,
    paint_instances,
    paint_labels,
    paint_polygons,
)
from napari_muvit.errors import InputError, MuvitWarning

SHAPE = (300, 400)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AnnotationStore]:
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, np.zeros(SHAPE, np.uint8))
    table = ClassTable(make_classes((1, 2, 3), background=1), unlabelled=0, background=1)
    with open_annotations(path, classes=table) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rasterize, "BLOCK", 64)


def whole(store: AnnotationStore) -> np.ndarray:
    return store.read(1, (0, 0), SHAPE)


def square(low: float, high: float) -> np.ndarray:
    return np.array([[low, low], [low, high], [high, high], [high, low]], float)


def brute_fill(rings: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Even-odd by casting a ray to the left from every pixel's centre."""
    result = np.zeros(shape, bool)
    for y, x in np.ndindex(shape):
        crossings = 0
        for ring in rings:
            for (y0, x0), (y1, x1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
                if min(y0, y1) <= y < max(y0, y1):
                    crossings += x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x
        result[y, x] = crossings % 2
    return result


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 8), st.integers(1, 2))
def test_fill_equals_counting_crossings(seed: int, corners: int, num_rings: int) -> None:
    rng = np.random.default_rng(seed)
    rings = [rng.uniform(-4, 16, (corners, 2)) for _ in range(num_rings)]
    np.testing.assert_array_equal(fill_rings(rings, (0, 0), (11, 13)),
                                  brute_fill(rings, (11, 13)))


def test_box_on_pixel_edges_fills_exactly_its_pixels() -> None:
    mask = fill_rings([square(1.5, 4.5)], (0, 0), (8, 8))
    expected = np.zeros((8, 8), bool)
    expected[2:5, 2:5] = True
    np.testing.assert_array_equal(mask, expected)


def test_hole_is_left_out() -> None:
    mask = fill_rings([square(-0.5, 9.5), square(2.5, 5.5)], (0, 0), (10, 10))
    assert mask.sum() == 100 - 9
    assert not mask[3:6, 3:6].any()


def test_coarse_pixels_belong_where_their_centre_is() -> None:
    # Pixel i of level 4 has its centre at world 4 i + 1.5.
    mask = fill_rings([square(3.5, 11.5)], (0, 0), (4, 4), level=4)
    expected = np.zeros((4, 4), bool)
    expected[1:3, 1:3] = True
    np.testing.assert_array_equal(mask, expected)


def test_polygon_over_many_blocks_is_whole(store: AnnotationStore) -> None:
    angle = np.linspace(0, 2 * np.pi, 50, endpoint=False)
    ring = np.stack([150 + 120 * np.sin(angle), 200 + 170 * np.cos(angle)], axis=1)
    paint_polygons(store, [Polygon((ring,), 2)])
    np.testing.assert_array_equal(whole(store) == 2, fill_rings([ring], (0, 0), SHAPE))


def test_later_polygons_lie_on_earlier_ones_and_undo_is_one_step(store: AnnotationStore) -> None:
    edit = paint_polygons(store, [Polygon((square(9.5, 99.5),), 2),
                                  Polygon((square(49.5, 149.5),), 3)])
    assert store.class_counts() == {2: 90 * 90 - 50 * 50, 3: 100 * 100}
    store.undo(edit)
    assert store.class_counts() == {}


def test_polygon_beyond_the_image_is_cut(store: AnnotationStore) -> None:
    paint_polygons(store, [Polygon((square(-1000, 1000),), 2)])
    assert store.class_counts() == {2: SHAPE[0] * SHAPE[1]}


def test_outlines_of_another_image_are_refused(store: AnnotationStore) -> None:
    beside = [Polygon((square(500, 900),), 2), Polygon((square(4000, 4100.4),), 2)]
    with pytest.raises(InputError, match="none of the 2 outlines") as caught:
        paint_polygons(store, iter(beside))
    assert "from y 500 to 4100 and x 500 to 4100" in str(caught.value)
    assert "300 x 400 px" in str(caught.value)
    with pytest.warns(MuvitWarning, match="2 of 3 outlines .* y 500 to 4100"):
        paint_polygons(store, [*beside, Polygon((square(0, 9),), 2)])
    assert store.class_counts() == {2: 81}


def test_an_outline_over_the_edge_lies_on_the_image(store: AnnotationStore) -> None:
    corner = np.array([299.0, 399.0])
    for low, high in ((corner, corner + 50), (np.array([-50.0, -50.0]), np.array([1.0, 1.0]))):
        ring = np.array([low, [low[0], high[1]], high, [high[0], low[1]]])
        paint_polygons(store, [Polygon((ring,), 2)])
    assert store.class_counts() == {2: 2}


def test_polygon_at_a_coarse_level(store: AnnotationStore) -> None:
    paint_polygons(store, [Polygon((square(-0.5, 63.5),), 2)], level=8)
    assert store.class_counts() == {2: 64 * 64}


@pytest.mark.parametrize("ring", [np.zeros((4, 3)), np.full((4, 2), np.nan)])
def test_broken_rings_are_refused(store: AnnotationStore, ring: np.ndarray) -> None:
    with pytest.raises(InputError, match="rings are"):
        paint_polygons(store, [Polygon((ring,), 2)])


def test_polygon_of_no_class_is_refused(store: AnnotationStore) -> None:
    with pytest.raises(InputError, match="unlabelled"):
        paint_polygons(store, [Polygon((square(0, 5),), 0)])


def test_foreign_labels_have_0_for_background(store: AnnotationStore) -> None:
    labels = np.random.default_rng(0).integers(0, 4, SHAPE)
    labels[labels == 1] = 0
    paint_labels(store, labels)
    np.testing.assert_array_equal(whole(store), np.where(labels == 0, 1, labels))


def test_0_stays_unlabelled_where_told_so(store: AnnotationStore) -> None:
    labels = np.random.default_rng(0).integers(0, 4, SHAPE)
    store.write(1, (0, 0), np.ones((10, 10), bool), 3)
    paint_labels(store, labels, unlabelled=0)
    expected = labels.copy()
    expected[:10, :10][labels[:10, :10] == 0] = 3
    np.testing.assert_array_equal(whole(store), expected)


def test_values_are_mapped_and_others_left_out(store: AnnotationStore) -> None:
    labels = np.random.default_rng(0).integers(0, 4, SHAPE) * 1000
    paint_labels(store, zarr.array(labels), values={1000: 2, 0: 3})
    expected = np.select([labels == 1000, labels == 0], [2, 3], 0)
    np.testing.assert_array_equal(whole(store), expected)


def test_coarse_labels_at_their_place(store: AnnotationStore) -> None:
    paint_labels(store, np.full((5, 6), 2), level=4, corner=(39.5, 79.5))
    expected = np.zeros(SHAPE, np.uint8)
    expected[40:60, 80:104] = 2
    np.testing.assert_array_equal(whole(store), expected)


def test_label_pyramid_is_read_lazily(store: AnnotationStore) -> None:
    labels = np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8)
    paint_labels(store, open_pyramid(labels), unlabelled=0)
    np.testing.assert_array_equal(whole(store), labels)


def test_instances_become_one_class(store: AnnotationStore) -> None:
    labels = np.arange(SHAPE[0] * SHAPE[1], dtype=np.uint32).reshape(SHAPE)
    labels[:100] = 0
    paint_instances(store, labels, 2)
    assert store.class_counts() == {2: 200 * 400}
    paint_instances(store, labels, 3, background=1)
    assert store.class_counts() == {1: 100 * 400, 3: 200 * 400}


def test_instances_taken_for_classes_are_refused(store: AnnotationStore) -> None:
    with pytest.raises(InputError, match="paint_instances"):
        paint_labels(store, np.full((10, 10), 4000))


@pytest.fixture
def tall(tmp_path: Path) -> Iterator[AnnotationStore]:
    """Of an image that is painted in two blocks."""
    with open_annotations(open_pyramid(np.zeros((2060, 70), np.uint8)),
                          path=tmp_path / "tall.ome.zarr") as opened:
        opened.write(1, (3, 3), np.ones((2, 2), bool), 2)
        yield opened


def test_labels_that_are_too_large_further_down_leave_nothing(tall: AnnotationStore) -> None:
    labels = np.ones((2060, 70), np.uint16)
    labels[2050:] = 300
    with pytest.raises(InputError, match="paint_instances"):
        paint_labels(tall, labels)
    assert tall.class_counts() == {2: 4}
    labels[2050:] = 2
    assert tall.undo(paint_labels(tall, labels)) is not None
    assert tall.class_counts() == {2: 4}


class Broken:
    """Labels of which the lower part cannot be read, or that are too many to wait for."""

    shape, dtype, ndim = (2060, 70), np.dtype(np.uint8), 2

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __getitem__(self, cut: tuple[slice, slice]) -> np.ndarray:
        if cut[0].start:
            raise self.error
        return np.ones([part.stop - part.start for part in cut], np.uint8)


@pytest.mark.parametrize("error", [OSError("gone"), KeyboardInterrupt()])
def test_an_import_that_ends_early_leaves_nothing(
    tall: AnnotationStore, error: BaseException
) -> None:
    for paint in (lambda: paint_labels(tall, Broken(error)),
                  lambda: paint_instances(tall, Broken(error), 1)):
        with pytest.raises(type(error)):
            paint()
        assert tall.class_counts() == {2: 4}


def test_what_is_too_large_to_be_taken_back_is_told(tall: AnnotationStore) -> None:
    assert tall._writer is not None
    tall._writer.history._max_bytes = 100
    with (pytest.warns(MuvitWarning, match="too large to be taken back"),
          pytest.raises(OSError, match="gone")):
        paint_labels(tall, Broken(OSError("gone")))


def test_polygons_that_end_early_leave_nothing(
    store: AnnotationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = rasterize._draw_block

    def draw(store: AnnotationStore, inside: object, start: tuple[int, int], level: int) -> object:
        if start[0] > 100:
            raise MemoryError
        return real(store, inside, start, level)  # type: ignore[arg-type]

    monkeypatch.setattr(rasterize, "_draw_block", draw)
    with pytest.raises(MemoryError):
        paint_polygons(store, [Polygon((square(5, 250),), 2)])
    assert store.class_counts() == {}


def test_fractions_are_no_labels(store: AnnotationStore) -> None:
    with pytest.raises(InputError, match="whole numbers"):
        paint_labels(store, np.zeros((10, 10)))


def test_labels_of_other_axes_are_refused(store: AnnotationStore) -> None:
    with pytest.raises(InputError, match="need the same axes"):
        paint_labels(store, np.ones((2, 8, 8), np.uint8))
    with pytest.raises(InputError, match="need the same axes"):
        paint_instances(store, np.ones((2, 8, 8), np.uint8), 1)


def test_planes_and_levels_that_are_not_there_are_refused(tmp_path: Path) -> None:
    square = (np.array([[1, 1], [1, 9], [9, 9], [9, 1]], float),)
    with open_annotations(np.zeros((20, 50, 60), np.uint8), path=tmp_path / "volume.ome.zarr",
                          classes=ClassTable(make_classes((1,)), unlabelled=0)) as volume:
        with pytest.raises(InputError, match="counted from 0"):
            paint_polygons(volume, [Polygon(square, 1, plane=20)])
        with pytest.raises(InputError, match="level is 0"):
            paint_polygons(volume, [Polygon(square, 1)], level=0)
        paint_polygons(volume, [Polygon(square, 1, plane=19)])
        assert volume.read(1, (19, 1, 1), (1, 8, 8)).all()
