"""What TIFF files and ordinary images say about axes, channels and pixel size."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from napari_muvit.data.pyramid import open_pyramid
from napari_muvit.data.sources.tiff import TiffLevel
from napari_muvit.errors import SourceError

RNG = np.random.default_rng(0)


def write(folder: Path, data: np.ndarray, **options: Any) -> Path:
    file = folder / "image.tif"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tifffile.imwrite(file, data, **options)
    return file


class TestTiff:
    def test_other_images_of_a_file_are_told(self, tmp_path: Path) -> None:
        with tifffile.TiffWriter(tmp_path / "two.ome.tif") as file:
            for value in (1, 2):
                file.write(np.full((40, 50), value, np.uint8), metadata={"Name": f"site {value}"})
        first = open_pyramid(tmp_path / "two.ome.tif")
        assert any("image 0 of 2 in the file ('site 1', 'site 2')" in note for note in first.notes)
        second = open_pyramid(tmp_path / "two.ome.tif", image="site 2")
        assert second.read(0, (0, 0), (1, 1)).item() == 2
        assert open_pyramid(write(tmp_path, np.zeros((40, 50), np.uint8))).notes == ()

    @pytest.mark.parametrize(("axes", "shape", "expected"), [
        ("YX", (20, 30), (1, 20, 30)), ("CYX", (4, 20, 30), (4, 20, 30)),
        ("ZYX", (5, 20, 30), (1, 5, 20, 30)), ("ZCYX", (5, 2, 20, 30), (2, 5, 20, 30)),
        ("TZCYX", (2, 5, 3, 20, 30), (3, 5, 20, 30))])
    def test_ome_axes(self, tmp_path: Path, axes: str, shape: Any, expected: Any) -> None:
        data = RNG.integers(0, 1000, shape).astype(np.uint16)
        file = write(tmp_path, data, ome=True, photometric="minisblack", metadata={"axes": axes})
        pyramid = open_pyramid(file)
        assert pyramid.shape == expected
        pixels = pyramid.read(0, [0] * pyramid.ndim, pyramid.spatial_shape)
        picked = data[0] if axes[0] == "T" else data
        letters = axes.replace("T", "")
        target = "".join(a for a in "CZYX" if a in letters)
        np.testing.assert_array_equal(
            pixels.reshape(expected), picked.transpose([letters.index(a) for a in target]).reshape(
                expected))

    def test_ome_names_and_sizes(self, tmp_path: Path) -> None:
        data = np.zeros((2, 4, 20, 30), np.uint8)
        file = write(tmp_path, data, ome=True, photometric="minisblack", metadata={
            "axes": "CZYX", "Channel": {"Name": ["DAPI", "GFP"]}, "PhysicalSizeX": 250,
            "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.25, "PhysicalSizeYUnit": "µm",
            "PhysicalSizeZ": 0.002, "PhysicalSizeZUnit": "mm"})
        pyramid = open_pyramid(file)
        assert pyramid.channel_names == ("DAPI", "GFP")
        assert pyramid.pixel_size == (pytest.approx((2.0, 0.25, 0.25)),)
        assert open_pyramid(file, channels="gfp").num_channels == 1

    def test_imagej(self, tmp_path: Path) -> None:
        data = RNG.integers(0, 99, (3, 2, 20, 30)).astype(np.uint16)
        file = write(tmp_path, data, imagej=True, resolution=(4, 2),
                     metadata={"axes": "ZCYX", "unit": "um", "spacing": 1.5})
        pyramid = open_pyramid(file)
        assert pyramid.shape == (2, 3, 20, 30)
        assert pyramid.pixel_size == (pytest.approx((1.5, 0.5, 0.25)),)

    def test_pages_without_a_name_are_planes(self, tmp_path: Path) -> None:
        file = write(tmp_path, np.zeros((7, 20, 30), np.uint8), photometric="minisblack",
                     metadata=None)
        pyramid = open_pyramid(file)
        assert pyramid.shape == (1, 7, 20, 30)

    @pytest.mark.parametrize(("unit", "number", "expected"), [
        ("CENTIMETER", 40_000, 0.25), ("INCH", 72, None), ("INCH", 101_600, 0.25),
        ("CENTIMETER", 28.3, None), ("NONE", 4, None)])
    def test_resolution_tags(
        self, tmp_path: Path, unit: str, number: float, expected: float | None
    ) -> None:
        file = write(tmp_path, np.zeros((20, 30), np.uint8), resolution=(number, number),
                     resolutionunit=unit, metadata=None)
        size = open_pyramid(file).pixel_size
        assert size == (None if expected is None else (pytest.approx((expected, expected)),))

    @pytest.mark.parametrize("options", [
        {}, {"byteorder": ">"}, {"bigtiff": True}, {"rowsperstrip": 3}, {"tile": (16, 16)},
        {"compression": "zlib", "predictor": True}, {"compression": "lzw"},
        {"compression": "zstd", "tile": (16, 16)}, {"planarconfig": "separate"}])
    def test_encodings(self, tmp_path: Path, options: dict[str, Any]) -> None:
        data = RNG.integers(0, 60_000, (41, 50, 3)).astype(np.uint16)
        planar = options.get("planarconfig") == "separate"
        file = write(tmp_path, np.moveaxis(data, -1, 0).copy() if planar else data,
                     photometric="rgb", **options)
        pyramid = open_pyramid(file).uncached()
        assert pyramid.dtype == np.uint16
        np.testing.assert_array_equal(
            pyramid.read(0, (5, 6), (30, 40)), np.moveaxis(data, -1, 0)[:, 5:35, 6:46])

    def test_raw_strips_are_mapped_not_decoded(self, tmp_path: Path) -> None:
        file = write(tmp_path, np.zeros((300, 200), np.uint8))
        handle = open_pyramid(file)._handles[0]
        assert isinstance(handle, TiffLevel)
        view = handle.open()
        assert view[2:4, 5:7].shape == (2, 2)
        assert isinstance(view._local.view.array, np.memmap)

    def test_mapped_files_may_be_of_any_size(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("napari_muvit.data.sources.tiff.LARGE_PIECE", 1000)
        monkeypatch.setattr("napari_muvit.data.sources.raw.LARGEST_CHUNK", 1000)
        file = write(tmp_path, np.ones((300, 200), np.uint8), rowsperstrip=300)
        pyramid = open_pyramid(file)
        assert not pyramid.notes
        assert pyramid.crop(center=(100, 100), levels=1, size=16).image.all()
        packed = write(tmp_path, np.ones((300, 200), np.uint8), rowsperstrip=300,
                       compression="zlib")
        with pytest.raises(SourceError, match="chunks of"):
            open_pyramid(packed)

    def test_large_pieces_are_noted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("napari_muvit.data.sources.tiff.LARGE_PIECE", 1000)
        file = write(tmp_path, np.zeros((300, 200), np.uint8), compression="zlib",
                     rowsperstrip=300)
        assert "convert it once" in open_pyramid(file).notes[0]

    def test_odd_ratios_of_a_pyramid(self, tmp_path: Path) -> None:
        file = tmp_path / "slide.tif"
        with tifffile.TiffWriter(file) as writer:
            writer.write(np.zeros((301, 200, 3), np.uint8), subifds=1, tile=(64, 64),
                         photometric="rgb")
            writer.write(np.zeros((150, 100, 3), np.uint8), subfiletype=1, tile=(64, 64),
                         photometric="rgb")
        pyramid = open_pyramid(file)
        assert pyramid.factors[1] == (301 / 150, 2.0)
        assert pyramid.offsets[1] == pytest.approx(((301 / 150 - 1) / 2, 0.5))


class TestPictures:
    @pytest.mark.parametrize(("mode", "suffix", "expected"), [
        ("L", "png", (1, "uint8", False)), ("RGB", "png", (3, "uint8", True)),
        ("RGBA", "png", (3, "uint8", True)), ("P", "png", (3, "uint8", True)),
        ("1", "png", (1, "uint8", False)), ("LA", "png", (1, "uint8", False)),
        ("I;16", "png", (1, "uint16", False)), ("RGB", "jpg", (3, "uint8", True)),
        ("L", "jpg", (1, "uint8", False)), ("CMYK", "jpg", (3, "uint8", True)),
        ("RGB", "bmp", (3, "uint8", True)), ("F", "tif", (1, "float32", False))])
    def test_modes(self, tmp_path: Path, mode: str, suffix: str, expected: Any) -> None:
        colours = Image.fromarray(RNG.integers(0, 255, (20, 30, 3)).astype(np.uint8))
        if mode == "I;16":
            picture = Image.fromarray(RNG.integers(0, 65_535, (20, 30)).astype(np.uint16))
        else:
            picture = colours.convert("L").convert(mode) if mode in {"1", "F"} else (
                colours.convert(mode))
        file = tmp_path / f"a.{suffix}"
        picture.save(file)
        pyramid = open_pyramid(file)
        assert (pyramid.num_channels, str(pyramid.dtype), pyramid.is_rgb) == expected
        pixels = pyramid.read(0, (0, 0), (20, 30))
        assert pixels.shape == (expected[0], 20, 30)
        assert pixels.std() > 0

    def test_deep_colours_keep_their_depth(self, tmp_path: Path) -> None:
        import imagecodecs

        data = RNG.integers(0, 65_535, (20, 30, 3)).astype(np.uint16)
        (tmp_path / "deep.png").write_bytes(imagecodecs.png_encode(data))
        pyramid = open_pyramid(tmp_path / "deep.png")
        assert pyramid.dtype == np.uint16
        np.testing.assert_array_equal(pyramid.read(0, (0, 0), (20, 30)), data.transpose(2, 0, 1))

    def test_numpy_files(self, tmp_path: Path) -> None:
        data = RNG.normal(size=(4, 20, 30)).astype(np.float32)
        np.save(tmp_path / "a.npy", data)
        np.testing.assert_array_equal(
            open_pyramid(tmp_path / "a.npy").read(0, (0, 0), (20, 30)), data)
        np.save(tmp_path / "b.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
        with pytest.raises(SourceError, match=r"b\.npy"):
            open_pyramid(tmp_path / "b.npy")

    def test_too_large_pictures_name_the_way_out(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("napari_muvit.data.sources.pictures.LARGEST_PICTURE", 100)
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "a.png")
        with pytest.raises(SourceError, match="tiled TIFF or OME-Zarr"):
            open_pyramid(tmp_path / "a.png")

    def test_a_picture_that_changes_is_noticed(self, tmp_path: Path) -> None:
        file = tmp_path / "a.png"
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(file)
        pyramid = open_pyramid(file)
        Image.fromarray(np.zeros((10, 30), np.uint8)).save(file)
        with pytest.raises(SourceError, match="changed from shape"):
            pyramid.uncached().read(0, (0, 0), (5, 5))
