"""Predictions on disk: right values, right place, resumable, honest about what is missing."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from napari_muvit.data.labels import ClassTable, make_classes, read_class_table
from napari_muvit.data.output import Journal, read_facts
from napari_muvit.data.pyramid import open_pyramid, pyramid_from_arrays
from napari_muvit.errors import InputError, RunError, RunExistsError
from napari_muvit.inference import job
from napari_muvit.inference.events import FinishedEvent, TileEvent, WarningEvent
from napari_muvit.inference.lazy import predict
from napari_muvit.inference.predictor import FunctionPredictor
from napari_muvit.inference.store_run import share_out
from napari_muvit.inference.to_store import parse_part, predict_to_zarr

from .stubs import TABLE, ContextModel, PixelModel, make_spec, thirds


def image(shape=(150, 130), seed=0):
    return np.random.default_rng(seed).random(shape).astype(np.float32)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of two by two cells, so that small images have several."""
    monkeypatch.setattr(job, "choose_block", lambda step, *_: tuple(2 * s for s in step))


def read_bytes(folder):
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def model(levels=(1, 4), **more):
    return ContextModel(make_spec(levels, fingerprint="weights", **more))


@pytest.mark.parametrize("fmt", ["0.4", "0.5"])
def test_labels_equal_the_lazy_ones_at_their_place(tmp_path, fmt):
    pyramid = pyramid_from_arrays([image((300, 260))], pixel_size=(0.5, 0.5))
    events = list(predict_to_zarr(pyramid, model((2, 8), pixel_size=(0.5, 0.5)),
                                  tmp_path / "out.ome.zarr", tissue="none", fmt=fmt))
    finished = events[-1]
    assert isinstance(finished, FinishedEvent)
    assert finished.complete
    assert not finished.failed
    lazy = predict(pyramid, model((2, 8), pixel_size=(0.5, 0.5)), tissue="none").compute()
    found = open_pyramid(str(tmp_path / "out.ome.zarr"))
    assert found.is_labels
    np.testing.assert_array_equal(found.read(0, (0, 0), (150, 130))[0], lazy)
    np.testing.assert_allclose(found.pixel_size[0], (1.0, 1.0))
    np.testing.assert_allclose(found.origin, (0.25, 0.25))  # half a full-resolution pixel, in um


def test_class_names_and_colours_travel(tmp_path):
    from napari_muvit.data.labels import read_class_table

    list(predict_to_zarr(image(), model(), tmp_path / "out.ome.zarr", tissue="none"))
    table = read_class_table(open_pyramid(str(tmp_path / "out.ome.zarr")))
    assert table.values == TABLE.values
    assert table.names == TABLE.names
    assert table.unlabelled == 0


@pytest.mark.parametrize("fmt", ["0.4", "0.5"])
def test_the_store_validates(tmp_path, fmt):
    import ome_zarr_models

    list(predict_to_zarr(image((600, 520)), model(), tmp_path / "out.ome.zarr", tissue="none",
                         fmt=fmt))
    group = zarr.open_group(tmp_path / "out.ome.zarr", mode="r")
    assert ome_zarr_models.open_ome_zarr(group).attributes is not None


def test_what_is_not_predicted_is_no_class(tmp_path):
    """A model of foreign labels judges 0 to be background; what it never saw gets 255."""
    table = ClassTable(make_classes((0, 1, 2), background=0), background=0)
    stub = PixelModel(make_spec(table=table, fingerprint="w"))
    pixels = np.zeros((512, 512), np.float32)
    pixels[300:500, 40:200] = image((200, 160)) * 0.4 + 0.6
    output = tmp_path / "out.ome.zarr"
    events = list(predict_to_zarr(pixels, stub, output))
    assert 0.4 < events[-1].left_out < 0.95
    assert {e.left_out for e in events if isinstance(e, TileEvent)} == {events[-1].left_out}
    store = open_pyramid(str(output))
    labels = store.read(0, (0, 0), (512, 512))[0]
    lazy = predict(pixels, stub).compute()
    np.testing.assert_array_equal(labels, lazy)
    assert set(np.unique(labels)) == {0, 1, 2, 255}
    assert (labels[:100] == 255).all()
    assert read_class_table(store) == replace(table, unlabelled=255)
    assert sum(row["pixels"] for row in events[-1].areas) == (labels != 255).sum()
    colours = zarr.open_group(output, mode="r").attrs["ome"]["image-label"]["colors"]
    assert {"label-value": 255, "rgba": [0, 0, 0, 0]} in colours


