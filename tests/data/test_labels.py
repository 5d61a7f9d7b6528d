"""Class tables: what label values mean."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_muvit.data.labels import (
    ClassTable,
    LabelClass,
    find_values,
    infer_class_table,
    make_classes,
    read_class_table,
)
from napari_muvit.data.omezarr import create_pyramid
from napari_muvit.data.pyramid import open_pyramid
from napari_muvit.data.stored_chunks import array_blocks
from napari_muvit.errors import InputError, SourceError

TABLE = ClassTable(
    (LabelClass(3, "nucleus", "#ff0000"), LabelClass(1, "rest", "#00ff00")), unlabelled=0,
    background=1,
)


def image(values, dtype=np.uint8):
    """A label image that holds the values."""
    labels = np.zeros((32, 32), dtype)
    labels.ravel()[: len(values)] = values
    labels.ravel()[len(values):] = values[-1]
    return open_pyramid(labels)


@given(st.lists(st.integers(0, 300), min_size=1, max_size=8, unique=True), st.data())
def test_values_and_indices_are_each_others_inverse(values, data):
    unlabelled = data.draw(st.none() | st.integers(301, 400))
    table = ClassTable(make_classes(values), unlabelled)
    index = np.arange(-1 if unlabelled is not None else 0, len(values)).astype(np.int16)
    stored = table.to_values(index)
    assert stored.dtype.kind == "u"
    np.testing.assert_array_equal(table.to_index(stored), index)


def test_index_is_minus_one_where_unlabelled_or_unknown():
    found = TABLE.to_index(np.array([0, 1, 3, 7], np.uint16))
    assert found.dtype == np.int16
    assert found.tolist() == [-1, 1, 0, -1]


def test_values_take_the_smallest_dtype():
    assert TABLE.to_values(np.array([0, 1, -1])).tolist() == [3, 1, 0]
    assert TABLE.dtype == np.uint8
    assert ClassTable(make_classes([300])).dtype == np.uint16
    assert ClassTable(make_classes([5]), unlabelled=-1).dtype == np.int8


def test_foreground_is_what_is_not_background():
    assert TABLE.foreground == (0,)
    assert TABLE.names == ("nucleus", "rest")
    assert len(TABLE) == 2


@pytest.mark.parametrize(("values", "expected"), [
    ((1, 2), 0), ((0, 1), 255), ((0, 255), 256), ((-1, 0), 255), ((), 0),
])
def test_what_is_not_judged_gets_a_value_of_its_own(values, expected):
    table = ClassTable(make_classes(values)).with_unlabelled()
    assert table.unlabelled == expected
    assert table.to_values(np.array([-1])) == expected
    assert table.with_unlabelled() is table
    assert ClassTable(make_classes((1,)), unlabelled=7).with_unlabelled().unlabelled == 7


def test_dict_round_trip():
    assert ClassTable.from_dict(TABLE.to_dict()) == TABLE


@pytest.mark.parametrize("data", [{}, {"classes": [{"value": "x"}]}, {"classes": 5}])
def test_broken_dicts_are_refused_with_what_is_needed(data):
    with pytest.raises(InputError, match="value, name and color"):
        ClassTable.from_dict(data)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"classes": make_classes([1, 1])}, "own value"),
        ({"classes": make_classes([1, 2]), "unlabelled": 2}, "never judged"),
        ({"classes": make_classes([1]), "background": 0}, "one of the classes"),
    ],
)
def test_contradictions_are_refused(kwargs, words):
    with pytest.raises(InputError, match=words):
        ClassTable(**kwargs)


def test_colours_are_checked():
    with pytest.raises(InputError, match="#rrggbb"):
        LabelClass(1, "a", "red")


@pytest.mark.parametrize("fmt", ["0.4", "0.5"])
def test_a_store_brings_its_table(tmp_path, fmt):
    path = tmp_path / "labels.ome.zarr"
    create_pyramid(path, shape=(64, 64), axes="yx", levels=(1, 2), dtype=np.uint8, classes=TABLE,
                   chunk=32, fmt=fmt)
    assert read_class_table(open_pyramid(str(path))) == TABLE
    assert infer_class_table([open_pyramid(str(path))]).unlabelled == 0


def test_images_without_metadata_have_no_table():
    assert read_class_table(image([1, 2])) is None


def test_foreign_labels_have_background_0_unless_told_otherwise():
    dense = infer_class_table([image([0, 2, 5])])
    assert (dense.values, dense.background, dense.unlabelled) == ((0, 2, 5), 0, None)
    sparse = infer_class_table([image([0, 2, 5])], unlabelled=0)
    assert (sparse.values, sparse.background, sparse.unlabelled) == ((2, 5), None, 0)
    named = infer_class_table([image([0, 2, 5])], unlabelled=0, background=5)
    assert (named.values, named.background) == ((2, 5), 5)
    other = infer_class_table([image([0, 2, 255])], unlabelled=255)
    assert (other.values, other.background) == ((0, 2), 0)


def test_several_images_are_taken_together():
    table = infer_class_table([image([0, 1]), image([0, 4])])
    assert table.values == (0, 1, 4)
    assert table.background == 0


def test_names_of_other_programs_are_read():
    found = ClassTable.from_ngff({
        "colors": [{"label-value": 0, "rgba": [1, 2, 3, 255]}, {"label-value": 2}],
        "properties": [{"label-value": 2, "name": "vessel"}],
    })
    assert found is not None
    assert found.values == (0, 2)
    assert found.names == ("background", "vessel")
    assert found.classes[0].color == "#010203"
    assert ClassTable.from_ngff({"version": "0.4"}) is None


def test_values_of_sparse_stores_are_those_of_stored_chunks_and_the_fill_value(tmp_path):
    path = tmp_path / "foreign.zarr"
    arrays = create_pyramid(path, shape=(50_000, 50_000), axes="yx", levels=(1, 64),
                            dtype=np.uint16, fill_value=9)
    arrays[0][40_000, 40_000] = 300
    assert find_values(open_pyramid(str(path))) == [9, 300]


def test_values_of_any_integer_type_are_found():
    for dtype in (np.uint8, np.int32, np.int64):
        assert find_values(image([0, 3], dtype)) == [0, 3]


def test_instances_are_refused():
    with pytest.raises(SourceError, match="one value for each object"):
        infer_class_table([image(np.arange(1000), np.uint16)])


def test_labels_that_are_no_whole_numbers_are_refused():
    with pytest.raises(InputError, match="float32"):
        infer_class_table([open_pyramid(np.zeros((8, 8), np.float32))])


def test_only_unlabelled_is_refused():
    with pytest.raises(InputError, match="no class"):
        infer_class_table([image([0])], unlabelled=0)


def test_stores_that_disagree_are_refused(tmp_path):
    tables = TABLE, ClassTable((LabelClass(3, "gland", "#ff0000"),), unlabelled=0)
    stores = []
    for i, table in enumerate(tables):
        path = tmp_path / f"{i}.zarr"
        create_pyramid(path, shape=(16, 16), axes="yx", levels=1, dtype=np.uint8, classes=table)
        stores.append(open_pyramid(str(path)))
    with pytest.raises(InputError, match="One value must mean one class"):
        infer_class_table(stores)
    with pytest.raises(InputError, match="unlabelled"):
        infer_class_table([stores[0], image([0, 1])])


def test_blocks_cover_an_array_once():
    seen = np.zeros((2, 5, 7), int)
    for start, size in array_blocks(seen.shape, side=3):
        seen[tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))] += 1
    assert (seen == 1).all()
