"""Scores: what is counted, what is left out, and what cannot be compared."""

from __future__ import annotations

import json
import math

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_muvit.data.labels import ClassTable, make_classes
from napari_muvit.data.omezarr import create_pyramid
from napari_muvit.data.pyramid import pyramid_from_arrays
from napari_muvit.errors import InputError
from napari_muvit.inference import scores
from napari_muvit.inference.scores import evaluate


def labels(shape=(60, 50), high=4, seed=0):
    return np.random.default_rng(seed).integers(0, high, shape).astype(np.uint8)


def plain_dice(prediction, truth, value):
    a, b = prediction == value, truth == value
    return 2 * (a & b).sum() / (a.sum() + b.sum())


label_images = hnp.arrays(np.uint8, (7, 9), elements=st.integers(0, 4))


@settings(max_examples=60, deadline=None)
@given(label_images, label_images)
def test_scores_are_those_of_the_definition(prediction, truth):
    found = evaluate(prediction, truth)
    present = np.union1d(prediction, truth)
    assert list(found.dice) == present.tolist()
    for value in present.tolist():
        assert found.dice[value] == pytest.approx(plain_dice(prediction, truth, value))
        assert found.iou[value] == pytest.approx(found.dice[value] / (2 - found.dice[value]))
    counted = [dice for value, dice in found.dice.items() if value != 0]  # 0 is background
    expected = np.mean(counted) if counted else math.nan
    assert found.mdsc == pytest.approx(expected, nan_ok=True)
    assert found.num_pixels == truth.size


def test_a_perfect_prediction_scores_one():
    truth = labels()
    found = evaluate(truth, truth)
    assert found.mdsc == 1
    assert set(found.iou.values()) == {1.0}


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "int64", "uint64"])
def test_labels_of_any_whole_numbers_are_scored_alike(dtype):
    truth, prediction = labels(), labels(seed=1)
    expected = evaluate(prediction, truth).confusion
    assert evaluate(prediction.astype(dtype), truth).confusion == expected
    assert evaluate(prediction, truth.astype(dtype)).confusion == expected


def test_unlabelled_truth_is_left_out():
    truth, prediction = labels(), labels(seed=1)
    judged = truth != 0
    found = evaluate(prediction, truth, unlabelled=0)
    assert found.num_pixels == judged.sum()
    for value in (1, 2, 3):
        assert found.dice[value] == pytest.approx(
            plain_dice(prediction[judged], truth[judged], value))
    nothing = evaluate(prediction, np.zeros_like(truth), unlabelled=0)
    assert math.isnan(nothing.mdsc)
    assert json.loads(json.dumps(nothing.to_dict()))["mdsc"] is None


def test_what_is_not_predicted_is_wrong_but_no_class():
    truth, prediction = labels(high=3) + 1, labels(seed=1)
    found = evaluate(prediction, truth, unlabelled=0)
    assert list(found.dice) == [1, 2, 3]
    expected = [plain_dice(prediction, truth, value) for value in (1, 2, 3)]
    assert found.mdsc == pytest.approx(np.mean(expected))
    assert found.per_image[0].mdsc == pytest.approx(np.mean(expected))
    assert found.num_missing == (prediction == 0).sum()
    assert found.to_dict()["unlabelled"] == [0]
    assert f"{found.num_missing} judged pixels are not predicted" in str(found)


@pytest.mark.parametrize(("truth_table", "ignored"), [
    (None, (0,)), (ClassTable(make_classes((1, 2, 3))), (0,)),
    (ClassTable(make_classes((0, 1, 2, 3), 0), background=0), ()),
])
def test_the_prediction_says_what_is_unlabelled_where_the_truth_does_not(
    tmp_path, truth_table, ignored,
):
    truth, prediction = labels(), labels(seed=1)
    stored = write_labels(tmp_path / "p.ome.zarr", prediction,
                          ClassTable(make_classes((1, 2, 3)), unlabelled=0))
    wanted = truth if truth_table is None else write_labels(
        tmp_path / "t.ome.zarr", truth, truth_table)
    found = evaluate(stored, wanted)
    assert found.unlabelled == ignored
    assert found.num_pixels == ((truth != 0).sum() if ignored else truth.size)