def test_nothing_to_predict_is_said(tmp_path):
    pixels = np.zeros((512, 512), np.float32)
    pixels[300:500, 40:200] = image((200, 160)) + 1
    events = list(predict_to_zarr(pixels, model(), tmp_path / "out.ome.zarr",
                                  roi=[[0, 400], [100, 500]]))
    assert "nothing is predicted" in events[0].message
    assert events[-1].left_out == 1


def test_coarser_arrays_are_majorities(tmp_path):
    pixels = np.repeat(np.repeat(image((75, 80)), 8, 0), 8, 1)
    list(predict_to_zarr(pixels, PixelModel(make_spec(fingerprint="w")), tmp_path / "o.ome.zarr",
                         tissue="none"))
    found = open_pyramid(str(tmp_path / "o.ome.zarr"))
    assert len(found.factors) == 3
    fine = found.read(0, (0, 0), (600, 640))[0]
    np.testing.assert_array_equal(found.read(2, (0, 0), (150, 160))[0], fine[::4, ::4])


def test_probabilities_and_confidence_lie_beside(tmp_path):
    pixels = image()
    output = tmp_path / "out.ome.zarr"
    list(predict_to_zarr(pixels, model(), output, tissue="none", probabilities=True,
                         confidence=True))
    lazy = predict(pixels, model(), tissue="none", probabilities=True).compute()
    found = open_pyramid(str(tmp_path / "out_probabilities.ome.zarr"))
    assert found.channel_names == TABLE.names
    assert found.channel_colors == TABLE.colors
    np.testing.assert_array_equal(found.read(0, (0, 0), (150, 130)), lazy.astype(np.float16))
    best = open_pyramid(str(tmp_path / "out_confidence.ome.zarr"))
    np.testing.assert_array_equal(
        best.read(0, (0, 0), (150, 130))[0], lazy.max(axis=0).astype(np.float16)
    )


def test_progress_ends_with_all_tiles(tmp_path):
    events = list(predict_to_zarr(image(), model(), tmp_path / "o.ome.zarr", tissue="none"))
    tiles = [event for event in events if isinstance(event, TileEvent)]
    done = [event.done for event in tiles]
    assert done == sorted(done)
    assert tiles[-1].done == tiles[-1].total == 6 * 6
    assert tiles[0].remaining is None
    assert tiles[-1].remaining == 0


@pytest.mark.parametrize("stop_after", [1, 7, 20])
def test_a_stopped_prediction_goes_on_where_it_was(tmp_path, stop_after):
    pixels = image()
    list(predict_to_zarr(pixels, model(), tmp_path / "whole.ome.zarr", tissue="none"))
    first = model()
    events = predict_to_zarr(pixels, first, tmp_path / "part.ome.zarr", tissue="none")
    for _ in range(stop_after):
        next(events)
    events.close()
    finished_blocks = len(list(Journal(tmp_path / "part.ome.zarr").records()))
    second = model()
    rest = list(predict_to_zarr(pixels, second, tmp_path / "part.ome.zarr", tissue="none"))
    assert rest[-1].complete
    if finished_blocks:
        assert rest[0].done > 0
        assert second.tiles < 36
    whole, part = (read_bytes(tmp_path / f"{name}.ome.zarr") for name in ("whole", "part"))
    differing = [name for name in whole if whole[name] != part.get(name)]
    assert whole.keys() == part.keys()
    # the two differ in the name of the image that an array in memory is given, and in nothing else
    assert set(differing) <= {"zarr.json"}


def test_a_finished_prediction_is_not_computed_again(tmp_path):
    list(predict_to_zarr(image(), model(), tmp_path / "o.ome.zarr", tissue="none"))
    again = model()
    events = list(predict_to_zarr(image(), again, tmp_path / "o.ome.zarr", tissue="none"))
    assert again.tiles == 0
    assert [type(event) for event in events] == [FinishedEvent]
    assert not list((tmp_path / "o.ome.zarr").glob("*.jsonl"))


