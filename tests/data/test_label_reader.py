"""Labels that belong to a crop, and where they are."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from napari_muvit.data.label_reader import LabelReader, label_places, label_ratio
from napari_muvit.data.labels import ClassTable, make_classes
from napari_muvit.data.omezarr import create_pyramid
from napari_muvit.data.pyramid import open_pyramid, pyramid_from_arrays
from napari_muvit.data.stored_chunks import stored_blocks
from napari_muvit.errors import ChannelError, InputError

SHAPE = (200, 320)
TABLE = ClassTable(make_classes(range(1, 200)), unlabelled=0)


def box(low, high):
    return np.array([low, high], float)


@pytest.fixture
def labels():
    return np.random.default_rng(0).integers(0, 200, SHAPE).astype(np.uint8)


def reader(labels):
    return LabelReader(open_pyramid(labels), open_pyramid(np.zeros(SHAPE, np.uint8)), TABLE)


def test_labels_of_a_crop_are_those_of_its_pixels(labels):
    found = reader(labels).read(box((9.5, 19.5), (73.5, 83.5)), (64, 64))
    np.testing.assert_array_equal(found, labels[10:74, 20:84].astype(np.int16) - 1)


def test_pixels_outside_are_not_judged(labels):
    found = reader(labels // 2 + 1).read(box((-10.5, 309.5), (21.5, 341.5)), (32, 32))
    assert (found[:10] == -1).all()
    assert (found[:, 10:] == -1).all()
    assert (found[10:, :10] >= 0).all()


def test_coarse_views_look_labels_up_and_never_average(labels):
    coarse = reader(labels).read(box((-0.5, -0.5), (199.5, 319.5)), (50, 80))
    assert coarse.shape == (50, 80)
    np.testing.assert_array_equal(coarse, labels[2::4, 2::4].astype(np.int16) - 1)


def test_coarse_views_of_large_labels_use_a_thinned_copy(labels, monkeypatch):
    from napari_muvit.data import label_reader

    plain = reader(labels)
    full = plain.read(box((-0.5, -0.5), (199.5, 319.5)), (50, 80))
    monkeypatch.setattr(label_reader, "READ_PIXELS", 1000)
    thin = reader(labels)
    np.testing.assert_array_equal(thin.read(box((-0.5, -0.5), (199.5, 319.5)), (50, 80)), full)
    assert pickle.loads(pickle.dumps(thin))._thinned == {}


def test_arrays_of_the_right_scale_are_used(labels):
    half = np.zeros((100, 160), np.uint8) + 7
    pyramid = pyramid_from_arrays([labels, half], is_labels=True)
    both = LabelReader(pyramid, open_pyramid(np.zeros(SHAPE, np.uint8)), TABLE)
    assert (both.read(box((-0.5, -0.5), (127.5, 127.5)), (64, 64)) == 6).all()


def test_coarser_labels_need_scale_metadata(labels):
    image = pyramid_from_arrays([np.zeros(SHAPE, np.uint8)], pixel_size=(0.5, 0.5))
    coarse = labels[::2, ::2]
    bare = open_pyramid(coarse)
    with pytest.raises(InputError, match="coarser by 2 x 2"):
        label_ratio(bare, image)
    stated = pyramid_from_arrays([coarse], pixel_size=(1.0, 1.0))
    assert label_ratio(stated, image).tolist() == [2, 2]
    wrong = pyramid_from_arrays([coarse], pixel_size=(0.7, 0.7))
    with pytest.raises(InputError, match="same pixels"):
        label_ratio(wrong, image)
    found = LabelReader(stated, image, TABLE).read(box((19.5, 39.5), (51.5, 71.5)), (32, 32))
    np.testing.assert_array_equal(found[::2, ::2], coarse[10:26, 20:36].astype(np.int16) - 1)
    np.testing.assert_array_equal(found[::2, ::2], found[1::2, 1::2])


def test_labels_of_another_shape_or_with_colours_are_refused(labels):
    with pytest.raises(InputError, match=r"\(100, 100\).*\(200, 320\)"):
        label_ratio(open_pyramid(labels[:100, :100]), open_pyramid(labels))
    with pytest.raises(ChannelError, match="3 channels"):
        label_ratio(open_pyramid(np.stack([labels] * 3, -1)), open_pyramid(labels))
    with pytest.raises(InputError, match="spatial axes"):
        label_ratio(open_pyramid(np.stack([labels] * 9)), open_pyramid(labels))


def test_annotated_places_of_a_dense_array():
    labels = np.zeros(SHAPE, np.uint8)
    labels[40:50, 100:110] = 1
    labels[150, 200] = 2
    table = ClassTable(make_classes([1, 2], 1), unlabelled=0, background=1)
    dense = LabelReader(open_pyramid(labels), open_pyramid(labels), table)
    annotated, foreground, coverage = label_places(dense)
    assert coverage == pytest.approx(101 / labels.size)
    points = np.argwhere(labels)
    assert annotated.holds(points).all()
    assert annotated.area < 10 * 16 * 16
    assert foreground.holds((150, 200))
    assert not foreground.holds((45, 105))


@pytest.mark.parametrize("fmt", ["0.4", "0.5"])
def test_only_stored_chunks_are_looked_at(tmp_path, fmt, monkeypatch):
    side = 40_000
    path = tmp_path / "labels.ome.zarr"
    table = ClassTable(make_classes([1]), unlabelled=0)
    arrays = create_pyramid(path, shape=(side, side), axes="yx", levels=(1, 8), dtype=np.uint8,
                            classes=table, chunk=512, fmt=fmt)
    arrays[0][30_000:30_010, 777:800] = 1
    pyramid = open_pyramid(str(path))
    assert stored_blocks(pyramid, 0) == [
        ((29_696, 512), (512, 512)),
    ]
    image = pyramid_from_arrays([np.broadcast_to(np.uint8(0), (side, side))])
    read = []
    original = type(pyramid).read
    monkeypatch.setattr(
        type(pyramid), "read", lambda self, *args: read.append(args) or original(self, *args)
    )
    annotated, _, coverage = label_places(LabelReader(pyramid, image, table))
    assert len(read) == 1
    assert coverage == pytest.approx(230 / side**2)
    assert annotated.holds((30_005, 780))
    assert annotated.area <= 4 * 20 * 20 * 4


def test_sharded_stores_are_searched_by_shard(tmp_path):
    path = tmp_path / "labels.ome.zarr"
    arrays = create_pyramid(path, shape=(3, 300, 300), axes="zyx", levels=1, dtype=np.uint8,
                            classes=ClassTable(make_classes([1]), 0), chunk=(1, 64, 64),
                            shard=(1, 128, 128))
    arrays[0][1, 290, 10] = 1
    assert stored_blocks(open_pyramid(str(path)), 0) == [((1, 256, 0), (1, 44, 128))]


def test_large_dense_labels_are_scanned_on_a_coarser_array():
    labels = np.zeros((64, 64), np.uint8)
    labels[:16] = 1
    pyramid = pyramid_from_arrays([labels, labels[::2, ::2]], is_labels=True)
    table = ClassTable(make_classes([1]), unlabelled=0)
    annotated, _, coverage = label_places(LabelReader(pyramid, pyramid, table), max_pixels=2000)
    assert annotated.cell.tolist() == [32, 32]
    assert not annotated.mask[1].any()
    assert coverage == pytest.approx(0.25)


def test_what_is_too_large_to_look_at_may_hold_annotations(tmp_path):
    path = tmp_path / "labels.zarr"
    table = ClassTable(make_classes([1]), unlabelled=0)
    arrays = create_pyramid(path, shape=(64, 256), axes="yx", levels=1, dtype=np.uint8, chunk=32,
                            classes=table)
    arrays[0][:] = 1
    pyramid = open_pyramid(str(path))
    arrays[0][:, :32] = 0
    reader = LabelReader(pyramid, pyramid, table)
    annotated, foreground, coverage = label_places(reader, max_pixels=4096)
    assert annotated.mask[:, 2:].all()
    assert foreground.mask.any()
    assert not foreground.mask.all()
    assert 0.4 < coverage <= 1


def test_thinned_copies_of_different_arrays_are_kept_apart(monkeypatch):
    from napari_muvit.data import label_reader

    fine, half = np.full(SHAPE, 3, np.uint8), np.full((100, 160), 7, np.uint8)
    pyramid = pyramid_from_arrays([fine, half], is_labels=True)
    monkeypatch.setattr(label_reader, "READ_PIXELS", 10)
    both = LabelReader(pyramid, open_pyramid(fine), TABLE)
    # four fine pixels apart in an array that is not twice as coarse, then four of the coarse one
    whole = box((-0.5, -0.5), (199.5, 319.5))
    both._thin(0, [np.arange(0, n, 4) for n in fine.shape])
    assert (both.read(whole, (25, 40)) == 6).all()


def test_thinned_volumes_leave_planes_out(monkeypatch):
    from napari_muvit.data import label_reader

    labels = np.random.default_rng(0).integers(1, 4, (9, 20, 24)).astype(np.uint8)
    volume = pyramid_from_arrays([labels], axes="zyx", is_labels=True)
    found = LabelReader(volume, open_pyramid(np.zeros((9, 20, 24), np.uint8)), TABLE)
    places = [np.arange(0, n, 2) for n in labels.shape]
    monkeypatch.setattr(label_reader, "READ_PIXELS", 10)
    middles = [np.minimum(axis + 1, n - 1) for axis, n in zip(places, labels.shape, strict=True)]
    np.testing.assert_array_equal(found._look_up(0, places), labels[np.ix_(*middles)])


def test_blocks_of_a_range_of_planes_are_counted_from_its_first(tmp_path):
    path = tmp_path / "labels.ome.zarr"
    arrays = create_pyramid(path, shape=(16, 64, 64), axes="zyx", levels=1, dtype=np.uint8,
                            classes=TABLE, chunk=(4, 32, 32))
    arrays[0][1, 5, 5] = 9
    arrays[0][12:14, 10, 10] = 3
    part = open_pyramid(str(path), z=slice(10, 15))
    assert stored_blocks(part, 0) == [((2, 0, 0), (3, 32, 32))]
    annotated, _, coverage = label_places(LabelReader(part, part, TABLE))
    assert coverage == pytest.approx(2 / (5 * 64 * 64))
    assert annotated.holds((2, 10, 10))
    # chunks of other planes do not count for one plane
    assert stored_blocks(open_pyramid(str(path), z=12), 0) == [((0, 0), (32, 32))]
    assert stored_blocks(open_pyramid(str(path), z=5), 0) == []
