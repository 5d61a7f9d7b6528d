"""Real models at the engine's door: folders, devices, averaging, one copy in a process."""

from __future__ import annotations

import dataclasses
import pickle
import threading

import numpy as np
import pytest
import torch

from napari_muvit.config.options import PRESETS
from napari_muvit.data.pyramid import open_pyramid
from napari_muvit.errors import CheckpointError, InputError, RunError
from napari_muvit.inference.average import TURNS
from napari_muvit.inference.device import Computing, is_small
from napari_muvit.inference.engine import Engine
from napari_muvit.inference.job import default_batch, plan_job
from napari_muvit.inference.lazy import predict
from napari_muvit.inference.model_source import ModelSource, open_predictor, parse_model
from napari_muvit.inference.predictor import ModelPredictor
from napari_muvit.inference.spec import read_spec
from napari_muvit.models.encoder import Encoder

from .models import TABLE, make_model, save
from .stubs import PixelModel, make_spec


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(make_model(), tmp_path_factory.mktemp("run") / "model")


def image(shape=(100, 90), seed=0):
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def test_a_folder_its_parent_and_the_loaded_model_agree(folder):
    from napari_muvit.models.checkpoint import load_model

    found = [
        predict(image(), model, tissue="none", probabilities=True, device="cpu").compute()
        for model in (folder, folder.parent, load_model(folder))
    ]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_allclose(found[0].sum(axis=0), 1, atol=1e-5)
    labels = predict(image(), folder, tissue="none", device="cpu").compute()
    values = np.array(TABLE.values)
    np.testing.assert_array_equal(labels, values[found[0].argmax(axis=0)])


def test_the_spec_is_what_the_folder_says(folder):
    spec = parse_model(folder, device="cpu").spec
    assert spec.levels == (1, 4)
    assert spec.crop_size == (32, 32)
    assert spec.class_table == TABLE
    assert spec.normalization["kind"] == "percentile"
    assert spec.scaled_axes == (0, 1)
    assert spec.fingerprint


def test_a_model_is_loaded_once_in_a_process_and_travels_by_its_path(folder):
    source = ModelSource(str(folder), device="cpu")
    copy = pickle.loads(pickle.dumps(source))
    assert open_predictor(source) is open_predictor(copy)
    assert len(pickle.dumps(source)) < 10_000


def test_other_weights_are_another_model(folder, tmp_path):
    other = save(make_model(seed=1), tmp_path / "other")
    prints = {parse_model(path, device="cpu").spec.fingerprint for path in (folder, other)}
    assert len(prints) == 2


def test_new_weights_in_the_same_folder_are_seen_and_never_mixed_in(folder, tmp_path):
    place = save(make_model(seed=1), tmp_path / "run" / "model")
    begun = parse_model(place, device="cpu")
    first = open_predictor(begun)
    save(make_model(seed=2), place)
    newer = parse_model(place, device="cpu")
    assert newer.spec.fingerprint != begun.spec.fingerprint
    assert open_predictor(newer) is not first
    assert open_predictor(begun) is first
    with pytest.raises(CheckpointError, match="replaced since"):
        open_predictor(dataclasses.replace(begun, mark="other"))


def test_boxes_far_from_the_origin_lose_no_precision(folder):
    from napari_muvit.models.checkpoint import load_model

    model = load_model(folder)
    spec = read_spec(model, lambda _: "")
    predictor = ModelPredictor(model, spec, Computing(torch.device("cpu")))
    rng = np.random.default_rng(0)
    x = rng.random((1, 2, 1, 32, 32)).astype(np.float32)
    bbox = np.array([[[[48, 48], [80, 80]], [[0, 0], [128, 128]]]], np.float64)
    valid = np.ones((1, 2, 32, 32), bool)
    near = predictor(x, bbox, valid)
    np.testing.assert_allclose(predictor(x, bbox + 150_000, valid), near, atol=1e-6)


def test_one_thread_at_a_time_uses_a_model():
    running, most = 0, 0
    lock = threading.Lock()

    class Watching(PixelModel):
        def judge(self, x, bbox):
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            threading.Event().wait(0.002)
            with lock:
                running -= 1
            return x[:, 0, 0]

    model = Watching(make_spec())
    arrays = [predict(image(seed=i), model, tissue="none") for i in range(4)]
    import dask

    dask.compute(*arrays, scheduler="threads", num_workers=4)
    assert most == 1