def test_a_journal_line_that_was_cut_short_counts_for_nothing(tmp_path):
    output = tmp_path / "o.ome.zarr"
    events = predict_to_zarr(image(), model(), output, tissue="none")
    for _ in range(25):
        next(events)
    events.close()
    journal = Journal(output).file
    lines = journal.read_text().splitlines()
    assert len(lines) >= 2
    journal.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][: len(lines[-1]) // 2])
    list(predict_to_zarr(image(), model(), output, tissue="none"))
    lazy = predict(image(), model(), tissue="none").compute()
    np.testing.assert_array_equal(open_pyramid(str(output)).read(0, (0, 0), (150, 130))[0], lazy)


def test_refuses_outputs_of_another_model_image_or_option(tmp_path):
    output = tmp_path / "o.ome.zarr"
    events = predict_to_zarr(image(), model(), output, tissue="none")
    next(events)
    events.close()
    other = ContextModel(make_spec((1, 4), fingerprint="other"))
    with pytest.raises(RunExistsError, match="another model"):
        predict_to_zarr(image(), other, output, tissue="none")
    with pytest.raises(RunExistsError, match="another image"):
        predict_to_zarr(image(seed=5)[:90], model(), output, tissue="none")
    with pytest.raises(RunExistsError, match="other options"):
        predict_to_zarr(image(), model(), output, tissue="none", overlap=0.5)
    with pytest.raises(RunExistsError, match="begun without"):
        predict_to_zarr(image(), model(), output, tissue="none", confidence=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(RunExistsError, match="no prediction"):
        predict_to_zarr(image(), model(), tmp_path / "notes", tissue="none")
    assert (tmp_path / "notes" / "a.txt").read_text() == "mine"


def test_tiles_without_numbers_stay_unfinished_and_are_tried_again(tmp_path):
    pixels = image((200, 200))
    broken = True

    def judge(x, bbox, valid):
        probabilities = thirds(x[:, 0, 0])
        if broken and bbox[0, 0, 0, 0] > 100 and bbox[0, 0, 0, 1] > 100:
            probabilities[:] = np.nan
        return probabilities

    stub = FunctionPredictor(judge, make_spec(fingerprint="w"))
    output = tmp_path / "o.ome.zarr"
    events = list(predict_to_zarr(pixels, stub, output, tissue="none"))
    assert not events[-1].complete
    assert events[-1].failed == sum(isinstance(event, WarningEvent) for event in events) > 0
    found = open_pyramid(str(output)).read(0, (0, 0), (200, 200))[0]
    assert (found[150:, 150:] == 0).all()
    expected = np.array(TABLE.values)[thirds(pixels[None])[0].argmax(axis=0)]
    np.testing.assert_array_equal(found[:96, :96], expected[:96, :96])
    broken = False
    assert list(predict_to_zarr(pixels, stub, output, tissue="none"))[-1].complete
    found = open_pyramid(str(output)).uncached().read(0, (0, 0), (200, 200))[0]
    np.testing.assert_array_equal(found, expected)


def test_a_model_that_never_returns_numbers_ends_the_run(tmp_path):
    stub = FunctionPredictor(lambda x, b, v: np.full((len(x), 3, 32, 32), np.nan), make_spec())
    with pytest.raises(RunError, match="not numbers"):
        list(predict_to_zarr(image(), stub, tmp_path / "o.ome.zarr", tissue="none"))


def test_parts_fill_one_store_together(tmp_path):
    pixels = image((300, 300))
    output = tmp_path / "o.ome.zarr"
    counts = []
    for part in ("1/3", (3, 3), "2/3"):
        stub = model()
        events = list(predict_to_zarr(pixels, stub, output, tissue="none", part=part))
        counts.append(stub.tiles)
        assert events[-1].complete == (part == "2/3")
        assert events[-1].part_complete
        assert not events[-1].was_complete
        assert bool(events[-1].areas) == (part == "2/3")  # areas of a part would mislead
    assert all(counts)
    lazy = predict(pixels, model(), tissue="none").compute()
    np.testing.assert_array_equal(open_pyramid(str(output)).read(0, (0, 0), (300, 300))[0], lazy)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 7))
def test_parts_have_as_much_work_each(weights, total):
    shares = share_out(weights, total)
    assert shares == sorted(shares)
    assert len(shares) == len(weights)
    work = [sum(w for w, s in zip(weights, shares, strict=True) if s == n) for n in range(total)]
    assert sum(work) == sum(weights)
    assert all(abs(w - sum(weights) / total) <= max(weights, default=0) for w in work)


def test_what_was_complete_says_so_and_computes_nothing(tmp_path):
    output, stub = tmp_path / "o.ome.zarr", model()
    first = list(predict_to_zarr(image(), stub, output, tissue="none"))[-1]
    tiles = stub.tiles
    events = list(predict_to_zarr(image(), stub, output, tissue="none"))
    assert [event.was_complete for event in events] == [True]
    assert stub.tiles == tiles
    assert events[-1].areas == first.areas


