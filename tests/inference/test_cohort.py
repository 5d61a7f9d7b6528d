"""Many images in one call: names, failures, parts, tables, outlines."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import tifffile

from napari_muvit import api
from napari_muvit.config import PredictConfig, parse_config
from napari_muvit.data.pyramid import open_pyramid
from napari_muvit.errors import InputError, SourceNotFoundError
from napari_muvit.inference import cohort, to_store
from napari_muvit.inference.cohort import export_outlines, predict_images, store_names
from napari_muvit.inference.events import FinishedEvent, WarningEvent

from .stubs import TABLE, PixelModel, make_spec


@pytest.fixture(autouse=True)
def stub(monkeypatch):
    """Every model folder is this stub."""
    model = PixelModel(make_spec(fingerprint="weights", normalization={
        "kind": "constant", "constant": 255.0}))
    for module in (cohort, to_store):
        monkeypatch.setattr(module, "parse_model", lambda *_, **__: model)
    return model


@pytest.fixture
def images(tmp_path):
    from skimage.io import imsave

    paths = []
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50)).astype(np.uint8)
        imsave(tmp_path / f"slide{number}.png", pixels, check_contrast=False)
        paths.append(str(tmp_path / f"slide{number}.png"))
    return paths


def config(images, output, **more):
    values = {"images": images, "model": "run", "output": str(output), "tissue": "none", **more}
    return parse_config(PredictConfig, values)


def test_one_image_goes_to_one_store(tmp_path, images):
    events = list(predict_images(config(images[:1], tmp_path / "out.ome.zarr")))
    assert isinstance(events[-1], FinishedEvent)
    assert open_pyramid(str(tmp_path / "out.ome.zarr")).spatial_shape == (40, 50)


def test_several_go_to_a_folder_with_one_table(tmp_path, images):
    events = list(predict_images(config(images, tmp_path / "out")))
    assert events[-1].complete
    with (tmp_path / "out" / "areas.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * len(TABLE)
    for path in images:
        mine = [row for row in rows if row["image"] == path]
        assert sum(int(row["pixels"]) for row in mine) == 40 * 50
    assert (tmp_path / "out" / "slide1.ome.zarr").is_dir()


def test_one_failed_image_does_not_stop_the_rest(tmp_path, images):
    bad = tmp_path / "broken.png"
    bad.write_bytes(b"no picture")
    listed = [images[0], str(bad), str(tmp_path / "missing.png"), images[2]]
    events = list(predict_images(config(listed, tmp_path / "out")))
    warned = [event.image for event in events if isinstance(event, WarningEvent)]
    assert warned == listed[1:3]
    assert events[-1].failed == 2
    assert not events[-1].complete
    assert open_pyramid(str(tmp_path / "out" / "slide2.ome.zarr")).spatial_shape == (40, 50)


def test_a_csv_names_the_images(tmp_path, images):
    (tmp_path / "cohort.csv").write_text("image,group\nslide0.png,a\nslide1.png,b\n")
    events = list(predict_images(config([str(tmp_path / "cohort.csv")], tmp_path / "out")))
    assert events[-1].complete
    assert sorted(p.name for p in (tmp_path / "out").glob("*.zarr")) == [
        "slide0.ome.zarr", "slide1.ome.zarr"]


def test_parts_share_the_images(tmp_path, images, stub):
    first = list(predict_images(config(images, tmp_path / "out", part="1/2")))[-1]
    assert not first.complete
    calls = stub.calls
    second = list(predict_images(config(images, tmp_path / "out", part="2/2")))[-1]
    assert second.complete
    assert len(second.areas) == 3 * len(TABLE)
    assert stub.calls < 2 * calls


def test_refuses_a_store_as_the_folder_and_a_missing_single_image(tmp_path, images):
    list(predict_images(config(images[:1], tmp_path / "one.ome.zarr")))
    with pytest.raises(InputError, match="single image"):
        predict_images(config(images, tmp_path / "one.ome.zarr"))
    with pytest.raises(SourceNotFoundError):
        predict_images(config([str(tmp_path / "no.png")], tmp_path / "x.ome.zarr"))


def test_alike_file_names_get_their_folders():
    names = store_names(["a/x.ome.zarr", "b/x.ome.zarr", "b/y.tif", "b/x.png"])
    assert len(set(names)) == 4
    assert names[:3] == ["a_x", "b_x", "y"]
    assert store_names(["s1_2024.01.05_a.svs", "s1_2024.01.05_b.svs", "c.ome.zarr"]) == [
        "s1_2024.01.05_a", "s1_2024.01.05_b", "c"]


@pytest.mark.parametrize("names", [
    ("s.2024_a.ome.zarr", "s.2024_b.ome.zarr"), ("out.v1", "out.v2")])
def test_outlines_of_names_with_dots_lie_in_files_of_their_own(tmp_path, images, names):
    for name in names:
        list(predict_images(config(images[:1], tmp_path / name, geojson=True)))
    expected = [f"{name.removesuffix('.ome.zarr')}.geojson" for name in names]
    assert sorted(file.name for file in tmp_path.glob("*.geojson")) == expected


def test_a_store_of_a_picture_s_name_keeps_its_dots_in_the_advice(tmp_path, images):
    with pytest.raises(InputError, match=r"s\.2024_a\.ome\.zarr"):
        predict_images(config(images[:1], tmp_path / "s.2024_a.tif"))


def test_outlines_are_in_image_pixels_and_bear_class_names(tmp_path):
    from skimage.io import imsave

    pixels = np.zeros((40, 50), np.uint8)
    pixels[10:20, 5:25] = 255
    imsave(tmp_path / "s.png", pixels, check_contrast=False)
    output = tmp_path / "out.ome.zarr"
    list(predict_images(config([str(tmp_path / "s.png")], output, geojson=True)))
    found = json.loads((tmp_path / "out.geojson").read_text())
    high = [f for f in found["features"]
            if f["properties"]["classification"]["name"] == "high"]
    corners = np.array(high[0]["geometry"]["coordinates"][0])
    assert len(high) == 1
    assert corners.min(axis=0).tolist() == [5, 10]
    assert corners.max(axis=0).tolist() == [25, 20]
    assert export_outlines(output, tmp_path / "again.geojson") == [tmp_path / "again.geojson"]


def test_both_exports_of_a_coarse_prediction_agree(tmp_path, images, stub):
    stub.spec = make_spec((2,), fingerprint="coarse", normalization={
        "kind": "constant", "constant": 255.0})
    output = tmp_path / "out.ome.zarr"
    list(predict_images(config(images[:1], output)))
    (file,) = api.export_outlines(output)
    assert api.export_geojson(api.open_pyramid(str(output)), tmp_path / "b.geojson") > 1
    assert (tmp_path / "b.geojson").read_text() == file.read_text()
    corners = [np.array(f["geometry"]["coordinates"][0]).max(axis=0)
               for f in json.loads(file.read_text())["features"]]
    assert np.max(corners, axis=0).tolist() == [50, 40]


def test_outlines_of_a_volume_lie_in_one_file_for_each_plane(tmp_path):
    planes = np.zeros((2, 40, 50), np.uint8)
    planes[1, 10:20, 5:25] = 255
    tifffile.imwrite(tmp_path / "s.tif", planes, metadata={"axes": "ZYX"})
    output = tmp_path / "out.ome.zarr"
    list(predict_images(config([str(tmp_path / "s.tif")], output, geojson=True)))
    files = export_outlines(output)
    assert [file.name for file in files] == ["out_0.geojson", "out_1.geojson"]
    found = [json.loads(file.read_text())["features"] for file in files]
    names = [{f["properties"]["classification"]["name"] for f in plane} for plane in found]
    assert "high" not in names[0]
    assert "high" in names[1]
    assert all(f["geometry"]["plane"]["z"] == 1 for f in found[1])
