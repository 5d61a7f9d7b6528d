"""Everything in the folder of real images opens, or is refused in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_muvit.data.pyramid import open_pyramid
from napari_muvit.errors import MuvitError, SourceError

PICTURES = {".png", ".jpg", ".tif", ".tiff", ".svs", ".ndpi"}


def found(real_data: Path) -> list[Path]:
    stores = [p.parent for name in ("zarr.json", ".zattrs", ".zarray")
              for p in (real_data / "stores").rglob(name)]
    folders = {p.parent for p in real_data.rglob("*") if p.suffix in PICTURES}
    pictures = [p for folder in folders
                for p in sorted(q for q in folder.iterdir() if q.suffix in PICTURES)[:4]]
    return sorted({*stores, *pictures})


def test_all_of_it(real_data: Path) -> None:
    opened, refused = 0, []
    for path in found(real_data):
        try:
            pyramid = open_pyramid(path)
            center = [n / 2 for n in pyramid.spatial_shape]
            crop = pyramid.crop(center=center, levels=(1, 2, 8), size=8)
        except MuvitError as error:
            refused.append(f"{path.relative_to(real_data)}: {error}")
            continue
        opened += 1
        assert crop.image.shape[:2] == (3, pyramid.num_channels)
        assert crop.valid.any()
    assert opened > 80
    # broken examples, folders of tables and lists of images, nothing else
    allowed = ("examples/invalid", "tables", "plate-01.zarr", "OME", "wells", "A", "B")
    assert not [line for line in refused if not any(word in line for word in allowed)]


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