@pytest.mark.parametrize("name", ["x.tif", "x.ome.TIFF", "x.png"])
def test_refuses_names_of_other_formats(tmp_path, name):
    with pytest.raises(InputError, match=r"OME-Zarr folders. Pass for example .*x.ome.zarr"):
        predict_to_zarr(image(), model(), tmp_path / name, tissue="none")
    assert not list(tmp_path.iterdir())


def test_shards_hold_whole_blocks_and_many_chunks(tmp_path, monkeypatch):
    from napari_muvit.inference import layout

    monkeypatch.setattr(layout, "LARGEST_CHUNK", 24)
    pixels, output = image((150, 130)), tmp_path / "out.ome.zarr"
    stub = model()
    events = predict_to_zarr(pixels, stub, output, tissue="none", shard=True, confidence=True)
    while not list(Journal(output).records()):
        next(events)
    events.close()  # and go on from the middle, with parts of their own
    for part in ("2/2", "1/2"):
        finished = list(predict_to_zarr(pixels, stub, output, tissue="none", shard=True,
                                        confidence=True, part=part))[-1]
    assert finished.complete
    array = zarr.open_array(output / "0", mode="r")
    assert array.chunks == (24, 24)
    assert array.shards == (48, 48)
    files = [path for path in (output / "0" / "c").rglob("*") if path.is_file()]
    assert len(files) == 4 * 3  # one for each block, each written by whoever owns it
    found = open_pyramid(str(output)).read(0, (0, 0), (150, 130))[0]
    np.testing.assert_array_equal(found, predict(pixels, model(), tissue="none").compute())
    best = open_pyramid(str(tmp_path / "out_confidence.ome.zarr")).read(0, (0, 0), (150, 130))[0]
    lazy = predict(pixels, model(), tissue="none", confidence=True).compute()
    np.testing.assert_array_equal(best, lazy.astype(np.float16))


@pytest.mark.parametrize("part", ["0/3", "4/3", "a/b", "2", (1, 2, 3)])
def test_refuses_parts_that_are_none(part):
    with pytest.raises(InputError, match="part is"):
        parse_part(part)


def test_volumes_are_predicted_plane_by_plane(tmp_path):
    volume = image((12, 70, 50))
    output = tmp_path / "o.ome.zarr"
    events = list(predict_to_zarr(volume, PixelModel(make_spec(fingerprint="w")), output,
                                  tissue="none", probabilities=True))
    assert events[-1].complete
    expected = np.array(TABLE.values)[thirds(volume[None])[0].argmax(axis=0)]
    found = open_pyramid(str(output))
    assert found.axes == "czyx"
    np.testing.assert_array_equal(found.read(0, (0, 0, 0), (12, 70, 50))[0], expected)
    many = open_pyramid(str(tmp_path / "o_probabilities.ome.zarr"))
    assert many.shape == (3, 12, 70, 50)


def test_areas_are_counted_in_px_and_um2(tmp_path):
    pyramid = pyramid_from_arrays([image((300, 260))], pixel_size=(0.5, 0.5))
    output = tmp_path / "o.ome.zarr"
    stub = model((2, 8), pixel_size=(0.5, 0.5))
    finished = list(predict_to_zarr(pyramid, stub, output, tissue="none"))[-1]
    labels = open_pyramid(str(output)).read(0, (0, 0), (150, 130))
    for row in finished.areas:
        count = int((labels == row["value"]).sum())
        assert row["pixels"] == count
        assert row["px"] == 4 * count
        assert row["um2"] == pytest.approx(count)
    assert {row["name"] for row in finished.areas} == set(TABLE.names)
    assert read_facts(output)["areas"] == finished.areas


def test_tiles_uncertainty_is_kept(tmp_path):
    output = tmp_path / "o.ome.zarr"
    list(predict_to_zarr(image(), model(), output, tissue="none"))
    values = zarr.open_array(output / "uncertainty", mode="r")[...]
    assert values.shape == (1, 6, 6)
    assert (values > 0).all()
    assert (values < 1).all()
    assert json.dumps(read_facts(output))


def test_a_relative_output_does_not_move_with_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    events = predict_to_zarr(image((40, 40)), PixelModel(make_spec()), "out.ome.zarr")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # as a worker of a cluster
    last = list(events)[-1]
    assert last.complete
    assert last.output == tmp_path / "out.ome.zarr"