def test_the_store_says_what_is_unlabelled_and_names_the_classes(tmp_path):
    truth = labels()
    table = ClassTable(make_classes((1, 2, 3), names={1: "cortex"}), unlabelled=0)
    array, = create_pyramid(tmp_path / "t.ome.zarr", shape=truth.shape, axes="yx", levels=(1,),
                            dtype=np.uint8, classes=table)
    array[:] = truth
    found = evaluate(truth, str(tmp_path / "t.ome.zarr"))
    assert found.num_pixels == (truth != 0).sum()
    assert found.classes[1] == "cortex"
    assert 0 not in found.dice


def test_a_class_absent_from_both_is_not_counted(tmp_path):
    truth = np.where(labels() > 1, 1, 2).astype(np.uint8)
    table = ClassTable(make_classes((1, 2, 3)))
    array, = create_pyramid(tmp_path / "t.ome.zarr", shape=truth.shape, axes="yx", levels=(1,),
                            dtype=np.uint8, classes=table)
    array[:] = truth
    found = evaluate(truth, str(tmp_path / "t.ome.zarr"))
    assert found.mdsc == 1
    assert 3 in found.classes
    assert 3 not in found.dice


def write_labels(path, pixels, table):
    array, = create_pyramid(path, shape=pixels.shape, axes="yx", levels=(1,), dtype=np.uint8,
                            classes=table)
    array[:] = pixels
    return str(path)


@pytest.mark.parametrize(("table", "unlabelled", "background"), [
    (None, None, 0),
    (None, 0, None),
    (ClassTable(make_classes((0, 1, 2, 3), 2), background=2), None, 2),
    (ClassTable(make_classes((0, 1, 2, 3))), None, None),
    (ClassTable(make_classes((1, 2, 3), 1), unlabelled=0, background=1), None, 1),
])
def test_background_is_not_in_the_mean(tmp_path, table, unlabelled, background):
    truth, prediction = labels(), labels(seed=1)
    given = truth if table is None else write_labels(tmp_path / "t.ome.zarr", truth, table)
    found = evaluate(prediction, given, unlabelled)
    assert found.background == (() if background is None else (background,))
    counted = [dice for value, dice in found.dice.items() if value != background]
    assert found.mdsc == pytest.approx(np.mean(counted))
    assert found.per_image[0].mdsc == pytest.approx(found.mdsc)
    if background is not None:
        assert background in found.dice
        assert "background, not in mDSC" in str(found)


def test_background_of_the_prediction_and_of_the_caller_act(tmp_path):
    truth, prediction = labels(), labels(seed=1)
    table = ClassTable(make_classes((0, 1, 2, 3), 3), background=3)
    stored = write_labels(tmp_path / "p.ome.zarr", prediction, table)
    assert evaluate(stored, truth).background == (3,)
    assert evaluate(stored, truth, background=1).background == (1,)


def test_nothing_but_background_has_no_mean():
    empty = np.zeros((8, 8), np.uint8)
    found = evaluate(empty, empty)
    assert found.dice == {0: 1.0}
    assert math.isnan(found.mdsc)


@pytest.mark.parametrize("level", [2, 3, 8])
@pytest.mark.parametrize("has_size", [True, False])
def test_a_coarser_prediction_is_aligned_by_its_scale(level, has_size):
    coarse = labels((25, 31))
    truth = np.repeat(np.repeat(coarse, level, 0), level, 1)[:-1, :-1]
    if has_size:
        prediction = pyramid_from_arrays([coarse], pixel_size=(0.25 * level, 0.25 * level))
        # aligned outer edges: an array without translation starts at 0, half a pixel off
        found = None
        with pytest.raises(InputError, match="cover"):
            found = evaluate(prediction, pyramid_from_arrays([truth], pixel_size=(1.0, 1.0)))
        assert found is None
    found = evaluate(coarse, truth)
    assert found.mdsc == 1
    assert found.num_pixels == truth.size


