"""Readers and samples in a real viewer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from qtpy.QtGui import QGuiApplication

from napari_muvit import api
from napari_muvit.plugin import sample_data
from napari_muvit.plugin.image_choices import ImageChoice
from napari_muvit.plugin.layers import resolve_image


@pytest.fixture
def store(tmp_path: Path) -> Path:
    image = np.random.default_rng(0).integers(0, 4000, (2, 256, 320), dtype=np.uint16)
    pyramid = api.pyramid_from_arrays([image], axes="cyx", pixel_size=(0.5, 0.25),
                                      channel_names=["DAPI", "GFP"])
    for _ in api.convert(pyramid, tmp_path / "two.ome.zarr", levels=(1, 2, 4), chunk=64):
        pass
    return tmp_path / "two.ome.zarr"


def test_store_opens_as_channels_in_place(viewer: Any, store: Path, open_widget: Any) -> None:
    viewer.open(str(store), plugin="napari-muvit")
    assert [layer.name for layer in viewer.layers] == ["DAPI", "GFP"]
    layer = viewer.layers["GFP"]
    assert [np.round(each.colormap.colors[-1]).tolist() for each in viewer.layers] == [
        [1, 0, 1, 1], [0, 1, 0, 1]]  # magenta and green, since the file has no colours
    assert layer.multiscale
    assert len(layer.data) == 3
    assert np.allclose(layer.scale, (0.5, 0.25))
    assert str(layer.units[0]) == "micrometer"
    expected = api.open_pyramid(str(store)).read(0, (10, 20), (5, 6))[1]
    assert np.array_equal(layer.data[0][10:15, 20:26], expected)
    widget = open_widget("MuViT: Crops")
    assert widget.image.path == str(store)
    assert widget.image.pyramid.shape[0] == 1
    widget.picker.choose("two.ome.zarr (2 channels)")
    assert widget.image.pyramid.shape[0] == 2
    assert widget.image.pyramid.pixel_size[0] == pytest.approx((0.5, 0.25))


def test_channels_have_the_colours_of_the_file(viewer: Any, tmp_path: Path) -> None:
    api.create_pyramid(
        tmp_path / "a.ome.zarr", shape=(2, 64, 64), axes="cyx", levels=1, dtype="uint16",
        channel_names=["DAPI", "RFP"], channel_colors=["#0000ff", "#ff8000"])
    viewer.open(str(tmp_path / "a.ome.zarr"), plugin="napari-muvit")
    assert np.allclose([layer.colormap.colors[-1] for layer in viewer.layers],
                       [[0, 0, 1, 1], [1, 128 / 255, 0, 1]])


def test_one_channel_of_several_is_what_is_meant(
    viewer: Any, store: Path, open_widget: Any, notices: list[str]
) -> None:
    """Its layer alone is copied as code and learnt from, not all of its file."""
    viewer.open(str(store), plugin="napari-muvit")
    crops = open_widget("MuViT: Crops")
    crops.picker.choose("GFP")
    crops.move_to((120, 130))
    crops.copy.click()
    names: dict[str, Any] = {}
    exec(QGuiApplication.clipboard().text(), names)
    assert names["crop"].image.shape[1] == 1
    assert names["pyramid"].channel_names == ("GFP",)
    whole = open_widget("MuViT: Pretrain")
    whole.sources.image.choose("two.ome.zarr (2 channels)")
    whole.sources.add_layer.click()
    assert whole.form.values()["channels"] is None
    viewer.layers["GFP"].name = "spots"  # the name is the user's
    whole.sources.clear()
    whole.sources.image.choose("spots")
    whole.sources.add_layer.click()
    assert whole.sources.images() == (str(store),)
    assert whole.form.values()["channels"] == ("GFP",)
    assert "reads the channel GFP alone" in notices[-1]
    queue = open_widget("MuViT: Predict").queue
    queue.sources.image.choose("spots")
    queue.sources.add_layer.click()
    assert queue.config(str(store.parent), "cpu").channels == ("GFP",)
    queue.sources.image.choose("two.ome.zarr (2 channels)")
    queue.sources.add_layer.click()
    assert "read with GFP" in notices[-1]
    assert len(queue.sources.images()) == 1


def test_channels_keep_the_order_of_the_file_and_the_choice(
    viewer: Any, store: Path, open_widget: Any
) -> None:
    viewer.open(str(store), plugin="napari-muvit")
    crops = open_widget("MuViT: Crops")
    crops.picker.choose("two.ome.zarr (2 channels)")
    limits = [viewer.layers[name].contrast_limits for name in ("DAPI", "GFP")]
    viewer.layers["GFP"].contrast_limits = (3, 4)
    viewer.layers.move(0, 2)
    assert [layer.name for layer in viewer.layers][:2] == ["GFP", "DAPI"]
    assert crops.picker.choice.name == "two.ome.zarr (2 channels)"
    assert [layer.name for layer in crops.picker.choice.layers] == ["DAPI", "GFP"]
    image = crops.picker.resolve(api)
    assert image.pyramid.channel_names == ("DAPI", "GFP")
    assert [part.limits for part in image.display] == [tuple(limits[0]), (3, 4)]


def test_memory_of_a_part_of_a_file_is_told_from_other_images(tmp_path: Path, viewer: Any) -> None:
    """A layer of a file's pixels that no longer are what the file gives has its own memory."""
    keys = []
    for value in (1, 2):
        path = tmp_path / f"{value}.ome.tif"
        image = np.full((5, 64, 80), value, np.uint8)
        tifffile.imwrite(path, image, metadata={"axes": "CYX"})
        layer = viewer.add_image(image, name="all", metadata={"muvit_source": str(path)})
        choice = ImageChoice(layer.name, (layer,))
        found = resolve_image(choice, api, viewer.dims.point)
        assert found.path is None
        keys.append(found.key)
    assert len(set(keys)) == 2
    assert "None" not in keys


