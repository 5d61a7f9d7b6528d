"""Linear probing: the AUC itself, what is a sample, and that classes are found."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_muvit import api
from napari_muvit.__main__ import main
from napari_muvit.data.label_reader import LabelReader
from napari_muvit.data.labels import ClassTable, make_classes
from napari_muvit.data.omezarr import create_pyramid
from napari_muvit.data.pyramid import open_pyramid
from napari_muvit.errors import InputError
from napari_muvit.inference.probe import (
    Samples,
    fit_logistic,
    patch_classes,
    probe,
    roc_auc,
    split_places,
)

from .models import make_model, save


@pytest.fixture(scope="module")
def model():
    return make_model()


def discs(seed=0, side=160):
    """Bright discs, where the labels are 2; 1 outside."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    labels = np.ones((side, side), np.uint8)
    for y, x in rng.uniform(0, side, (8, 2)):
        labels[(rows - y) ** 2 + (columns - x) ** 2 < (side / 8) ** 2] = 2
    image = (60 + 90 * (labels == 2) + rng.normal(0, 10, labels.shape)).clip(0, 255)
    return image.astype(np.uint8), labels


def test_auc_by_hand():
    # pairs (class, other): 0.8 beats 0.6, 0.3, ties 0.8; 0.4 beats 0.3 alone
    scores = np.array([0.8, 0.4, 0.8, 0.6, 0.3])
    is_class = np.array([True, True, False, False, False])
    assert roc_auc(scores, is_class) == pytest.approx((2.5 + 1) / 6)
    assert roc_auc(-scores, is_class) == pytest.approx(1 - 3.5 / 6)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auc_is_the_share_of_pairs_in_order(pairs):
    scores = np.array([score for score, _ in pairs], float)
    is_class = np.array([flag for _, flag in pairs])
    if is_class.all() or not is_class.any():
        return
    won = [(a > b) + (a == b) / 2 for a in scores[is_class] for b in scores[~is_class]]
    assert roc_auc(scores, is_class) == pytest.approx(np.mean(won))


def test_logistic_regression_finds_a_plane():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 5)).astype(np.float32)
    classes = (x[:, 1] - 2 * x[:, 3] > 0.5).astype(np.int64)
    found = fit_logistic(x[:400], classes[:400], x[400:])
    assert (found.argmax(1) == classes[400:]).mean() >= 0.96
    assert np.allclose(np.exp(found).sum(1), 1, atol=1e-5)


def test_a_patch_has_the_class_of_most_of_it():
    labels = np.zeros((16, 24), np.uint8)
    labels[:8, :8] = 1
    labels[:8, 8:16] = 2
    labels[:2, 8:16] = 1
    labels[8:, :2] = 2  # a quarter of the patch: most is not judged
    table = ClassTable(make_classes((1, 2)), unlabelled=0)
    image = open_pyramid(np.zeros((16, 24), np.uint8))
    reader = LabelReader(open_pyramid(labels).as_labels(), image, table)
    found = patch_classes(reader, np.array([[-0.5, -0.5], [15.5, 23.5]]), (2, 3), 2)
    assert found.tolist() == [[0, 1, -1], [-1, -1, -1]]


def test_held_out_places_are_apart():
    places = np.argwhere(np.ones((32, 24)))
    samples = Samples(places.astype(np.float32), np.zeros(len(places), np.int64), places)
    train, held = split_places(samples, 0.25, seed=1)
    assert len(held.classes) == pytest.approx(0.25 * len(places), rel=0.1)
    cells = [{tuple(place) for place in (part.places // 4).tolist()} for part in (train, held)]
    assert not cells[0] & cells[1]


def test_labels_of_a_volume_are_those_of_the_plane_that_is_probed(model):
    (image, labels), (other, others) = discs(0), discs(1)
    expected = probe(image, labels, model, unlabelled=0, device="cpu")
    volume, planes = np.stack([*[other] * 9, image]), np.stack([*[others] * 9, labels])
    for truth in (planes, labels):
        found = probe(volume, truth, model, unlabelled=0, device="cpu", z=9)
        assert found.auc == pytest.approx(expected.auc)
        assert found.num_test == expected.num_test


@pytest.mark.parametrize("level", [1, 4])
def test_visible_classes_are_found_and_made_up_ones_are_not(model, level):
    side = 160 * level
    image, labels = discs(0, side)
    found = probe(image, labels, model, level, unlabelled=0, device="cpu", test=discs(1, side))
    assert found.auc.keys() == {1, 2}
    assert found.mean_auc > 0.9
    assert found.auc[1] == pytest.approx(found.auc[2])  # two classes mirror each other
    stripes = np.where(np.random.default_rng(2).random((20, 20)) > 0.5, 1, 2).astype(np.uint8)
    noise = np.kron(stripes, np.ones((8, 8), np.uint8))
    chance = probe(np.full((160, 160), 7, np.uint8), noise, model, 1, unlabelled=0, device="cpu")
    assert abs(chance.mean_auc - 0.5) < 0.2


def test_unlabelled_patches_take_no_part(model):
    image, labels = discs()
    whole = probe(image, labels, model, device="cpu", unlabelled=0)
    labels[:, 80:] = 0
    half = probe(image, labels, model, device="cpu", unlabelled=0)
    assert half.num_train + half.num_test == (whole.num_train + whole.num_test) / 2 == 200
    assert half.to_dict() == probe(image, labels, model, device="cpu", unlabelled=0).to_dict()
    assert 0 not in half.classes


def test_what_cannot_be_probed_is_refused(model):
    image, labels = discs()
    with pytest.raises(InputError, match="two classes"):
        probe(image, np.ones_like(labels), model, device="cpu", unlabelled=0)
    with pytest.raises(InputError, match="held_out is 1"):
        probe(image, labels, model, held_out=1.0)
    with pytest.raises(InputError, match="level is 3"):
        probe(image, labels, model, 3, device="cpu", unlabelled=0)


def test_the_door_prints_what_api_returns(model, tmp_path, capsys):
    image, labels = discs()
    table = ClassTable(make_classes((1, 2), names={2: "disc"}), unlabelled=0)
    for name, pixels, classes in (("i", image, None), ("l", labels, table)):
        [array] = create_pyramid(
            tmp_path / f"{name}.ome.zarr", shape=pixels.shape, axes="yx", levels=(1,),
            dtype=np.uint8, classes=classes)
        array[:] = pixels
    folder = save(model, tmp_path / "model")
    paths = [str(tmp_path / "i.ome.zarr"), str(tmp_path / "l.ome.zarr")]
    flags = ["probe", paths[0], "--labels", paths[1], "--model", str(folder), "--level", "4",
             "--device", "cpu"]
    assert main([*flags, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    wanted = api.probe(*paths, folder, 4, device="cpu")
    assert printed["auc"] == pytest.approx(wanted.to_dict()["auc"])
    assert not math.isnan(wanted.mean_auc)
    assert main(flags) == 0
    text = capsys.readouterr().out
    assert "disc" in text
    assert "mean ROC-AUC" in text
