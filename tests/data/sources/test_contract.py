"""One contract for every kind of source: same image, same pixels, same places."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from source_makers import KINDS, PIXEL_UM, SHAPE, halved, picture

from napari_muvit.data.pyramid import Pyramid, open_pyramid
from napari_muvit.errors import InputError

KNOWS_SIZE = {"ngff_04", "ngff_05", "ngff_05_sharded", "bioformats2raw", "plate",
              "pyramidal_tiff", "svs", "layer"}


class Sources(dict[str, Any]):
    """Each kind is made when it is first asked for; one whose package is missing skips."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        super().__init__()
        self._factory = factory

    def __missing__(self, kind: str) -> Any:
        self[kind] = KINDS[kind](self._factory.mktemp(kind))
        return self[kind]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return Sources(tmp_path_factory)


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pyramid(kind: str, sources: dict[str, Any]) -> Pyramid:
    return open_pyramid(sources[kind])


class PyramidContract:
    """What every source must do."""

    def test_says_what_it_is(self, pyramid: Pyramid) -> None:
        assert pyramid.shape == SHAPE
        assert pyramid.spatial_shape == SHAPE[1:]
        assert (pyramid.axes, pyramid.ndim, pyramid.dtype) == ("cyx", 2, np.uint8)
        assert len(pyramid.channel_names) == 3
        assert pyramid.factors[0] == (1.0, 1.0)
        assert pyramid.offsets[0] == (0.0, 0.0)
        assert pyramid.name
        np.testing.assert_array_equal(pyramid.extent, [[-0.5, -0.5], [150.5, 102.5]])

    def test_gives_the_pixels(self, pyramid: Pyramid) -> None:
        np.testing.assert_array_equal(pyramid.read(0, (0, 0), SHAPE[1:]), picture())
        np.testing.assert_array_equal(
            pyramid.read(0, (31, 90), (40, 13)), picture()[:, 31:71, 90:103])

    def test_every_array_is_where_it_says(self, pyramid: Pyramid) -> None:
        image = picture()
        for index in range(len(pyramid.factors)):
            size = pyramid.shapes[index]
            np.testing.assert_array_equal(pyramid.read(index, (0, 0), size), image)
            factor, offset = np.array(pyramid.factors[index]), np.array(pyramid.offsets[index])
            # the ratio of shapes, within the pixel that rounding takes
            assert np.all(np.abs(size - np.array(SHAPE[1:]) / factor) <= 1)
            np.testing.assert_allclose(offset, (factor - 1) / 2)
            image = halved(image)

    def test_crops_inside(self, pyramid: Pyramid) -> None:
        crop = pyramid.crop(center=(70, 50), levels=(1, 2), size=16)
        assert crop.image.shape == (2, 3, 16, 16)
        assert crop.valid.all()
        np.testing.assert_array_equal(crop.bbox[0], [[61.5, 41.5], [77.5, 57.5]])
        np.testing.assert_array_equal(crop.image[0], picture()[:, 62:78, 42:58])
        start = np.round((crop.bbox[1, 0] + 0.5) / 2).astype(int)
        expected = halved(picture())[:, start[0]:start[0] + 16, start[1]:start[1] + 16]
        np.testing.assert_array_equal(crop.image[1], expected)

    def test_pads_outside(self, pyramid: Pyramid) -> None:
        crop = pyramid.crop(corner=(-10, 95), levels=1, size=20)
        assert crop.image.shape == (1, 3, 20, 20)
        np.testing.assert_array_equal(crop.bbox[0], [[-10.5, 94.5], [9.5, 114.5]])
        expected = np.zeros((20, 20), bool)
        expected[10:, :8] = True
        np.testing.assert_array_equal(crop.valid[0], expected)
        np.testing.assert_array_equal(crop.image[0, :, 10:, :8], picture()[:, :10, 95:])
        assert not crop.image[0, :, ~expected].any()

    def test_far_outside_is_all_padding(self, pyramid: Pyramid) -> None:
        crop = pyramid.crop(center=(9000, -9000), levels=(1, 4), size=8)
        assert not crop.valid.any()
        assert not crop.image.any()

    def test_channels_by_index_name_and_range(self, kind: str, sources: dict[str, Any]) -> None:
        source = sources[kind]
        for channels, expected in ((1, [1]), ((2, 0), [2, 0]), (slice(1, 3), [1, 2]),
                                   (-1, [2]), (range(2), [0, 1])):
            part = open_pyramid(source, channels=channels)
            pixels = part.read(0, (3, 4), (10, 11))
            np.testing.assert_array_equal(pixels, picture()[expected, 3:13, 4:15])
        names = open_pyramid(source).channel_names
        chosen = open_pyramid(source, channels=[names[2], names[0]])
        assert chosen.channel_names == (names[2], names[0])
        np.testing.assert_array_equal(chosen.read(0, (0, 0), (2, 2)), picture()[[2, 0], :2, :2])

    def test_pickles_without_open_files(self, pyramid: Pyramid) -> None:
        before = pyramid.read(0, (0, 0), (5, 6))
        again = pickle.loads(pickle.dumps(pyramid))
        np.testing.assert_array_equal(again.read(0, (0, 0), (5, 6)), before)
        assert again.fingerprint == pyramid.fingerprint

    def test_reads_from_threads(self, pyramid: Pyramid) -> None:
        image = picture()

        def check(k: int) -> bool:
            y, x = 7 * k % 120, 11 * k % 80
            return bool((pyramid.read(0, (y, x), (20, 20)) == image[:, y:y+20, x:x+20]).all())

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(check, range(40)))

    def test_refuses_reads_outside(self, pyramid: Pyramid) -> None:
        for start, size in (((-1, 0), (5, 5)), ((0, 100), (5, 5)), ((0, 0), (0, 5))):
            with pytest.raises(InputError, match="leaves array 0"):
                pyramid.read(0, start, size)

    def test_fingerprint_tells_selections_apart(self, kind: str, sources: dict[str, Any]) -> None:
        source = sources[kind]
        marks = {open_pyramid(source, channels=c).fingerprint for c in (None, 0, 1)}
        assert len(marks) == 3
        assert open_pyramid(source).fingerprint in marks

    def test_missing_levels_equal_stored_ones(self, pyramid: Pyramid) -> None:
        # 2 x 2 means of 2 x 2 means, as in every stored pyramid; rounding twice may differ by 1
        expected = halved(halved(picture())).astype(int)
        level = pyramid.level_image(4)
        assert level.shape == expected.shape
        # where the image ends inside a block, means of means weigh its pixels differently
        assert np.abs(level - expected)[:, :37, :25].max() <= 1

    def test_level_image_has_the_grid_of_crops(self, pyramid: Pyramid) -> None:
        whole = pyramid.level_image(3)
        assert whole.shape == (3, 51, 35)
        crop = pyramid.crop(center=(60, 60), levels=3, size=10)
        start = np.round((crop.bbox[0, 0] + 0.5) / 3).astype(int)
        np.testing.assert_array_equal(
            crop.image[0], whole[:, start[0]:start[0] + 10, start[1]:start[1] + 10])


class TestEveryKind(PyramidContract):
    def test_pixel_size_where_the_file_has_one(self, kind: str, pyramid: Pyramid) -> None:
        if kind not in KNOWS_SIZE:
            assert pyramid.pixel_size is None
            return
        assert pyramid.pixel_size is not None
        np.testing.assert_allclose(pyramid.pixel_size[0], PIXEL_UM)
        for size, factor in zip(pyramid.pixel_size, pyramid.factors, strict=True):
            np.testing.assert_allclose(size, PIXEL_UM * np.array(factor))

    def test_colours_are_recognised(self, kind: str, pyramid: Pyramid) -> None:
        # arrays with the channels first say nothing about colour
        colour_last = {"tiff", "pyramidal_tiff", "svs", "png", "layer"}
        named = {"ngff_04", "ngff_05", "ngff_05_sharded", "bioformats2raw", "plate"}
        assert pyramid.is_rgb == (kind in colour_last | named)
