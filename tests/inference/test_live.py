"""Live prediction: the visible first, nothing twice, nothing left behind."""

from __future__ import annotations

import gc
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from napari_muvit.data.live_cache import DONE, NONE, OLD, LiveCache
from napari_muvit.data.omezarr import create_pyramid
from napari_muvit.data.pyramid import open_pyramid
from napari_muvit.errors import InputError, LockedError
from napari_muvit.inference.engine import Engine
from napari_muvit.inference.job import plan_job
from napari_muvit.inference.live import LivePrediction
from napari_muvit.inference.predictor import FunctionPredictor

from .stubs import TABLE, ContextModel, PixelModel, make_spec, thirds

SIDE = 100_000


@pytest.fixture(scope="module")
def huge(tmp_path_factory):
    """A sparse store of 100 000 x 100 000 pixels with a few squares in it."""
    path = tmp_path_factory.mktemp("huge") / "huge.ome.zarr"
    arrays = create_pyramid(path, shape=(SIDE, SIDE), axes="yx", levels=(1, 32), dtype=np.uint8,
                            fill_value=20)
    arrays[0][50_000:50_512, 50_000:50_512] = 255
    return str(path)


def model(size=256, levels=(1, 8, 32), **more):
    spec = make_spec(levels, size, normalization={"kind": "constant", "constant": 255.0}, **more)
    return PixelModel(spec)


def box(y, x, height=700, width=900):
    return [[y, x], [y + height, x + width]]


def live(source, stub, **more):
    return LivePrediction(source, stub, tissue="none", **more)


def test_adding_the_layer_runs_no_model(huge):
    stub = model()
    with live(huge, stub) as view:
        assert view.arrays[0].shape == (SIDE, SIDE)
        assert view.arrays[0].chunks == (192, 192)
        assert isinstance(view.arrays[-1], np.ndarray)
        assert max(view.arrays[-1].shape) <= 2048
        assert (view.arrays[0][500:900, 500:900] == 0).all()
        np.asarray(view.arrays[-1])
        assert stub.tiles == 0


def test_visible_tiles_come_first_from_the_centre_outwards(huge):
    order = []
    stub = model()
    with live(huge, stub, on_update=lambda update: order.extend(update.regions)) as view:
        view.set_view(box(50_000, 50_000))
        assert view.wait(60)
        centre = np.array([50_350, 50_450])
        away = [
            np.linalg.norm([(p.start + p.stop) / 2 - c for p, c in zip(r, centre, strict=True)])
            for r in order
        ]
        assert away == sorted(away)
        assert len(order) == stub.tiles == len({str(region) for region in order})
        for rows, columns in order:
            assert rows.start < 50_700
            assert rows.stop > 50_000
            assert columns.start < 50_900
            assert columns.stop > 50_000
        labels = view.arrays[0][50_000:50_700, 50_000:50_900]
        assert (labels[:512, :512] == 7).all()
        assert (labels[512:] == 1).all()


def test_panning_computes_only_new_tiles_and_coming_back_none(huge):
    stub = model()
    with live(huge, stub) as view:
        view.set_view(box(50_000, 50_000))
        assert view.wait(60)
        first = stub.tiles
        view.set_view(box(50_000, 50_192))
        assert view.wait(60)
        assert 0 < stub.tiles - first <= 5
        before = stub.tiles
        view.set_view(box(50_000, 50_000))
        assert view.wait(60)
        assert stub.tiles == before