def test_scale_and_translation_of_a_store_align_it(tmp_path):
    coarse = labels((25, 31))
    truth = np.repeat(np.repeat(coarse, 8, 0), 8, 1)[:197, :243]
    array, = create_pyramid(
        tmp_path / "p.ome.zarr", shape=coarse.shape, axes="yx", levels=(1,), dtype=np.uint8,
        pixel_size=(4.0, 4.0), translation=(1.75, 1.75), is_labels=True,
    )
    array[:] = coarse
    found = evaluate(str(tmp_path / "p.ome.zarr"),
                     pyramid_from_arrays([truth], pixel_size=(0.5, 0.5)))
    assert found.mdsc == 1


def test_a_finer_prediction_is_taken_at_the_truths_pixels():
    truth = labels((20, 30))
    fine = np.repeat(np.repeat(truth, 4, 0), 4, 1)
    assert evaluate(fine, truth).mdsc == 1


@pytest.mark.parametrize("shape", [(60, 51), (59, 50), (31, 20), (10, 60, 50)])
def test_refuses_images_of_another_place(shape):
    with pytest.raises(InputError, match="same"):
        evaluate(labels(shape), labels())


def test_refuses_what_is_no_label_image():
    with pytest.raises(InputError, match="whole number"):
        evaluate(np.zeros((5, 5), np.float32), labels((5, 5)))
    with pytest.raises(InputError, match="channels"):
        evaluate(np.zeros((3, 60, 50), np.uint8), labels())
    with pytest.raises(InputError, match="needs its own truth"):
        evaluate([labels()], [labels(), labels()])


def test_several_images_are_pooled_and_scored_alone():
    truths = [labels(seed=1), labels((40, 80), seed=2)]
    predictions = [labels(seed=3), labels((40, 80), seed=4)]
    found = evaluate(predictions, truths)
    flat = [np.concatenate([a.ravel() for a in images]) for images in (predictions, truths)]
    assert found.dice[2] == pytest.approx(plain_dice(*flat, 2))
    assert len(found.per_image) == 2
    assert found.per_image[1].dice[2] == pytest.approx(plain_dice(predictions[1], truths[1], 2))
    assert found.to_dict()["per_image"][0]["num_pixels"] == 3000


def test_lazy_predictions_and_blocks_change_nothing(monkeypatch):
    truth, prediction = labels((300, 200)), labels((300, 200), seed=1)
    whole = evaluate(prediction, truth).confusion
    monkeypatch.setattr(scores, "BLOCK_PIXELS", 64 * 64)
    assert evaluate(da.from_array(prediction, chunks=(70, 90)), truth).confusion == whole
    assert evaluate(prediction.astype(np.int32) * 1000, truth.astype(np.uint16) * 1000).dice == {
        value * 1000: dice for value, dice in evaluate(prediction, truth).dice.items()}


def test_every_time_point_is_scored(tmp_path):
    truth, prediction = labels((3, 20, 30)), labels((3, 20, 30), seed=1)
    for name, pixels in (("t", truth), ("p", prediction)):
        array, = create_pyramid(tmp_path / f"{name}.ome.zarr", shape=pixels.shape, axes="tyx",
                                levels=(1,), dtype=np.uint8, is_labels=True)
        array[:] = pixels
    found = evaluate(str(tmp_path / "p.ome.zarr"), str(tmp_path / "t.ome.zarr"))
    assert found.num_pixels == truth.size
    assert found.dice[1] == pytest.approx(plain_dice(prediction, truth, 1))
