"""Blocks are blended from tiles, byte for byte the same however they are asked for."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import tifffile

from napari_muvit.data.normalize import Normalization
from napari_muvit.data.places import PlaceMap
from napari_muvit.data.pyramid import open_pyramid
from napari_muvit.errors import ChannelError, InputError, MuvitWarning, RunError
from napari_muvit.inference.engine import Engine, engine_of
from napari_muvit.inference.job import plan_job
from napari_muvit.inference.predictor import FunctionPredictor

from .stubs import BlurModel, ContextModel, PixelModel, PlaceModel, make_spec, thirds


def image(shape=(150, 130), seed=0):
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def whole(job):
    return tuple(slice(0, n) for n in job.plan.shape)


def test_blended_tiles_equal_one_pass_for_an_equivariant_model():
    pixels = image()
    job = plan_job(open_pyramid(pixels), BlurModel(make_spec(size=64)), tissue="none")
    result = Engine(job).compute(whole(job))
    single = thirds(BlurModel().judge(pixels[None, None, None], None))[0]
    np.testing.assert_allclose(result.probabilities, single, atol=1e-5)
    assert result.done.all()


@pytest.mark.parametrize("levels", [(1, 4), (2, 8), (1, 4, 16)])
def test_positions_are_those_of_the_world(levels):
    pixels = image((200, 170))
    job = plan_job(open_pyramid(pixels), PlaceModel(make_spec(levels)), tissue="none")
    result = Engine(job).compute(whole(job))
    assert result.probabilities.shape[1:] == tuple(-(-n // levels[0]) for n in pixels.shape)
    grid = [np.arange(n) * levels[0] + (levels[0] - 1) / 2 for n in result.probabilities.shape[1:]]
    wave = np.sin(grid[0][:, None] / 97) * np.cos(grid[1] / 97)
    np.testing.assert_allclose(result.probabilities, thirds(0.5 + 0.5 * wave[None])[0], atol=1e-5)


@pytest.mark.parametrize("levels", [(1,), (1, 4, 16)])
def test_any_block_equals_the_same_part_of_the_whole(levels):
    job = plan_job(open_pyramid(image()), ContextModel(make_spec(levels)), tissue="none")
    expected = Engine(job).compute(whole(job)).probabilities
    for kept in (0, 2**28):
        engine = Engine(job, tile_bytes=kept)
        for low, high in [((0, 0), (24, 48)), ((48, 72), (150, 130)), ((24, 24), (72, 96))]:
            region = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            part = engine.compute(region).probabilities
            assert part.tobytes() == expected[(slice(None), *region)].tobytes()


def test_tiles_shared_by_blocks_are_computed_once():
    model = PixelModel(make_spec())
    job = plan_job(open_pyramid(image((96, 200))), model, tissue="none")
    engine = Engine(job)
    engine.compute((slice(0, 96), slice(0, 96)))
    engine.compute((slice(0, 96), slice(96, 200)))
    assert model.tiles == np.prod(job.plan.num_tiles)


def test_batches_change_nothing_and_have_one_size():
    sizes = set()

    def judge(x, bbox, valid):
        sizes.add(len(x))
        return thirds(x[:, 0, 0])

    spec = make_spec((1, 4))
    one = plan_job(open_pyramid(image()), FunctionPredictor(judge, spec), tissue="none")
    many = plan_job(open_pyramid(image()), FunctionPredictor(judge, spec), tissue="none",
                    batch_size=5)
    alone = Engine(one).compute(whole(one)).probabilities
    assert sizes == {1}
    sizes.clear()
    together = Engine(many).compute(whole(many)).probabilities
    assert sizes == {5}
    np.testing.assert_array_equal(alone, together)


def test_coarse_crops_are_read_once_for_all_tiles_that_share_them(monkeypatch):
    pyramid = open_pyramid(image((300, 300)))
    job = plan_job(pyramid, ContextModel(make_spec((1, 8))), tissue="none")
    reads = {1: 0, 8: 0}
    crop = type(pyramid).crop

    def counting(self, *args, levels, **more):
        reads[int(levels[0])] += 1
        return crop(self, *args, levels=levels, **more)

    monkeypatch.setattr(type(pyramid), "crop", counting)
    Engine(job).compute(whole(job))
    assert reads[1] == np.prod(job.plan.num_tiles)
    assert reads[8] <= 9


def test_padding_is_zero_after_normalization_and_marked():
    seen = []

    def judge(x, bbox, valid):
        seen.append((x, valid))
        return thirds(x[:, 0, 0])

    rule = {"kind": "percentile"}
    spec = make_spec((1, 4), normalization=rule)
    job = plan_job(open_pyramid(image((20, 25)) + 5), FunctionPredictor(judge, spec), tissue="none")
    result = Engine(job).compute(whole(job))
    assert result.probabilities.shape == (3, 20, 25)
    (x, valid), = seen
    assert not valid.all()
    assert (x[:, :, 0][~valid] == 0).all()


def test_cells_without_tissue_cost_nothing():
    pixels = np.zeros((512, 512), np.float32)
    pixels[300:500, 40:200] = image((200, 160)) + 1
    model = PixelModel(make_spec())
    job = plan_job(open_pyramid(pixels), model)
    result = Engine(job).compute(whole(job))
    assert 0 < result.done.mean() < 0.3
    assert model.tiles < 0.4 * np.prod(job.plan.num_tiles)
    assert (result.probabilities[:, :200] == 0).all()
    everywhere = plan_job(open_pyramid(pixels), PixelModel(make_spec()), tissue="none")
    full = Engine(everywhere).compute(whole(everywhere))
    inside = result.probabilities.sum(axis=0) > 0
    assert inside[300:500, 40:200].all()
    np.testing.assert_array_equal(
        result.probabilities[:, inside], full.probabilities[:, inside]
    )


def test_a_given_mask_and_a_region_hold_to_the_pixel(tmp_path):
    pixels = image((300, 260))
    mask = np.zeros((150, 130), np.uint8)  # half the resolution
    mask[20:61, 30:97] = 1
    tifffile.imwrite(tmp_path / "mask.tif", mask)
    everywhere = plan_job(open_pyramid(pixels), PixelModel(make_spec()), tissue="none")
    full = Engine(everywhere).compute(whole(everywhere)).probabilities
    wanted = np.repeat(np.repeat(mask, 2, 0), 2, 1).astype(bool)
    box = np.zeros_like(wanted)
    box[50:100, 70:100] = True
    for roi, inside in ((None, wanted), ([[49.5, 70], [99.5, 100]], wanted & box)):
        model = PixelModel(make_spec())
        job = plan_job(open_pyramid(pixels), model, tissue=str(tmp_path / "mask.tif"), roi=roi)
        found = Engine(job).compute(whole(job)).probabilities
        np.testing.assert_array_equal(found.sum(axis=0) > 0, inside)
        np.testing.assert_array_equal(found[:, inside], full[:, inside])
        assert model.tiles < np.prod(job.plan.num_tiles)
    only = plan_job(open_pyramid(pixels), PixelModel(make_spec()), tissue="none",
                    roi=[[50, 70], [100, 100]])
    assert only.fingerprint != plan_job(
        open_pyramid(pixels), PixelModel(make_spec()), tissue="none", roi=[[51, 70], [100, 100]]
    ).fingerprint
    found = Engine(only).compute(whole(only)).probabilities
    np.testing.assert_array_equal(found.sum(axis=0) > 0, box)


def test_a_mask_leaves_no_gap_at_a_ragged_edge(tmp_path):
    tifffile.imwrite(tmp_path / "mask.tif", np.ones((41, 37), np.uint8))
    job = plan_job(open_pyramid(image((123, 111))), PixelModel(make_spec((8,))),
                   tissue=str(tmp_path / "mask.tif"))
    assert job.plan.shape == (16, 14)
    assert (Engine(job).compute(whole(job)).probabilities.sum(axis=0) > 0).all()


def test_region_of_interest_limits_the_cells():
    job = plan_job(open_pyramid(image((300, 300))), PixelModel(make_spec()), tissue="none",
                   roi=[[100, 0], [110, 40]])
    assert 0 < job.cells.sum() <= 4
    with pytest.raises(InputError, match="roi is"):
        plan_job(open_pyramid(image()), PixelModel(make_spec()), tissue="none", roi=[[1], [2]])
    for outside in ([[700, 700], [800, 800]], [[-9, 0], [-1, 20]]):
        with pytest.raises(InputError, match="lies outside"):
            plan_job(open_pyramid(image()), PixelModel(make_spec()), tissue="none", roi=outside)


def test_values_that_are_no_numbers_fail_only_their_tile():
    def judge(x, bbox, valid):
        probabilities = thirds(x[:, 0, 0])
        if bbox[0, 0, 0, 0] > 60 and bbox[0, 0, 0, 1] > 60:
            probabilities[0, 0, 0, 0] = np.nan
        return probabilities

    job = plan_job(open_pyramid(image()), FunctionPredictor(judge, make_spec()), tissue="none")
    result = Engine(job).compute(whole(job))
    assert result.failures
    assert all(failure.is_model for failure in result.failures)
    assert "not numbers" in result.failures[0].message
    assert not result.done.all()
    assert result.done[0].all()
    assert np.isfinite(result.probabilities).all()


def test_refuses_a_model_whose_output_does_not_fit():
    job = plan_job(open_pyramid(image()), FunctionPredictor(
        lambda x, bbox, valid: np.zeros((len(x), 2, 5, 5)), make_spec()), tissue="none")
    with pytest.raises(RunError, match="returned an array of shape"):
        Engine(job).compute(whole(job))


def test_refuses_images_that_the_model_cannot_read():
    with pytest.raises(ChannelError, match="channels"):
        plan_job(open_pyramid(image()), PixelModel(make_spec(channels=3)))
    with pytest.raises(InputError, match="spatial axes"):
        plan_job(open_pyramid(image()), PixelModel(make_spec(ndim=3)))


def test_volumes_are_predicted_in_one_piece():
    pixels = image((20, 60, 50))
    model = FunctionPredictor(lambda x, bbox, valid: thirds(x[:, 0, 0]),
                              make_spec((1, 2), size=(8, 32, 32), ndim=3))
    job = plan_job(open_pyramid(pixels), model, tissue="none")
    result = Engine(job).compute(whole(job))
    np.testing.assert_allclose(result.probabilities, thirds(pixels[None])[0], atol=1e-6)


def test_pixel_size_is_matched_and_boxes_are_in_training_pixels():
    from napari_muvit.data.pyramid import pyramid_from_arrays

    pyramid = pyramid_from_arrays([image((200, 200))], pixel_size=(0.25, 0.25))
    boxes = []

    def judge(x, bbox, valid):
        boxes.append(bbox)
        return thirds(x[:, 0, 0])

    spec = make_spec((1, 4), pixel_size=(0.5, 0.5))
    job = plan_job(pyramid, FunctionPredictor(judge, spec), tissue="none")
    assert job.plan.levels == (2.0, 8.0)
    assert job.plan.shape == (100, 100)
    assert job.output_offset == (0.5, 0.5)
    Engine(job).compute(whole(job))
    extents = boxes[0][0, :, 1] - boxes[0][0, :, 0]
    np.testing.assert_allclose(extents, [[32, 32], [128, 128]])
    unknown = open_pyramid(image())
    with pytest.warns(MuvitWarning, match="physical pixel size"):
        plan_job(unknown, FunctionPredictor(judge, spec), tissue="none")


def test_channels_in_another_order_are_told():
    from napari_muvit.data.pyramid import pyramid_from_arrays

    def planned(names, trained, channels=None):
        pyramid = pyramid_from_arrays(
            [image((2, 40, 40))], axes="cyx", channel_names=names, channels=channels)
        plan_job(pyramid, PixelModel(make_spec(channels=2, channel_names=trained)), tissue="none")

    with pytest.warns(MuvitWarning, match=r"GFP, DAPI; .*DAPI, GFP.*channels=\['DAPI', 'GFP'\]"):
        planned(("GFP", "DAPI"), ("DAPI", "GFP"))
    planned(("GFP", "DAPI"), ("DAPI", "GFP"), channels=["DAPI", "GFP"])
    planned(("a", "b"), ("DAPI", "GFP"))
    planned(None, ("0", "1"), channels=[1, 0])  # numbers are no names
    planned(("GFP", "DAPI"), None)


def test_jobs_travel_and_keep_one_engine():
    job = plan_job(open_pyramid(image()), PixelModel(make_spec()), tissue="none")
    assert engine_of(job) is engine_of(job)
    copy = pickle.loads(pickle.dumps(job))
    assert copy.fingerprint == job.fingerprint
    np.testing.assert_array_equal(
        engine_of(copy).compute(whole(job)).probabilities,
        engine_of(job).compute(whole(job)).probabilities,
    )


def test_too_little_memory_names_the_remedy():
    def judge(x, bbox, valid):
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")

    job = plan_job(open_pyramid(image()), FunctionPredictor(judge, make_spec()), tissue="none",
                   batch_size=4)
    with pytest.raises(RunError, match="4 tiles at once"):
        Engine(job).compute(whole(job))


def test_the_fingerprint_tells_apart_whatever_changes_the_output():
    job = plan_job(open_pyramid(image()), PixelModel(make_spec()), tissue="none")
    mask = np.ones((5, 4), bool)
    mask[2:, 1:] = False
    area = PlaceMap.over(mask, np.asarray(job.plan.extent))
    cells = job.cells.copy()
    cells[0, 0] = False
    averaged = PixelModel(make_spec())
    averaged.average = 8
    numbers = job.normalization
    jobs = [
        job, replace(job, cells=cells), replace(job, area=area),
        replace(job, area=PlaceMap.over(~mask, np.asarray(job.plan.extent))),
        replace(job, to_model=(2.0, 2.0)), replace(job, model=averaged),
        replace(job, model=PixelModel(make_spec(fingerprint="other"))),
        replace(job, normalization=Normalization(numbers.offset + 1, numbers.scale)),
        replace(job, pyramid=open_pyramid(image(seed=1))),
        replace(job, plan=replace(job.plan, blend=False)),
    ]
    assert len({each.fingerprint for each in jobs}) == len(jobs)
    assert replace(job, batch_size=7).fingerprint == job.fingerprint
