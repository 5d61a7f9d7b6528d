"""Choosing what to open: axes, channels, t, z, RGB, units, layers; and what is kept in memory."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr

from napari_muvit.data.memory import ArrayCache, shared_cache
from napari_muvit.data.omezarr import create_pyramid
from napari_muvit.data.pyramid import open_pyramid, pyramid_from_arrays
from napari_muvit.errors import InputError, MuvitError

MOVIE = np.random.default_rng(1).integers(0, 999, (3, 2, 6, 20, 30)).astype(np.uint16)


class TestChoosing:
    def test_defaults(self) -> None:
        pyramid = open_pyramid(MOVIE)
        assert (pyramid.axes, pyramid.shape) == ("czyx", (2, 6, 20, 30))
        np.testing.assert_array_equal(pyramid.read(0, (0, 0, 0), (6, 20, 30)), MOVIE[0])
        assert "time point 0 of 3" in pyramid.notes[0]

    def test_t_and_z_by_index(self) -> None:
        pyramid = open_pyramid(MOVIE, t=2, z=-1, channels=1)
        assert (pyramid.axes, pyramid.shape) == ("cyx", (1, 20, 30))
        np.testing.assert_array_equal(pyramid.read(0, (0, 0), (20, 30))[0], MOVIE[2, 1, 5])

    def test_ranges_keep_the_axis(self) -> None:
        pyramid = open_pyramid(MOVIE, z=slice(2, 5))
        assert pyramid.shape == (2, 3, 20, 30)
        np.testing.assert_array_equal(pyramid.read(0, (1, 0, 0), (2, 20, 30)), MOVIE[0, :, 3:5])
        movie = open_pyramid(MOVIE, t=range(1, 3), z=0)
        assert (movie.axes, movie.shape) == ("ctyx", (2, 2, 20, 30))
        np.testing.assert_array_equal(
            movie.read(0, (0, 0, 0), (2, 20, 30)), MOVIE[1:3, :, 0].swapaxes(0, 1))

    def test_planes_of_arrays_that_shrink_along_z(self) -> None:
        volume = np.arange(12 * 8 * 8, dtype=np.uint16).reshape(12, 8, 8)
        half = volume.reshape(6, 2, 4, 2, 4, 2).mean(axis=(1, 3, 5))
        part = pyramid_from_arrays([volume.astype(float), half], axes="zyx", z=slice(4, 9))
        assert part.shapes == ((5, 8, 8), (2, 4, 4))
        # coarse plane 2 covers planes 4 and 5, whose middle is half a plane after the first
        assert part.offsets[1][0] == 0.5
        np.testing.assert_array_equal(part.read(1, (0, 0, 0), (2, 4, 4))[0], half[2:4])
        plane = pyramid_from_arrays([volume.astype(float), half], axes="zyx", z=7)
        np.testing.assert_array_equal(plane.read(1, (0, 0), (4, 4))[0], half[3])

    @pytest.mark.parametrize(("options", "words"), [
        ({"t": 3}, "t=3 is out of range"), ({"z": "top"}, "z is 'top'"),
        ({"channels": 2}, "channels=2 is out of range"), ({"channels": "DAPI"}, "'DAPI'"),
        ({"channels": []}, "chooses none"), ({"z": slice(4, 2)}, "no range"),
        ({"z": slice(0, 6, 2)}, "no range"),
    ])
    def test_wrong_choices(self, options: dict[str, Any], words: str) -> None:
        with pytest.raises(InputError, match=words):
            open_pyramid(MOVIE, **options)

    def test_only_chosen_channels_are_read(self, tmp_path: Path) -> None:
        data = np.random.default_rng(0).integers(0, 255, (6, 40, 40)).astype(np.uint8)
        create_pyramid(tmp_path / "c.zarr", shape=data.shape, axes="cyx", levels=1,
                       dtype="uint8")[0][:] = data
        for channel in (1, 2, 4):
            (tmp_path / "c.zarr" / "0" / "c" / str(channel) / "0" / "0").write_bytes(b"broken")
        for channels in ((0, 3, 5), (5, 0), (3, 0, 3)):
            pyramid = open_pyramid(tmp_path / "c.zarr", channels=channels)
            np.testing.assert_array_equal(pyramid.read(0, (2, 3), (30, 30)),
                                          data[list(channels), 2:32, 3:33])

    def test_axes_that_are_absent(self) -> None:
        with pytest.raises(InputError, match="it has no axis z"):
            open_pyramid(MOVIE[0, 0, 0], z=3)
        assert open_pyramid(MOVIE[0, 0, 0], z=0, t=0, channels=0).shape == (1, 20, 30)

    def test_near_names_are_told(self) -> None:
        pyramid = pyramid_from_arrays
        with pytest.raises(InputError, match="Did you mean 'DAPI'"):
            pyramid([MOVIE[0]], axes="czyx", channel_names=["DAPI", "GFP"], channels="DAP")
        chosen = pyramid([MOVIE[0]], axes="czyx", channel_names=["DAPI", "GFP"], channels="gfp")
        assert chosen.channel_names == ("GFP",)


class TestArrays:
    @pytest.mark.parametrize(("shape", "axes"), [
        ((50, 60), "cyx"), ((3, 50, 60), "cyx"), ((50, 60, 3), "cyx"), ((20, 50, 60), "czyx"),
        ((2, 20, 50, 60), "czyx"), ((20, 50, 60, 3), "czyx"), ((1, 2, 3, 50, 60), "czyx")])
    def test_guessed_axes(self, shape: tuple[int, ...], axes: str) -> None:
        pyramid = open_pyramid(np.zeros(shape, np.uint8))
        assert pyramid.axes == axes
        assert pyramid.spatial_shape[-2:] == (50, 60)
        assert pyramid.is_rgb == (shape[-1] == 3)

    def test_opacity_is_left_out(self) -> None:
        image = np.random.default_rng(0).integers(0, 255, (30, 40, 4)).astype(np.uint8)
        pyramid = open_pyramid(image)
        assert (pyramid.shape, pyramid.is_rgb) == ((3, 30, 40), True)
        assert open_pyramid(image, channels=3).shape == (1, 30, 40)

    def test_truth_values_and_byte_order(self) -> None:
        mask = open_pyramid(np.eye(8, dtype=bool))
        assert (mask.dtype, mask.read(0, (0, 0), (8, 8)).dtype) == (np.uint8, np.uint8)
        swapped = open_pyramid(np.arange(64, dtype=">u2").reshape(8, 8))
        assert swapped.dtype == np.dtype("<u2") == swapped.read(0, (0, 0), (1, 1)).dtype

    def test_unsorted_arrays_are_sorted(self) -> None:
        pyramid = open_pyramid([np.zeros((10, 10)), np.ones((40, 40))])
        assert pyramid.shape == (1, 40, 40)
        assert pyramid.factors[1] == (4.0, 4.0)
        assert "sorted" in pyramid.notes[0]

    @pytest.mark.parametrize(("options", "words"), [
        ({"axes": "tzc"}, "axes"), ({"axes": "qyx"}, "axes"), ({"axes": "yyx"}, "axes"),
        ({"axes": "cyx", "pixel_size": (1,)}, "pixel_size"),
        ({"axes": "cyx", "factors": [(1, 1), (2, 2)]}, "factors"),
    ])
    def test_wrong_arguments(self, options: dict[str, Any], words: str) -> None:
        array = np.zeros((3, 8, 8)) if len(options["axes"]) == 3 else np.zeros((8, 8))
        with pytest.raises(InputError, match=words):
            pyramid_from_arrays([array], **options)

    def test_channels_must_not_shrink(self) -> None:
        with pytest.raises(InputError, match="only z, y and x may shrink"):
            pyramid_from_arrays([np.zeros((4, 8, 8)), np.zeros((2, 4, 4))], axes="cyx")

    def test_content_changes_the_fingerprint(self) -> None:
        image = np.zeros((64, 64), np.uint8)
        first = open_pyramid(image).fingerprint
        image[0, 0] = 1
        assert open_pyramid(image).fingerprint != first


class TestLayers:
    def layer(self, data: Any, **options: Any) -> Any:
        base = {"multiscale": isinstance(data, list), "rgb": False, "scale": (1.0, 1.0),
                "translate": (0.0, 0.0), "units": ("pixel", "pixel"), "name": "layer"}
        return SimpleNamespace(data=data, **{**base, **options})

    def test_pixels_have_no_size(self) -> None:
        assert open_pyramid(self.layer(MOVIE[0, 0, 0])).pixel_size is None

    def test_units(self) -> None:
        layer = self.layer(MOVIE[0, 0, 0], units=("nanometer", "millimeter"), scale=(500, 0.002))
        assert open_pyramid(layer).pixel_size == (pytest.approx((0.5, 2.0)),)

    def test_volumes_and_movies(self) -> None:
        options = {"scale": (1.0,) * 3, "units": ("pixel",) * 3}
        assert open_pyramid(self.layer(MOVIE[0, 0], **options)).axes == "czyx"
        options = {"scale": (1.0,) * 4, "units": ("pixel",) * 4}
        assert open_pyramid(self.layer(MOVIE[:, 0], **options)).shape == (1, 6, 20, 30)

    def test_several_layers_are_channels(self) -> None:
        one, two = MOVIE[0, 0, 0], MOVIE[0, 1, 0]
        layers = [self.layer([one, one[::2, ::2]], name="DAPI"),
                  self.layer([two, two[::2, ::2]], name="GFP")]
        pyramid = open_pyramid(layers)
        assert (pyramid.shape, pyramid.channel_names) == ((2, 20, 30), ("DAPI", "GFP"))
        np.testing.assert_array_equal(pyramid.read(0, (2, 3), (5, 6)), MOVIE[0, :, 0, 2:7, 3:9])
        np.testing.assert_array_equal(
            open_pyramid(layers, channels="GFP").read(1, (0, 0), (10, 15))[0], two[::2, ::2])
        with pytest.raises(InputError, match="differ in shape"):
            open_pyramid([layers[0], self.layer(one[:10])])

    def test_real_ratios(self) -> None:
        layer = self.layer([np.zeros((301, 300)), np.zeros((150, 150))])
        assert open_pyramid(layer).factors[1] == (301 / 150, 2.0)


class TestMemory:
    def test_coarse_arrays_are_read_once(self, tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
        arrays = create_pyramid(tmp_path / "a.zarr", shape=(512, 512), axes="yx", levels=(1, 8),
                                dtype="uint8", chunk=64)
        arrays[1][:] = np.ones((64, 64), np.uint8)
        shared_cache.clear()
        # 64 x 64 bytes fit an eighth of the budget, 512 x 512 do not
        monkeypatch.setattr(shared_cache, "_budget", 8 * 64 * 64)
        pyramid = open_pyramid(tmp_path / "a.zarr")
        fetched: list[int] = []
        real = type(pyramid)._fetch

        def spy(self: Any, index: int, start: Any, size: Any) -> Any:
            fetched.append(index)
            return real(self, index, start, size)

        monkeypatch.setattr(type(pyramid), "_fetch", spy)
        for place in ((100, 100), (300, 300), (400, 100)):
            pyramid.crop(center=place, levels=(1, 8), size=32)
        assert fetched.count(0) == 3
        assert fetched.count(1) == 1
        assert shared_cache.used == 64 * 64
        pyramid.uncached().read(1, (0, 0), (64, 64))
        assert fetched.count(1) == 2
        shared_cache.clear()

    def test_averaged_levels_are_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        image = np.random.default_rng(0).integers(0, 255, (128, 128)).astype(np.uint8)
        pyramid, plain = open_pyramid(image), open_pyramid(image).uncached()
        calls: list[int] = []
        real = type(pyramid).read

        def spy(self: Any, index: int, start: Any, size: Any) -> Any:
            calls.append(int(np.prod(size)))
            return real(self, index, start, size)

        monkeypatch.setattr(type(pyramid), "read", spy)
        for place in ((30, 30), (60, 90), (127, 0)):
            kept = pyramid.crop(center=place, levels=(1, 4), size=16)
            again = plain.crop(center=place, levels=(1, 4), size=16)
            np.testing.assert_array_equal(kept.image, again.image)
        # the whole image once, then only crops at full resolution
        assert calls.count(128 * 128) == 1
        assert open_pyramid(image + 1).level_image(4)[0, 0, 0] != pyramid.level_image(4)[0, 0, 0]

    def test_labels_and_images_are_kept_apart(self, tmp_path: Path) -> None:
        from PIL import Image

        labels = np.kron(np.array([[1, 9], [9, 9]], np.uint8), np.ones((8, 8), np.uint8))
        labels[:3] = 0
        Image.fromarray(labels).save(tmp_path / "l.png")
        image = open_pyramid(tmp_path / "l.png")
        mean = image.level_image(4)
        mode = image.as_labels().level_image(4)
        assert set(np.unique(mode)) <= {0, 1, 9}
        assert not np.array_equal(mean, mode)

    @pytest.mark.parametrize("kind", ["array", "store"])
    def test_what_is_read_may_be_changed(self, tmp_path: Path, kind: str) -> None:
        image = np.full((32, 32), 4, np.uint8)
        source: Any = image
        if kind == "store":
            source = tmp_path / "a.zarr"
            create_pyramid(source, shape=(32, 32), axes="yx", levels=1,
                           dtype="uint8")[0][:] = image
        pyramid = open_pyramid(source)
        for _ in range(2):
            for pixels in (pyramid.read(0, (0, 0), (32, 32)), pyramid.level_image(1),
                           pyramid.level_image(4)):
                assert (pixels == 4).all()
                pixels[:] = 0

    def test_labels_in_stores_are_read_again(self, tmp_path: Path) -> None:
        arrays = create_pyramid(tmp_path / "l.zarr", shape=(64, 64), axes="yx", levels=1,
                                dtype="uint8", is_labels=True)
        pyramid = open_pyramid(tmp_path / "l.zarr")
        assert not pyramid.level_image(4).any()
        arrays[0][:] = np.full((64, 64), 5, np.uint8)
        assert (pyramid.level_image(4) == 5).all()
        assert (pyramid.read(0, (0, 0), (64, 64)) == 5).all()

    def test_the_oldest_goes_first(self) -> None:
        cache = ArrayCache(budget=800)
        made: list[str] = []

        def load(name: str) -> Any:
            made.append(name)
            return np.zeros(100, np.uint8)

        for name in "abcdefgh":
            cache.get(name, lambda name=name: load(name))
        assert cache.used == 800
        cache.get("a", lambda: load("a"))
        cache.get("i", lambda: load("i"))
        cache.get("a", lambda: load("a"))
        cache.get("b", lambda: load("b"))
        assert made == list("abcdefghi") + ["b"]
        cache.resize(100)
        assert cache.used <= 100
        assert not cache.takes(13)
        with pytest.raises(InputError, match="at least 0"):
            cache.resize(-1)

    def test_opening_reads_metadata_only(self, tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
        create_pyramid(tmp_path / "a.zarr", shape=(3, 200_000, 200_000), axes="cyx",
                       levels=(1, 8, 64), dtype="uint8")

        def refuse(*_args: Any) -> Any:
            raise OSError("pixels were read")

        monkeypatch.setattr("zarr.Array.__getitem__", refuse)
        pyramid = open_pyramid(tmp_path / "a.zarr")
        assert pyramid.shape == (3, 200_000, 200_000)
        assert pyramid.fingerprint
        assert pyramid.level_grid(32).shape == (6250, 6250)


def _mean_of_crop(pyramid: Any) -> float:
    return float(pyramid.crop(center=(50, 50), levels=(1, 2), size=32).image.mean())


def test_spawned_processes_read(tmp_path: Path) -> None:
    arrays = create_pyramid(tmp_path / "a.zarr", shape=(100, 100), axes="yx", levels=(1,),
                            dtype="uint8")
    arrays[0][:] = np.full((100, 100), 9, np.uint8)
    pyramid = open_pyramid(tmp_path / "a.zarr")
    assert _mean_of_crop(pyramid) == 9
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(_mean_of_crop, [pyramid]) == [9.0]


def test_a_pyramid_is_a_source() -> None:
    pyramid = open_pyramid(MOVIE)
    assert open_pyramid(pyramid) is pyramid
    with pytest.raises(InputError, match="already open"):
        open_pyramid(pyramid, channels=1)
    assert pyramid.renamed("new").name == "new"
    assert "axes=czyx" in repr(pyramid)


class TestOpenArrays:
    """Arrays that are open already and that no file stands for."""

    @pytest.mark.parametrize("kind", ["array", "group"])
    def test_arrays_alike_in_shape_are_different_images(self, kind: str) -> None:
        def made(value: int) -> Any:
            group = zarr.create_group(zarr.storage.MemoryStore())
            group.create_array("0", data=np.full((90, 80), value, np.uint8), chunks=(32, 32))
            return group if kind == "group" else group["0"]

        source = made(7)
        first, second = open_pyramid(source), open_pyramid(made(9))
        assert open_pyramid(source).fingerprint == first.fingerprint != second.fingerprint
        assert first.read(0, (0, 0), (4, 4)).max() == 7
        assert second.read(0, (0, 0), (4, 4)).max() == 9

    def test_one_pixel_makes_another_image(self) -> None:
        image = np.zeros((1000, 900), np.uint8)
        first, other = open_pyramid(image), image.copy()
        other[501, 333] = 200
        second = open_pyramid(other)
        assert first.fingerprint == open_pyramid(image.copy()).fingerprint != second.fingerprint
        assert first.level_image(4).max() == 0
        assert second.level_image(4).max() > 0

    @pytest.mark.parametrize("source", [np.zeros((), np.uint8), np.zeros((9, 9), "M8[s]")])
    def test_what_is_no_image_is_refused(self, source: Any) -> None:
        with pytest.raises(MuvitError, match=r"shape|values of type"):
            open_pyramid(source)

    def test_an_array_in_a_folder_is_known_again(self, tmp_path: Path) -> None:
        for name in "ab":
            zarr.create_array(tmp_path / name, data=np.zeros((40, 40), np.uint8))
        marks = [open_pyramid(zarr.open_array(tmp_path / name)).fingerprint for name in "aab"]
        assert marks[0] == marks[1] != marks[2]

    def test_equal_dask_arrays_are_one_image(self) -> None:
        zeros, ones = (da.full((40, 40), value, dtype=np.uint8, chunks=20) for value in (0, 1))
        again = da.full((40, 40), 0, dtype=np.uint8, chunks=20)
        assert open_pyramid(zeros).fingerprint == open_pyramid(again).fingerprint
        assert open_pyramid(zeros).fingerprint != open_pyramid(ones).fingerprint

    def test_arrays_of_a_class_of_ones_own_are_known_by_their_name(self) -> None:
        class View:
            shape, dtype, ndim = (40, 40), np.dtype(np.uint8), 2

            def __init__(self, name: str) -> None:
                self.name = name

            def __getitem__(self, key: Any) -> Any:
                return np.zeros((40, 40), np.uint8)[key]

        marks = [open_pyramid(View(name)).fingerprint for name in ("a", "a", "b")]
        assert marks[0] == marks[1] != marks[2]
        nameless = [open_pyramid(View("")).fingerprint for _ in range(2)]
        assert nameless[0] != nameless[1]

    def test_a_group_far_away_is_opened_by_its_address(self) -> None:
        store = zarr.storage.FsspecStore.from_url("memory://bucket/image.zarr")
        zarr.create_group(store).create_array("0", data=np.full((8, 9), 5, np.uint8))
        pyramid = open_pyramid(zarr.open_group(store, mode="r"))
        assert pyramid.shape == (1, 8, 9)
        assert pyramid.read(0, (0, 0), (8, 9)).min() == 5
