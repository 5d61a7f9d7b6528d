"""Coarse crops encoded once give what encoding them for every tile gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from napari_muvit.data.pyramid import open_pyramid
from napari_muvit.inference.context import ContextPredictor
from napari_muvit.inference.device import Computing
from napari_muvit.inference.engine import Engine
from napari_muvit.inference.job import plan_job
from napari_muvit.inference.model_source import parse_model
from napari_muvit.inference.predictor import ModelPredictor
from napari_muvit.inference.spec import read_spec

from .models import make_model


@pytest.fixture(autouse=True)
def _no_model_is_small(monkeypatch):
    monkeypatch.setattr("napari_muvit.inference.spec.is_small", lambda *_: False)


@pytest.fixture(scope="module")
def model():
    return make_model((1, 2, 4), attention="coarse_to_fine")


def image(shape=(120, 70), seed=0):
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def whole(job):
    return tuple(slice(0, n) for n in job.plan.shape)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_cached_contexts_change_nothing(model, batch_size, monkeypatch):
    pyramid = open_pyramid(image())
    spec = read_spec(model, lambda _: "")
    plain = plan_job(pyramid, ModelPredictor(model, spec, Computing(torch.device("cpu"))),
                     tissue="none")
    expected = Engine(plain).compute(whole(plain)).probabilities
    encoded = []
    encode = type(model.encoder).encode_context

    def counting(self, x, boxes):
        encoded.append(len(x))
        return encode(self, x, boxes)

    monkeypatch.setattr(type(model.encoder), "encode_context", counting)
    cached = plan_job(pyramid, parse_model(model, device="cpu"), tissue="none",
                      batch_size=batch_size)
    assert isinstance(cached.model, ContextPredictor)
    found = Engine(cached).compute(whole(cached)).probabilities
    np.testing.assert_allclose(found, expected, atol=1e-5)
    contexts = {cached.plan.tile(index).context for index in np.ndindex(cached.plan.num_tiles)}
    assert encoded == [1] * len(contexts)
    assert len(contexts) < np.prod(cached.plan.num_tiles)


def test_parts_equal_the_whole_here_too(model):
    job = plan_job(open_pyramid(image()), parse_model(model, device="cpu"), tissue="none")
    expected = Engine(job).compute(whole(job)).probabilities
    region = (slice(24, 72), slice(24, 70))
    part = Engine(job).compute(region).probabilities
    assert part.tobytes() == expected[(slice(None), *region)].tobytes()


def test_other_models_are_left_as_they_are():
    assert not isinstance(parse_model(make_model(), device="cpu"), ContextPredictor)
    one_level = make_model((1,), attention="coarse_to_fine")
    assert not isinstance(parse_model(one_level, device="cpu"), ContextPredictor)
