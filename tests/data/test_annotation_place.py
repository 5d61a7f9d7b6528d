"""Where annotations lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from napari_muvit.data.annotation_place import annotation_path, image_stem
from napari_muvit.errors import SourceError


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
