"""Where annotations lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from napari_muvit.data.annotation_place import annotation_path, image_stem
from napari_muvit.data.annotations import open_annotations
from napari_muvit.data.pyramid import open_pyramid
from napari_muvit.errors import InputError, SourceError

ONE = np.ones((2, 2), bool)


@pytest.mark.parametrize(("name", "stem"), [
    ("a.ome.tif", "a"), ("a.ome.zarr", "a"), ("a.zarr", "a"), ("a.b.svs", "a.b"), ("a", "a"),
    ("A.OME.TIFF", "A"),
])
def test_stem(name: str, stem: str) -> None:
    assert image_stem(name) == stem


@pytest.mark.parametrize(("inside", "expected"), [
    ("slide.svs", "slide_annotations.ome.zarr"),
    ("slide.ome.zarr", "slide_annotations.ome.zarr"),
    ("plate.zarr/A/1/0", "plate_A_1_0_annotations.ome.zarr"),
    ("image.zarr/labels/inner.zarr", "image_labels_inner.zarr_annotations.ome.zarr"),
])
def test_beside_the_image(tmp_path: Path, inside: str, expected: str) -> None:
    assert annotation_path(str(tmp_path / inside)) == tmp_path / expected


def test_in_a_folder(tmp_path: Path) -> None:
    for source in ("/data/slide.svs", "https://a.org/x/slide.ome.zarr", "s3://b/slide.zarr"):
        assert annotation_path(source, tmp_path) == tmp_path / "slide_annotations.ome.zarr"


@pytest.mark.parametrize("source", [None, "https://a.org/x.ome.zarr", "s3://bucket/x.zarr"])
def test_remote_images_need_a_folder(source: str | None) -> None:
    with pytest.raises(SourceError, match="Pass the folder"):
        annotation_path(source)


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """A file of two series of three time points and four planes each."""
    path = tmp_path / "multi.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        for _ in range(2):
            file.write(np.zeros((3, 4, 32, 48), np.uint8), metadata={"axes": "TZYX"})
    return path


PARTS: list[tuple[dict[str, Any], str]] = [
    ({}, "multi_t0"), ({"t": 2}, "multi_t2"), ({"image": 1}, "multi_s1_t0"),
    ({"t": 1, "z": 0}, "multi_t1_z0"), ({"image": 1, "t": -1, "z": 3}, "multi_s1_t2_z3"),
    ({"z": slice(1, 3)}, "multi_t0_z1-2"), ({"z": slice(0, 2)}, "multi_t0_z0-1"),
]


def test_each_part_of_a_file_has_its_own_annotations(series: Path) -> None:
    for value, (part, name) in enumerate(PARTS, 1):
        with open_annotations(open_pyramid(series, **part)) as store:
            assert store.path.name == f"{name}_annotations.ome.zarr"
            assert store.class_counts() == {}
            place = (0, 0, 0)[: len(store.shape)]
            store.write(1, place, ONE.reshape((1, 2, 2)[-len(place):]), value)
    for value, (part, _) in enumerate(PARTS, 1):
        with open_annotations(open_pyramid(series, **part), writable=False) as store:
            assert store.class_counts() == {value: 4}
    assert open_pyramid(series, z=slice(0, 4)).shape == open_pyramid(series).shape
    with open_annotations(open_pyramid(series, z=slice(0, 4)), writable=False) as store:
        assert store.class_counts() == {1: 4}


@pytest.mark.parametrize(("one", "two", "told"), [
    ({}, {"image": 1}, "time point 0, series 0 of its image, not time point 0, series 1"),
    ({"t": 0, "z": 0}, {"t": 2, "z": 2}, "time point 0, plane 0, series 0 of its image, not"),
    ({"z": slice(0, 2)}, {"z": slice(2, 4)}, "plane 0-1, series 0 of its image, not"),
])
def test_another_part_of_the_same_file_is_refused(
    series: Path, one: dict[str, Any], two: dict[str, Any], told: str
) -> None:
    path = series.with_name("mine.ome.zarr")
    with open_annotations(open_pyramid(series, **one), path=path):
        pass
    with pytest.raises(SourceError, match=told):
        open_annotations(open_pyramid(series, **two), path=path)
    with open_annotations(open_pyramid(series, **one), path=path) as store:
        assert store.is_writable
    forget_part(path)
    with open_annotations(open_pyramid(series, **two), path=path) as store:
        assert store.is_writable


def forget_part(path: Path) -> None:
    """As in a store that was begun before parts were noted."""
    text = json.loads((path / "zarr.json").read_text("utf-8"))
    del text["attributes"]["muvit"]["part"]
    (path / "zarr.json").write_text(json.dumps(text), "utf-8")


def test_the_first_time_point_finds_its_store_under_the_former_name(series: Path) -> None:
    former = series.with_name("multi_annotations.ome.zarr")
    with open_annotations(series, path=former):
        pass
    forget_part(former)
    with open_annotations(series) as store:
        assert store.path == former
    with open_annotations(open_pyramid(series, t=1)) as store:
        assert store.path != former


def test_a_range_of_time_points_is_refused(series: Path) -> None:
    with pytest.raises(InputError, match="a range of time points"):
        open_annotations(open_pyramid(series, t=slice(0, 2)))
    assert list(series.parent.iterdir()) == [series]