def test_coarse_levels_come_from_finished_tiles(huge):
    stub = model()
    with live(huge, stub) as view:
        view.set_view(box(49_900, 49_900))
        assert view.wait(60)
        found = stub.tiles
        for level, array in enumerate(view.arrays):
            factor = 2**level
            part = slice(49_920 // factor, 50_880 // factor)
            small, fine = array[part, part], view.arrays[0][49_920:50_880, 49_920:50_880]
            sample = fine[factor // 2::factor, factor // 2::factor]
            agree = (small[: len(sample), : len(sample)] == sample).mean()
            assert agree > 0.85, level
        assert stub.tiles == found
        view.set_view([[0, 0], [SIDE, SIDE]], level=6)
        assert view.wait(60)
        assert stub.tiles == found


def test_a_coarse_level_is_a_subsample_of_the_finest(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2600, 2300)).astype(np.uint8)
    stub = model(size=256, levels=(1,))
    with live(pixels, stub) as view:
        view.set_view([[0, 0], [2600, 2300]], level=1)
        assert view.wait(60)
        fine = np.asarray(view.arrays[0])
        np.testing.assert_array_equal(np.asarray(view.arrays[1]), fine[1::2, 1::2])
        values = np.array(TABLE.values)[thirds(pixels[None] / np.float32(255))[0].argmax(axis=0)]
        np.testing.assert_array_equal(fine, values)


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


class EdgyModel(PixelModel):
    """Judges a pixel by where it lies in its tile: no two tiles agree."""

    def judge(self, x, bbox):
        ramp = np.linspace(0, 1, x.shape[-1])
        return np.broadcast_to((ramp[:, None] + ramp) / 2, (len(x), *x.shape[-2:]))


@pytest.mark.parametrize("make", [ContextModel, EdgyModel])
def test_tiles_are_blended_with_their_neighbours(make):
    pixels = (np.add.outer(np.arange(300), np.arange(260)) * 255 / 560).astype(np.uint8)
    spec = make_spec((1, 4), 64, normalization={"kind": "constant", "constant": 255.0})
    hard = plan_job(open_pyramid(pixels), make(spec), tissue="none", blend=False)
    whole = tuple(slice(0, n) for n in hard.plan.shape)
    soft = replace(hard, plan=replace(hard.plan, is_soft=True))
    expected = Engine(soft).compute(whole).probabilities
    with live(pixels, make(spec)) as view:
        view.set_view([[100, 100], [150, 150]])  # others come later, one by one
        assert view.wait(60)
        for row in range(0, 300, 40):
            view.set_view([[row, 0], [row + 40, 260]])
            assert view.wait(60)
        labels, confidence = view.arrays[0], view.confidence_arrays[0]
        values = np.array(TABLE.values)[expected.argmax(axis=0)]
        agree = np.asarray(labels) == values
        assert agree.mean() > 0.999  # float16 decides ties otherwise
        found = np.asarray(confidence) / np.float32(255)
        np.testing.assert_allclose(found[agree], expected.max(axis=0)[agree], atol=0.004)
        unblended = Engine(hard).compute(whole).probabilities.max(axis=0)
        if make is EdgyModel:  # whose tiles disagree wherever they overlap
            assert (abs(unblended - expected.max(axis=0)) > 0.01).mean() > 0.01


def test_a_cell_is_drawn_twice_at_most_while_a_view_fills(monkeypatch):
    count = 0
    write = LiveCache.write

    def counted(*given, **more):
        nonlocal count
        count += 1
        write(*given, **more)

    monkeypatch.setattr(LiveCache, "write", counted)
    stub = model(size=64, levels=(1,))
    with live(noise((600, 600)), stub) as view:
        view.set_view([[0, 0], [600, 600]])
        assert view.wait(60)
        assert stub.tiles == view.states.size
        assert stub.tiles < count <= 2 * stub.tiles


def test_tiles_of_two_models_are_not_blended():
    pixels = noise((200, 200))
    low, high = (model(size=64, levels=(1,), fingerprint=name) for name in ("one", "two"))
    low.judge = lambda x, bbox: np.zeros((len(x), 64, 64))
    high.judge = lambda x, bbox: np.ones((len(x), 64, 64))
    with live(pixels, low) as view:
        view.set_view([[0, 0], [200, 200]])
        assert view.wait(60)
        certain = np.asarray(view.confidence_arrays[0])
        view.set_view([[60, 60], [61, 61]])
        assert view.wait(60)
        view.swap_model(high)
        assert view.wait(60)
        assert (view.states == DONE).sum() == 1
        assert set(np.unique(view.arrays[0][48:96, 48:96])) == {7}
        assert (np.asarray(view.arrays[0]) == 1).sum() == 200 * 200 - 48 * 48
        np.testing.assert_array_equal(np.asarray(view.confidence_arrays[0]), certain)


def test_confidence_is_an_array_of_its_own(tmp_path):
    pixels = np.zeros((2600, 2300), np.uint8)
    pixels[:, 1000:] = 64  # half way between low and middle
    stub = model(size=256, levels=(1,))
    with live(pixels, stub, cache=tmp_path) as view:
        assert [a.shape for a in view.confidence_arrays] == [a.shape for a in view.arrays]
        assert view.confidence_arrays[0].dtype == np.uint8
        assert not np.asarray(view.confidence_arrays[-1]).any()
        view.set_view([[0, 0], [600, 2300]])
        assert view.wait(60)
        found = view.confidence_arrays[0][:600, :2300]
        expected = thirds(pixels[:600, :2300][None] / np.float32(255))[0].max(axis=0)
        np.testing.assert_allclose(found / 255, expected, atol=0.003)
        assert not view.confidence_arrays[0][1000:].any()
        small = np.asarray(view.confidence_arrays[-1])
        np.testing.assert_array_equal(small[:280], view.confidence_arrays[0][1:561:2, 1::2])
        known = np.isfinite(view.entropies)
        np.testing.assert_array_equal(known, view.states == DONE)
        assert view.entropies[0, -1] > 2 * view.entropies[0, 0] > 0
    with live(pixels, model(size=256, levels=(1,)), cache=tmp_path) as view:
        np.testing.assert_array_equal(view.confidence_arrays[0][:600, :2300], found)
        np.testing.assert_array_equal(view.confidence_arrays[-1], small)


def test_tiles_that_left_the_view_are_forgotten(huge):
    gate = threading.Event()
    calls = []

    def judge(x, bbox, valid):
        gate.wait(20)
        calls.append(bbox[0, 0, 0])
        return thirds(x[:, 0, 0])

    stub = FunctionPredictor(judge, model().spec)
    with live(huge, stub) as view:
        view.set_view(box(10_000, 10_000))
        time.sleep(0.3)
        view.set_view(box(80_000, 80_000))
        gate.set()
        assert view.wait(60)
        assert sum(corner[0] < 50_000 for corner in calls) <= 1
        assert len(calls) > 10


def test_the_cache_is_used_again_after_a_restart(huge, tmp_path):
    first = model(fingerprint="one")
    with live(huge, first, cache=tmp_path) as view:
        view.set_view(box(50_000, 50_000))
        assert view.wait(60)
        labels = view.arrays[0][50_000:50_700, 50_000:50_900]
        coarse = view.arrays[-1].copy()
    again = model(fingerprint="one")
    with live(huge, again, cache=tmp_path) as view:
        np.testing.assert_array_equal(view.arrays[0][50_000:50_700, 50_000:50_900], labels)
        np.testing.assert_array_equal(view.arrays[-1], coarse)
        view.set_view(box(50_000, 50_000))
        assert view.wait(60)
        assert again.tiles == 0


def test_another_model_marks_tiles_old_and_replaces_them(huge, tmp_path):
    with live(huge, model(fingerprint="one"), cache=tmp_path) as view:
        view.set_view(box(50_000, 50_000))
        assert view.wait(60)
        done = view.states == DONE
    other = model(fingerprint="two")
    with live(huge, other, cache=tmp_path) as view:
        assert (view.states[done] == OLD).all()
        assert (view.arrays[0][50_000:50_100, 50_000:50_100] == 7).all()
        view.set_view(box(50_000, 50_000))
        assert view.wait(60)
        assert other.tiles == done.sum()
        assert (view.states[done] == DONE).all()


def test_a_swapped_model_takes_over_while_old_tiles_stay(huge):
    low, high = model(fingerprint="one"), model(fingerprint="two")
    high.judge = lambda x, bbox: 1 - x[:, 0, 0]
    with live(huge, low) as view:
        view.set_view(box(50_000, 50_000))
        assert view.wait(60)
        assert (view.arrays[0][50_000:50_100, 50_000:50_100] == 7).all()
        view.set_view(box(20_000, 20_000, 100, 100))
        view.swap_model(high)
        assert view.wait(60)
        assert (view.states == OLD).sum() > 10
        assert (view.arrays[0][50_000:50_100, 50_000:50_100] == 7).all()
        view.set_view(box(50_000, 50_000))
        assert view.wait(60)
        assert (view.arrays[0][50_000:50_100, 50_000:50_100] == 1).all()
        with pytest.raises(InputError, match="tiles do not match"):
            view.swap_model(model(size=128))


def test_another_image_starts_afresh(tmp_path):
    for seed in (0, 1):
        pixels = np.random.default_rng(seed).integers(0, 256, (300, 300)).astype(np.uint8)
        stub = model(size=64, levels=(1,), fingerprint="w")
        with live(pixels, stub, cache=tmp_path) as view:
            assert (view.states == NONE).all()
            view.set_view([[0, 0], [300, 300]])
            assert view.wait(60)
            assert stub.tiles == view.states.size


def test_the_cache_is_bounded(huge):
    stub = model()
    with live(huge, stub, max_bytes=64 * 192 * 192) as view:
        for row in range(4):
            view.set_view(box(10_000 + 2000 * row, 10_000))
            assert view.wait(60)
        assert (view.states != NONE).sum() <= 64
        view.set_view(box(16_000, 10_000))
        count = stub.tiles
        assert view.wait(60)
        assert stub.tiles == count  # the newest were kept


def test_caches_of_other_images_are_bounded_too(tmp_path):
    (tmp_path / "notes").mkdir()
    for seed in range(4):
        pixels = np.random.default_rng(seed).integers(0, 256, (300, 300)).astype(np.uint8)
        with live(pixels, model(size=64, levels=(1,)), cache=tmp_path,
                  max_bytes=4 * 49 * 48 * 48) as view:
            view.set_view([[0, 0], [300, 300]])
            assert view.wait(60)
    assert len(list(tmp_path.glob("*/cache.json"))) == 3  # its own, and two others
    assert (tmp_path / "notes").is_dir()


def test_one_process_at_a_time_uses_a_cache(huge, tmp_path):
    with (
        live(huge, model(), cache=tmp_path),
        pytest.raises(LockedError, match="only one process"),
    ):
        live(huge, model(), cache=tmp_path)
    live(huge, model(), cache=tmp_path).close()


def test_a_failing_model_is_reported_and_the_thread_lives(huge):
    broken = True

    def judge(x, bbox, valid):
        if broken:
            raise RuntimeError("the model broke")
        return thirds(x[:, 0, 0])

    heard = []
    stub = FunctionPredictor(judge, model().spec)
    with live(huge, stub, on_warning=heard.append) as view:
        view.set_view(box(50_000, 50_000))
        assert view.wait(60)
        assert heard == ["live prediction stopped: the model broke"]
        broken = False
        view.set_view(box(50_000, 50_000))
        assert view.wait(60)
        assert (view.states == DONE).any()


def test_values_that_are_no_numbers_are_asked_for_once(huge):
    heard = []
    calls = []

    def judge(x, bbox, valid):
        calls.append(1)
        return np.full((len(x), 3, 256, 256), np.nan)

    with live(huge, FunctionPredictor(judge, model().spec), on_warning=heard.append) as view:
        for _ in range(3):
            view.set_view(box(50_000, 50_000, 100, 100))
            assert view.wait(60)
        assert len(calls) == len(heard) <= 4


def test_volumes_are_shown_plane_by_plane():
    volume = np.random.default_rng(0).integers(0, 256, (12, 120, 100)).astype(np.uint8)
    with live(volume, model(size=64, levels=(1,))) as view:
        assert view.plane_axes == "z"
        assert view.arrays[0].shape == (12, 120, 100)
        view.set_view([[0, 0], [120, 100]], plane=(5,))
        assert view.wait(60)
        assert set(np.argwhere(view.states == DONE)[:, 0]) == {5}
        values = np.array(TABLE.values)[
            thirds(volume[5][None] / np.float32(255))[0].argmax(axis=0)]
        np.testing.assert_array_equal(view.arrays[0][5], values)


def test_the_most_uncertain_place_is_the_undecided_one():
    pixels = np.zeros((300, 300), np.uint8)
    pixels[200:, 200:] = 64  # half way between low and middle
    with live(pixels, model(size=64, levels=(1,))) as view:
        assert view.most_uncertain() == []
        view.set_view([[0, 0], [300, 300]])
        assert view.wait(60)
        first, second = view.most_uncertain(2)
        assert first.entropy >= second.entropy > 0.3
        assert (first.box.mean(axis=0) > 192).all()
        assert view.most_uncertain(1, plane=())[0].entropy == first.entropy


def test_many_moves_leave_nothing_behind(huge):
    import psutil

    process, before = psutil.Process(), set(threading.enumerate())
    stub = model(size=64, levels=(1, 8))
    rng = np.random.default_rng(0)
    with live(huge, stub) as view:
        view.set_view(box(0, 0, 100, 100))
        assert view.wait(60)
        gc.collect()
        threads, files = threading.active_count(), process.num_fds()
        memory = process.memory_info().rss
        for corner in rng.integers(0, SIDE - 400, (1000, 2)):
            view.set_view(box(*corner, 60, 60))
            if rng.random() < 0.05:
                view.wait(60)
        assert view.wait(120)
        gc.collect()
        assert threading.active_count() <= threads + 1
        assert process.num_fds() <= files + 2
        assert process.memory_info().rss - memory < 120e6
    left = set(threading.enumerate()) - before
    assert not any(t.name.startswith("muvit") for t in left)