def test_fine_tuning_reads_the_time_point_that_is_shown(
    viewer: Any, tmp_path: Path, open_widget: Any, notices: list[str]
) -> None:
    path = tmp_path / "series.ome.tif"
    tifffile.imwrite(path, np.zeros((4, 64, 80), np.uint8), metadata={"axes": "TYX"})
    viewer.open(str(path), plugin="napari-muvit")
    viewer.dims.set_point(0, 3)
    widget = open_widget("MuViT: Pretrain")
    sources, form = widget.sources, widget.form
    sources.add_layer.click()
    assert form.values()["t"] == 3
    assert "time point 3" in notices[-1]
    viewer.dims.set_point(0, 1)
    sources.add_layer.click()
    assert "reads time point 3 of all its images" in notices[-1]
    assert len(sources.images()) == 1
    sources.clear()
    sources.add_layer.click()
    assert form.values()["t"] == 1


def test_single_picture(viewer: Any, tmp_path: Path) -> None:
    from skimage.io import imsave

    image = np.arange(64 * 48, dtype=np.uint16).reshape(64, 48)
    imsave(tmp_path / "one.tif", image, check_contrast=False)
    viewer.open(str(tmp_path / "one.tif"), plugin="napari-muvit")
    assert viewer.layers[0].data.shape == (64, 48)


def test_sample(viewer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_data, "cache_folder", lambda: tmp_path)
    for _ in range(2):
        viewer.open_sample("napari-muvit", "immunohistochemistry")
    layer = viewer.layers[0]
    assert layer.rgb
    assert layer.multiscale
    assert layer.data[0].shape == (512, 512, 3)


@pytest.mark.parametrize(("name", "classes"), [
    ("rings", ["background", "outer", "inner"]),
    ("landmarks", ["background", "near a disc", "near a frame"]),
])
def test_sets_made_by_code(
    viewer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, classes: list[str]
) -> None:
    monkeypatch.setattr(sample_data, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(sample_data, "DRAWN_SIDE", 256)
    viewer.open_sample("napari-muvit", name)
    assert [layer.name for layer in viewer.layers] == [name, f"{name}: classes"]
    assert list(viewer.layers[1].features["class"]) == classes


def test_folder_that_is_no_store_is_left_to_others(tmp_path: Path) -> None:
    from napari_muvit.plugin.readers import get_reader

    assert get_reader(str(tmp_path)) is None
    assert get_reader([str(tmp_path)]) is None


def test_series_keep_their_time_points(
    viewer: Any, tmp_path: Path, open_widget: Any, qtbot: Any
) -> None:
    image = np.random.default_rng(0).integers(0, 255, (3, 2, 64, 80), dtype=np.uint8)
    path = tmp_path / "series.ome.tiff"
    tifffile.imwrite(path, image, metadata={"axes": "TZYX", "PhysicalSizeX": 0.5,
                     "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"})
    viewer.open(str(path), plugin="napari-muvit")
    layer = viewer.layers[0]
    assert layer.axis_labels == ("t", "z", "y", "x")
    assert [str(unit) for unit in layer.units] == ["pixel", *["micrometer"] * 3]
    assert np.array_equal(layer.data[2, 1], image[2, 1])
    viewer.dims.set_point((0, 1), (2, 1))
    widget = open_widget("MuViT: Crops")
    assert widget.image.plane == {"t": 2, "z": 1}
    crop = widget.image.pyramid.crop(corner=(-0.5, -0.5), levels=(1,), size=16)
    assert np.array_equal(crop.image[0, 0], image[2, 1, :16, :16])
