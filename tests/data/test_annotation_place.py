"""Where annotations lie."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from napari_muvit.data.annotation_place import annotation_path, image_stem
from napari_muvit.data.annotations import open_annotations
from napari_muvit.data.convert import convert
from napari_muvit.data.pyramid import open_pyramid
from napari_muvit.errors import InputError, MuvitWarning, SourceError

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
    forget(path, "part")
    with open_annotations(open_pyramid(series, **two), path=path) as store:
        assert store.is_writable


def forget(path: Path, key: str) -> None:
    """As in a store that was begun before this was noted."""
    text = json.loads((path / "zarr.json").read_text("utf-8"))
    del text["attributes"]["muvit"][key]
    (path / "zarr.json").write_text(json.dumps(text), "utf-8")


def test_the_first_time_point_finds_its_store_under_the_former_name(series: Path) -> None:
    former = series.with_name("multi_annotations.ome.zarr")
    with open_annotations(series, path=former):
        pass
    forget(former, "part")
    with open_annotations(series) as store:
        assert store.path == former
    with open_annotations(open_pyramid(series, t=1)) as store:
        assert store.path != former


def test_a_range_of_time_points_is_refused(series: Path) -> None:
    with pytest.raises(InputError, match="a range of time points"):
        open_annotations(open_pyramid(series, t=slice(0, 2)))
    with pytest.raises(InputError, match="a range of time points"):
        open_annotations(open_pyramid(series, t=slice(0, 2)), path=series.with_name("a.ome.zarr"))
    assert list(series.parent.iterdir()) == [series]


def write_image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, np.zeros((32, 48), np.uint8))
    return path


@pytest.mark.parametrize("is_named", [True, False])
def test_a_copied_project_goes_on_with_a_warning(tmp_path: Path, is_named: bool) -> None:
    first = write_image(tmp_path / "old" / "slide.tif")
    with open_annotations(first) as store:
        store.write(1, (0, 0), ONE, 2)
    shutil.copytree(first.parent, tmp_path / "new")
    second = tmp_path / "new" / "slide.tif"
    path = second.with_name(store.path.name) if is_named else None  # as Annotate does, or not
    with pytest.warns(MuvitWarning, match=f"begun on {re.escape(str(first))}") as caught:
        open_annotations(second, path=path, writable=False)
    assert len(caught) == 1
    with pytest.warns(MuvitWarning, match="is now taken for"):
        store = open_annotations(second, path=path)
    assert store.image == str(second)
    assert store.class_counts() == {2: 4}
    store.close()
    with open_annotations(second, path=path) as store:  # noted, and not said again
        assert store.image == str(second)
    with open_annotations(first) as store:
        assert store.image == str(first)


def test_a_converted_slide_keeps_its_annotations(tmp_path: Path) -> None:
    first = write_image(tmp_path / "slide.tif")
    open_annotations(first).close()
    list(convert(first, tmp_path / "slide.ome.zarr", levels=(1,)))
    with pytest.warns(MuvitWarning, match=r"taken for .*slide\.ome\.zarr"):
        open_annotations(tmp_path / "slide.ome.zarr").close()


def test_images_of_one_name_share_no_store_in_a_common_folder(tmp_path: Path) -> None:
    first, second = (write_image(tmp_path / name / "slide.tif") for name in "ab")
    for folder in (tmp_path / "common", second.parent):
        with open_annotations(first, folder=folder) as store:
            path = store.path
        for where in ({"folder": folder}, {"path": path}):
            with pytest.raises(SourceError, match="Pass another folder or path"):
                open_annotations(second, **where)  # type: ignore[arg-type]
    open_annotations(first).close()  # now the first has a store beside it as well
    for folder in (tmp_path / "common", second.parent):
        with pytest.raises(SourceError, match="Pass another folder or path"):
            open_annotations(second, folder=folder)


def test_a_copied_project_that_notes_no_place_needs_the_first_store(tmp_path: Path) -> None:
    first = write_image(tmp_path / "old" / "slide.tif")
    with open_annotations(first) as store:
        pass
    forget(store.path, "place")
    shutil.copytree(first.parent, tmp_path / "new")
    store.path.rename(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match="Pass another folder or path"):
        open_annotations(tmp_path / "new" / "slide.tif")
    (tmp_path / "elsewhere").rename(store.path)
    with pytest.warns(MuvitWarning, match="is now taken for"):
        open_annotations(tmp_path / "new" / "slide.tif").close()


def test_an_image_in_a_closed_folder_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (write_image(tmp_path / name / "slide.tif") for name in "ab")
    open_annotations(first, folder=tmp_path).close()
    stat = os.stat

    def refuse(path: Any, **options: Any) -> os.stat_result:
        if str(path) == str(first):
            raise PermissionError(13, "Permission denied")
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.warns(MuvitWarning, match="cannot look at"):
        store = open_annotations(second, folder=tmp_path)
    assert store.image == str(first)
    store.close()
