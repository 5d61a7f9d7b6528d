"""Everything in the folder of real images opens, or is refused in a sentence."""

from __future__ import annotations

import contextlib
import gc
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_muvit.data.pyramid import open_pyramid
from napari_muvit.errors import MuvitError, SourceError

METADATA = ("zarr.json", ".zattrs", ".zgroup", ".zarray")
REFUSED = (
    "stores/examples/invalid/*",
    # groups without an image: tables, the list of labels where there are none, rows of a plate
    "stores/axes_v0?/*.zarr/tables*", "stores/examples/*/labels", "*/plate-01.zarr/[AB]",
    # several images, which are listed
    "stores/examples/valid/plate-01.zarr", "stores/nuclei_plk1_ngff04.ome.zarr/OME",
    # what is no image
    "*.txt", "*.md", "*.json", "*.csv", "*.npz", "*LICENSE",
)


def found(folder: Path) -> list[Path]:
    """Every group and array of every store, and every file outside of them."""
    stores = {p.parent for name in METADATA for p in folder.rglob(name)}
    files = [p for p in folder.rglob("*") if p.is_file() and not stores & set(p.parents)]
    return sorted([*stores, *files])


def read_a_little(path: Path) -> None:
    pyramid = open_pyramid(path)
    center = [n / 2 for n in pyramid.spatial_shape]
    crop = pyramid.crop(center=center, levels=(1, 2, 8), size=8)
    assert crop.image.shape[:2] == (3, pyramid.num_channels)
    assert crop.valid.any()


def test_all_of_it(real_data: Path) -> None:
    refused, opened = {}, []
    for path in found(real_data):
        name = path.relative_to(real_data).as_posix()
        try:
            read_a_little(path)
            opened.append(name)
        except MuvitError as error:
            refused[name] = str(error)
    assert len(opened) > 250

    def is_expected(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in REFUSED)

    assert not {n: why for n, why in refused.items() if not is_expected(n)}
    assert not [n for n in opened if is_expected(n) and "invalid" not in n]
    for name, why in refused.items():
        assert "\n" not in why
        assert Path(name).name in why, why


@pytest.mark.faults
@pytest.mark.parametrize("name", ["dapi_section.ndpi", "tritc_section.ndpi",
                                  "cmu_small_region.svs", "artificial_4d.ome.tiff"])
def test_slides_that_were_cut_short(real_data: Path, tmp_path: Path, name: str) -> None:
    content = (real_data / "slides" / name).read_bytes()
    file = tmp_path / name
    for share in (0.001, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999):
        file.write_bytes(content[:int(len(content) * share)])
        with pytest.raises(SourceError) as caught:
            read_a_little(file)
        assert str(file) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.faults
@pytest.mark.parametrize("name", ["dapi_section.ndpi", "cmu_small_region.svs"])
def test_slides_filled_with_noise(real_data: Path, tmp_path: Path, name: str) -> None:
    """A tenth of the bytes, drawn anywhere: pixels may be wrong, the rest must be a sentence.

    No file stays open either: pytest makes an error of each that is found open as garbage.
    """
    content = np.frombuffer((real_data / "slides" / name).read_bytes(), np.uint8)
    file = tmp_path / name
    for seed in range(8):
        rng = np.random.default_rng(seed)
        damaged = content.copy()
        begin = int(rng.integers(len(content) * 9 // 10))
        damaged[begin:begin + len(content) // 10] = rng.integers(0, 256, len(content) // 10)
        file.write_bytes(damaged.tobytes())
        with contextlib.suppress(MuvitError):
            read_a_little(file)
        gc.collect()


@pytest.mark.parametrize(("name", "words"), [
    ("image-01.zarr", "multiscales"), ("image-02.zarr", "multiscales"),
    ("image-03.zarr", "multiscales.datasets.path"), ("image-04.zarr", "datasets")])
def test_broken_examples(real_data: Path, name: str, words: str) -> None:
    with pytest.raises(SourceError) as caught:
        open_pyramid(real_data / "stores" / "examples" / "invalid" / name)
    assert name in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(("name", "expected"), [
    ("stores/axes_v04/test_image_tczyx.zarr", ("czyx", (2, 10, 64, 64))),
    ("stores/axes_v05/test_image_c1yx.zarr", ("cyx", (2, 64, 64))),
    ("stores/axes_v05/test_image_yx.zarr", ("cyx", (1, 64, 64))),
    ("stores/cyx_uint8_ngff05.zarr", ("cyx", (3, 16, 20))),
    ("stores/blobs_version04dev.ome.zarr", ("cyx", (3, 12, 12))),
    ("slides/artificial_4d.ome.tiff", ("czyx", (1, 5, 167, 439))),
    ("slides/cmu_small_region.svs", ("cyx", (3, 2967, 2220))),
])
def test_axes(real_data: Path, name: str, expected: Any) -> None:
    pyramid = open_pyramid(real_data / name)
    assert (pyramid.axes, pyramid.shape) == expected


def test_image_and_finer_labels_share_a_place(real_data: Path) -> None:
    store = real_data / "stores" / "idr_6001240_ngff05_sharded.zarr"
    image, labels = open_pyramid(store), open_pyramid(store / "labels" / "0")
    assert labels.is_labels
    assert image.pixel_size is not None
    assert labels.pixel_size is not None
    assert image.pixel_size[0] == pytest.approx(labels.pixel_size[2])
    assert image.channel_names == ("LaminB1", "Dapi")
    by_name = open_pyramid(store, channels="dapi", z=118)
    assert by_name.shape == (1, 68, 67)
    np.testing.assert_array_equal(by_name.read(0, (0, 0), (68, 67))[0],
                                  image.read(0, (118, 0, 0), (1, 68, 67))[1, 0])


def test_pixel_sizes(real_data: Path) -> None:
    for name, size in (("slides/dapi_section.ndpi", 0.228175), ("slides/cmu_small_region.svs",
                       0.499), ("stores/nuclei_plk1_ngff04.ome.zarr", 0.166053)):
        pyramid = open_pyramid(real_data / name)
        assert pyramid.pixel_size is not None
        assert pyramid.pixel_size[0] == pytest.approx((size, size), rel=1e-4)


def test_slides_say_more_than_one_image(real_data: Path) -> None:
    slide = real_data / "slides" / "cmu_small_region.svs"
    assert open_pyramid(slide, image="Thumbnail").shape == (3, 768, 574)
    assert open_pyramid(slide, image=3).shape == (3, 431, 1280)
    with pytest.raises(SourceError, match="Did you mean 'Thumbnail'"):
        open_pyramid(slide, image="thumbnails")
