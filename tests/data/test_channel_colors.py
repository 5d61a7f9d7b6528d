"""Colours of channels, as a file has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from napari_muvit import api
from napari_muvit.data.sources.raw import parse_colors
from napari_muvit.errors import InputError

BLUE, YELLOW, RED = "#0000ff", "#ffff00", "#ff0000"


@pytest.mark.parametrize(("given", "expected"), [
    (["0000FF", "ffff00"], (BLUE, YELLOW)), (["#0000FF"], (BLUE,)), (["ff0000ff"], (RED,)),
    (["FFFFFF", "FFFFFF"], None), (["FF0000", None], None), (["red", "0000FF"], None), ([], None),
])
def test_colours_are_taken_where_they_tell_channels_apart(
    given: list[str | None], expected: tuple[str, ...] | None
) -> None:
    assert parse_colors(given) == expected


def test_colours_of_a_store_follow_the_channels_and_the_conversion(tmp_path: Path) -> None:
    api.create_pyramid(
        tmp_path / "a.ome.zarr", shape=(3, 64, 64), axes="cyx", levels=1, dtype="uint16",
        channel_names=["DAPI", "GFP", "RFP"], channel_colors=[BLUE, YELLOW, RED])
    assert api.open_pyramid(tmp_path / "a.ome.zarr").channel_colors == (BLUE, YELLOW, RED)
    some = api.open_pyramid(tmp_path / "a.ome.zarr", channels=["RFP", "DAPI"])
    assert some.channel_colors == (RED, BLUE)
    for _ in api.convert(some, tmp_path / "b.ome.zarr", levels=(1, 2), chunk=32):
        pass
    assert api.open_pyramid(tmp_path / "b.ome.zarr").channel_colors == (RED, BLUE)


@pytest.mark.parametrize("names", [None, ["a", "b"]])
def test_what_has_no_colours_has_none(names: list[str] | None, tmp_path: Path) -> None:
    image = api.pyramid_from_arrays(
        [np.zeros((2, 64, 64), np.uint8)], axes="cyx", channel_names=names)
    assert image.channel_colors is None
    for _ in api.convert(image, tmp_path / "a.ome.zarr", levels=(1,), chunk=32):
        pass
    assert api.open_pyramid(tmp_path / "a.ome.zarr").channel_colors is None


def test_a_picture_stays_one_and_its_channels_are_primaries(tmp_path: Path) -> None:
    picture = api.pyramid_from_arrays([np.zeros((64, 64, 3), np.uint8)], axes="yxc")
    for _ in api.convert(picture, tmp_path / "a.ome.zarr", levels=(1,), chunk=32):
        pass
    opened = api.open_pyramid(tmp_path / "a.ome.zarr")
    assert opened.is_rgb
    assert opened.channel_colors == ("#ff0000", "#00ff00", BLUE)


def test_three_stains_do_not_become_a_picture(tmp_path: Path) -> None:
    image = api.pyramid_from_arrays(
        [np.zeros((3, 64, 64), np.uint8)], axes="cyx", channel_names=["DAPI", "GFP", "RFP"])
    for _ in api.convert(image, tmp_path / "a.ome.zarr", levels=(1,), chunk=32):
        pass
    assert not api.open_pyramid(tmp_path / "a.ome.zarr").is_rgb


@pytest.mark.parametrize("colors", [[BLUE], [BLUE, "red"], [BLUE, YELLOW, RED]])
def test_colours_that_do_not_fit_are_refused(colors: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="channel_colors are"):
        api.create_pyramid(
            tmp_path / "a.ome.zarr", shape=(2, 64, 64), axes="cyx", levels=1, dtype="uint16",
            channel_names=["DAPI", "RFP"], channel_colors=colors)
    assert not (tmp_path / "a.ome.zarr").exists()


def test_colours_of_an_ome_tiff(tmp_path: Path) -> None:
    numbers = [int.from_bytes(bytes.fromhex(color[1:] + "ff"), "big", signed=True)
               for color in (BLUE, RED)]
    tifffile.imwrite(
        tmp_path / "a.ome.tif", np.zeros((2, 64, 64), np.uint16), photometric="minisblack",
        metadata={"axes": "CYX", "Channel": {"Name": ["DAPI", "RFP"], "Color": numbers}})
    opened = api.open_pyramid(tmp_path / "a.ome.tif")
    assert opened.channel_names == ("DAPI", "RFP")
    assert opened.channel_colors == (BLUE, RED)


def test_colours_of_a_real_store(real_data: Path) -> None:
    store = real_data / "stores" / "idr_6001240_ngff05_sharded.zarr"
    assert api.open_pyramid(store).channel_colors == (BLUE, YELLOW)