def test_refuses_what_is_no_model(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        predict(image(), tmp_path / "nowhere")
    with pytest.raises(InputError, match="model is int"):
        predict(image(), 5)
    with pytest.raises(CheckpointError, match="does not segment"):
        predict(image(), torch.nn.Linear(2, 2))
    with pytest.raises(RunError, match="cannot be used"):
        parse_model(make_model(), device="cuda:7")


def test_averaging_over_flips_keeps_an_equivariant_model_as_it_is():
    pixels = image()
    turned = predict(pixels, PixelModel(make_spec((1, 4))), tissue="none", probabilities=True,
                     average=8)
    single = predict(pixels, PixelModel(make_spec((1, 4))), tissue="none", probabilities=True)
    np.testing.assert_allclose(turned.compute(), single.compute(), atol=1e-6)


@pytest.mark.parametrize("turn", TURNS)
def test_boxes_turn_with_the_pixels(turn):
    places = np.stack(np.meshgrid(np.arange(64), np.arange(64), indexing="ij"))
    fine = places[:, 8:24, 30:46]
    bbox = np.array([[[[8, 30], [24, 46]], [[0, 0], [64, 64]]]]) - 0.5
    (low, high), (whole_low, whole_high) = turn.apply_boxes(bbox)[0]
    np.testing.assert_allclose((whole_low, whole_high), bbox[0, 1])
    start = (low - whole_low).astype(int)
    size = (high - low).astype(int)
    turned = turn.apply(places)[:, start[0]:start[0] + size[0], start[1]:start[1] + size[1]]
    np.testing.assert_array_equal(turned, turn.apply(fine))
    np.testing.assert_array_equal(turn.undo(turn.apply(fine)), fine)


def test_averaging_changes_a_real_model_and_counts(folder):
    pyramid = open_pyramid(image())
    once = predict(pyramid, folder, tissue="none", probabilities=True, device="cpu").compute()
    four = predict(pyramid, folder, tissue="none", probabilities=True, average=4,
                   device="cpu").compute()
    assert np.abs(once - four).max() > 1e-4
    np.testing.assert_allclose(four.sum(axis=0), 1, atol=1e-5)
    stub = PixelModel(make_spec())
    predict(image((32, 32)), stub, tissue="none", average=4).compute()
    assert stub.calls == 4
    with pytest.raises(InputError, match="average is 3"):
        predict(image(), PixelModel(make_spec()), average=3)
    with pytest.raises(InputError, match="90 degrees"):
        predict(image(), PixelModel(make_spec(size=(32, 16))), average=8)


@pytest.mark.parametrize("attention", ["all", "coarse_to_fine"])
def test_tiles_of_a_small_model_are_computed_together(attention):
    pyramid = open_pyramid(image((150, 130)))
    model = parse_model(make_model(attention=attention), device="cpu")
    assert type(model) is ModelPredictor
    job = plan_job(pyramid, model, tissue="none")
    assert job.batch_size == 4
    region = tuple(slice(0, n) for n in job.plan.shape)
    found = Engine(job).compute(region).probabilities
    alone = Engine(plan_job(pyramid, model, tissue="none", batch_size=1)).compute(region)
    np.testing.assert_allclose(found, alone.probabilities, atol=1e-6)
    part = (slice(24, 72), slice(24, 130))
    again = Engine(job).compute(part).probabilities
    assert again.tobytes() == found[(slice(None), *part)].tobytes()


def test_an_average_takes_as_many_tiles_as_its_model():
    model = parse_model(make_model(), device="cpu", average=2)
    assert default_batch(model) == 4
    model.predictor.computing = Computing(torch.device("meta"))
    assert default_batch(model) == 8


@pytest.mark.parametrize(("side", "wanted"), [(64, True), (96, False), (128, False)])
def test_presets_of_small_crops_are_small_models(side, wanted):
    sizes = PRESETS["tiny"]
    encoder = Encoder(3, (1, 4, 16), sizes["patch_size"], dim=sizes["dim"],
                      heads=sizes["heads"], num_layers=1, ndim=2)
    assert is_small(encoder, (side, side)) == wanted
