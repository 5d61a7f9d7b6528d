"""The lazy array: cheap to build, right in every slice, on every scheduler."""

from __future__ import annotations

import time
import tracemalloc

import dask
import numpy as np
import pytest

from napari_muvit.data.pyramid import open_pyramid
from napari_muvit.errors import InputError, RunError, SourceError
from napari_muvit.inference.job import Job, plan_job
from napari_muvit.inference.lazy import lazy_array, predict
from napari_muvit.inference.predictor import FunctionPredictor

from .models import make_model, save
from .stubs import TABLE, BlurModel, ContextModel, PixelModel, make_spec, thirds


def image(shape=(150, 130), seed=0):
    return np.random.default_rng(seed).random(shape).astype(np.float32)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of two by two cells, so that small images have several."""
    from napari_muvit.inference import job

    monkeypatch.setattr(job, "choose_block", lambda step, *_: tuple(2 * s for s in step))


def test_labels_are_class_table_values():
    pixels = image()
    labels = predict(pixels, PixelModel(make_spec()), tissue="none")
    assert labels.dtype == np.uint8
    found = labels.compute()
    values = np.array(TABLE.values)[thirds(pixels[None])[0].argmax(axis=0)]
    np.testing.assert_array_equal(found, values)


def test_probabilities_and_confidence():
    pixels = image()
    many = predict(pixels, BlurModel(make_spec()), tissue="none", probabilities=True)
    assert many.shape == (3, 150, 130)
    best = predict(pixels, BlurModel(make_spec()), tissue="none", confidence=True).compute()
    np.testing.assert_array_equal(best, many.compute().max(axis=0))
    with pytest.raises(InputError, match="exclude"):
        predict(pixels, PixelModel(make_spec()), probabilities=True, confidence=True)


@pytest.mark.usefixtures("small_blocks")
def test_every_slice_equals_the_whole_on_every_scheduler():
    pixels = image((300, 260))
    lazy = predict(pixels, ContextModel(make_spec((1, 4, 16))), tissue="none", probabilities=True)
    assert lazy.npartitions > 20
    whole = lazy.compute(scheduler="sync")
    assert lazy.compute(scheduler="threads", num_workers=4).tobytes() == whole.tobytes()
    for part in [(slice(100, 140), slice(0, 90)), (slice(7, 8), slice(200, 260))]:
        fresh = predict(pixels, ContextModel(make_spec((1, 4, 16))), tissue="none",
                        probabilities=True)
        np.testing.assert_array_equal(fresh[(slice(None), *part)].compute(),
                                      whole[(slice(None), *part)])


def test_only_what_is_asked_for_is_computed():
    model = PixelModel(make_spec(size=256))
    lazy = predict(np.zeros((4000, 4000), np.uint8), model, tissue="none")
    assert min(lazy.chunks[0][0], lazy.chunks[1][0]) >= 1024
    assert model.tiles == 0
    lazy[:10, :10].compute()
    assert model.tiles <= 49


def test_a_plane_model_predicts_every_plane_and_time_point():
    from napari_muvit.data.pyramid import pyramid_from_arrays

    volume = image((12, 40, 50))
    labels = predict(volume, PixelModel(make_spec()), tissue="none").compute()
    single = predict(volume[1], PixelModel(make_spec()), tissue="none").compute()
    assert labels.shape == (12, 40, 50)
    np.testing.assert_array_equal(labels[1], single)
    one = predict(volume, PixelModel(make_spec()), tissue="none", z=1).compute()
    np.testing.assert_array_equal(one, single)
    pyramid = pyramid_from_arrays([volume], axes="zyx")
    opened = predict(pyramid, PixelModel(make_spec()), tissue="none").compute()
    np.testing.assert_array_equal(opened, labels)
    opened = predict(pyramid, PixelModel(make_spec()), tissue="none", z=-11).compute()
    np.testing.assert_array_equal(opened, single)
    flat = pyramid_from_arrays([volume[0]])
    with pytest.raises(InputError, match="spatial axes"):
        predict(flat, PixelModel(make_spec(ndim=3)))


def test_what_cannot_be_chosen_of_an_open_image_is_refused():
    from napari_muvit.data.pyramid import pyramid_from_arrays

    volume = pyramid_from_arrays([image((12, 40, 50))], axes="zyx")
    model, solid = PixelModel(make_spec()), PixelModel(make_spec(ndim=3))
    for source, given, choice in (
        (volume, model, {"t": 1}), (volume, model, {"channels": 0, "z": 1}),
        (volume, model, {"image": 0}), (volume, solid, {"z": 1}),
        (open_pyramid(image()), model, {"z": 1}),
    ):
        with pytest.raises(InputError, match="already open"):
            predict(source, given, **choice)
    with pytest.raises(InputError, match="z=12 is out of range"):
        predict(volume, model, z=12)


def test_pixels_that_are_no_numbers_are_padding():
    seen = []

    def judge(x, bbox, valid):
        seen.append((x, valid))
        return thirds(x[:, 0, 0])

    pixels = image((96, 96))
    pixels[:, 30:50] = np.nan
    spec = make_spec((1, 4))
    labels = predict(pixels, FunctionPredictor(judge, spec), tissue="none").compute()
    assert all(np.isfinite(x).all() and (x[:, :, 0][~valid] == 0).all() for x, valid in seen)
    assert any(valid.any() and not valid.all() for _, valid in seen)
    known = np.isfinite(pixels)
    whole = np.array(TABLE.values)[thirds(pixels[None])[0].argmax(axis=0)]
    np.testing.assert_array_equal(labels[known], whole[known])


def test_an_unreadable_block_says_why():
    def judge(x, bbox, valid):
        return np.full((len(x), 3, 32, 32), np.nan)

    lazy = predict(image(), FunctionPredictor(judge, make_spec()), tissue="none")
    with pytest.raises(RunError, match="cannot be predicted"):
        lazy.compute()


def test_building_for_a_huge_image_is_quick_and_small():
    pyramid = open_pyramid(np.zeros((16, 16), np.uint8))
    job = plan_job(pyramid, PixelModel(make_spec(size=256)), tissue="none")
    from dataclasses import replace

    plan = replace(job.plan, shape=(200_000, 200_000), block=(1152, 1152),
                   extent=((-0.5, -0.5), (199_999.5, 199_999.5)))
    huge = Job(pyramid, job.model, plan, job.normalization, (1.0, 1.0), (0, 1),
               np.ones(plan.num_cells, bool))
    tracemalloc.start()
    begin = time.perf_counter()
    lazy = lazy_array(huge)
    seconds = time.perf_counter() - begin
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert lazy.shape == (200_000, 200_000)
    assert used < 200e6
    assert seconds < 20  # about 0.3 s without tracing; this only catches a graph of tiles


def test_missing_sources_are_refused_at_the_call():
    with pytest.raises(SourceError):
        predict("nowhere.ome.zarr", PixelModel(make_spec()))


def test_dask_keeps_jobs_apart():
    first = predict(image(seed=1), PixelModel(make_spec()), tissue="none")
    second = predict(image(seed=2), PixelModel(make_spec()), tissue="none")
    a, b = dask.compute(first, second)
    assert (a != b).any()


@pytest.mark.parametrize("average", [1, 2])
def test_dask_keeps_apart_how_a_model_computes(tmp_path, average):
    loaded = make_model()
    given = {"device": "cpu", "kernels": ("torch", "torch", "fp32"), "average": average}
    for model in (loaded, save(loaded, tmp_path / "model")):
        names = [predict(image(), model, tissue="none", **{**given, **more}).name for more in (
            {}, {"precision": "bf16"}, {"kernels": ("torch", "torch", "bf16")}, {})]
        assert len(set(names)) == 3
        assert names[0] == names[3]


def test_planes_are_looked_at_when_they_are_asked_for(monkeypatch):
    from napari_muvit.inference import lazy as room

    planned = []
    plan = room.plan_job

    def counting(pyramid, **more):
        planned.append(pyramid)
        return plan(pyramid, **more)

    monkeypatch.setattr(room, "plan_job", counting)
    volume = image((12, 40, 50))
    labels = predict(volume, PixelModel(make_spec()), tissue="none")
    assert len(planned) == 1
    labels[7].compute()
    assert len(planned) == 2
