"""OME-Zarr as it is found: old versions, odd metadata, and the groups around images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from napari_muvit.data.pyramid import open_pyramid
from napari_muvit.errors import SourceError

TRANSFORM = "coordinateTransformations"


def write(
    path: Path, metadata: dict[str, Any], shapes: list[tuple[int, ...]], zarr_format: int = 2,
    inside: str = "",
) -> Path:
    """Arrays "0", "1", .. and attributes as given."""
    group = zarr.open_group(path, path=inside, mode="a", zarr_format=zarr_format)
    for number, shape in enumerate(shapes):
        data = np.full(shape, number + 1, np.uint8)
        group.create_array(str(number), data=data, chunks=shape)
    group.attrs.update(metadata)
    return path


def datasets(*transforms: Any) -> list[dict[str, Any]]:
    return [{"path": str(i), **({} if t is None else {TRANSFORM: t})}
            for i, t in enumerate(transforms)]


def scale(*values: float) -> dict[str, Any]:
    return {"type": "scale", "scale": list(values)}


def shift(*values: float) -> dict[str, Any]:
    return {"type": "translation", "translation": list(values)}


@pytest.mark.parametrize("version", ["0.1", "0.2"])
def test_before_axes_there_were_five(tmp_path: Path, version: str) -> None:
    path = write(tmp_path / "a.zarr", {"multiscales": [
        {"version": version, "datasets": datasets(None, None)}]},
        [(1, 2, 1, 30, 41), (1, 2, 1, 15, 20)])
    pyramid = open_pyramid(path)
    assert (pyramid.axes, pyramid.shape) == ("cyx", (2, 30, 41))
    assert pyramid.kind == f"OME-Zarr {version}"
    assert pyramid.factors[1] == (2.0, 41 / 20)
    assert pyramid.offsets[1] == pytest.approx((0.5, (41 / 20 - 1) / 2))


def test_axes_as_letters(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", {"multiscales": [
        {"version": "0.3", "axes": ["t", "y", "x"], "datasets": datasets(None)}]}, [(2, 8, 9)])
    assert open_pyramid(path, t=1).shape == (1, 8, 9)


@pytest.mark.parametrize("version", ["0.4", "0.4-dev", "0.5.1", "9", None, 0.4])
def test_any_version_string(tmp_path: Path, version: Any) -> None:
    axes = [{"name": name} for name in ("C", "Y", "X")]
    path = write(tmp_path / "a.zarr", {"multiscales": [
        {"version": version, "axes": axes, "datasets": datasets([scale(1, 1, 1)])}]}, [(2, 8, 9)])
    assert open_pyramid(path).shape == (2, 8, 9)


AXES = [{"name": "y", "type": "space", "unit": "micrometer"},
        {"name": "x", "type": "space", "unit": "nanometer"}]


def test_scales_times_the_common_scale(tmp_path: Path) -> None:
    multiscale = {"axes": AXES, "datasets": datasets([scale(1, 1)], [scale(2, 4)]),
                  TRANSFORM: [scale(0.5, 250)]}
    path = write(tmp_path / "a.zarr", {"ome": {"version": "0.5", "multiscales": [multiscale]}},
                 [(8, 8), (4, 2)], zarr_format=3)
    pyramid = open_pyramid(path)
    assert pyramid.factors[1] == (2.0, 4.0)
    assert pyramid.offsets[1] == (0.5, 1.5)
    assert pyramid.pixel_size == (pytest.approx((0.5, 0.25)), pytest.approx((1.0, 1.0)))


def test_translations_are_exact(tmp_path: Path) -> None:
    # sampled every second pixel, from the first: centres stay where they were
    rows = datasets([scale(0.5, 0.5), shift(10, 20)], [scale(1, 1), shift(10, 20.5)])
    path = write(tmp_path / "a.zarr", {"multiscales": [{"axes": AXES, "datasets": rows}]},
                 [(8, 8), (4, 4)])
    pyramid = open_pyramid(path)
    assert pyramid.offsets == ((0.0, 0.0), (0.0, 1.0))
    assert pyramid.origin == (10.0, 20.0)
    assert pyramid.spacing == (0.5, 0.5)


def test_missing_translations_share_the_first_edge(tmp_path: Path) -> None:
    rows = datasets([scale(0.5, 0.5), shift(10, 20)], [scale(1, 1)])
    path = write(tmp_path / "a.zarr", {"multiscales": [{"axes": AXES, "datasets": rows}]},
                 [(8, 8), (4, 4)])
    pyramid = open_pyramid(path)
    assert pyramid.offsets[1] == (0.5, 0.5)
    assert pyramid.origin == (10.0, 20.0)


def test_a_common_translation_moves_all(tmp_path: Path) -> None:
    multiscale = {"axes": AXES, "datasets": datasets([scale(1, 1)], [scale(2, 2)]),
                  TRANSFORM: [scale(0.5, 0.5), shift(7, 8)]}
    path = write(tmp_path / "a.zarr", {"multiscales": [multiscale]}, [(8, 8), (4, 4)])
    pyramid = open_pyramid(path)
    assert pyramid.offsets[1] == (0.5, 0.5)
    assert pyramid.origin == (7.0, 8.0)


def test_scales_that_were_never_filled_in(tmp_path: Path) -> None:
    rows = datasets([scale(1, 1), shift(3, 3)], [scale(1, 1), shift(3, 3)])
    path = write(tmp_path / "a.zarr", {"multiscales": [{"axes": AXES, "datasets": rows}]},
                 [(64, 64), (16, 16)])
    pyramid = open_pyramid(path)
    assert pyramid.factors[1] == (4.0, 4.0)
    assert pyramid.offsets[1] == (1.5, 1.5)
    assert pyramid.origin == (3.0, 3.0)
    assert "contradict" in pyramid.notes[0]


def test_real_ratios_from_metadata(tmp_path: Path) -> None:
    rows = datasets([scale(1, 1)], [scale(301 / 150, 2)])
    path = write(tmp_path / "a.zarr", {"multiscales": [{"axes": AXES, "datasets": rows}]},
                 [(301, 60), (150, 30)])
    assert open_pyramid(path).factors[1] == pytest.approx((301 / 150, 2))


def test_a_volume_that_keeps_its_planes(tmp_path: Path) -> None:
    axes = [{"name": "z"}, *AXES]
    rows = datasets([scale(2, 1, 1)], [scale(2, 2, 2)])
    path = write(tmp_path / "a.zarr", {"multiscales": [{"axes": axes, "datasets": rows}]},
                 [(5, 8, 8), (5, 4, 4)])
    pyramid = open_pyramid(path)
    assert pyramid.factors[1] == (1.0, 2.0, 2.0)
    assert pyramid.pixel_size is not None
    # z has no unit and is taken to share that of y
    assert pyramid.pixel_size[0] == pytest.approx((2.0, 1.0, 0.001))


IMAGE = {"multiscales": [{"axes": AXES, "datasets": datasets([scale(1, 1)])}]}


class TestGroupsAroundImages:
    def test_several_images_are_listed(self, tmp_path: Path) -> None:
        root = zarr.create_group(tmp_path / "raw.zarr", zarr_format=2)
        root.attrs["bioformats2raw.layout"] = 3
        for name in ("0", "1"):
            write(tmp_path / "raw.zarr", IMAGE, [(8, 8 + int(name))], inside=name)
        with pytest.raises(SourceError, match=r"2 images: 0, 1\. Choose one with image="):
            open_pyramid(tmp_path / "raw.zarr")
        assert open_pyramid(tmp_path / "raw.zarr", image=1).shape == (1, 8, 9)
        assert open_pyramid(tmp_path / "raw.zarr" / "1").shape == (1, 8, 9)

    def test_series_of_the_ome_group(self, tmp_path: Path) -> None:
        root = zarr.create_group(tmp_path / "raw.zarr")
        root.attrs["ome"] = {"version": "0.5", "bioformats2raw.layout": 3}
        root.create_group("OME").attrs["ome"] = {"version": "0.5", "series": ["b"]}
        write(tmp_path / "raw.zarr", {"ome": IMAGE}, [(8, 8)], zarr_format=3, inside="b")
        assert open_pyramid(tmp_path / "raw.zarr").shape == (1, 8, 8)

    def test_labels(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.zarr", IMAGE, [(8, 8)])
        zarr.open_group(path, path="labels", mode="a", zarr_format=2).attrs["labels"] = ["cells"]
        write(path, {**IMAGE, "image-label": {}}, [(8, 8)], inside="labels/cells")
        assert not open_pyramid(path).is_labels
        assert open_pyramid(path / "labels").is_labels
        assert open_pyramid(path, image="labels/cells").is_labels

    def test_wells(self, tmp_path: Path) -> None:
        root = zarr.create_group(tmp_path / "p.zarr", zarr_format=2)
        well = root.create_group("B/3")
        well.attrs["well"] = {"images": [{"path": "0"}, {"path": "1"}]}
        for name in ("0", "1"):
            write(tmp_path / "p.zarr", IMAGE, [(8, 8)], inside=f"B/3/{name}")
        assert open_pyramid(tmp_path / "p.zarr" / "B" / "3", image="1").shape == (1, 8, 8)
        with pytest.raises(SourceError, match="2 images: 0, 1"):
            open_pyramid(tmp_path / "p.zarr" / "B" / "3")


@pytest.mark.parametrize(("change", "words"), [
    ({"axes": AXES[:1]}, "multiscales.axes"), ({"axes": [{"name": "y"}, {"name": "y"}]}, "axes"),
    ({"axes": "yx"}, "axes"), ({"datasets": []}, "multiscales.datasets"),
    ({"datasets": [{"path": "../../secret"}]}, "leads out"),
    ({"datasets": datasets([scale(0, 1)])}, "above 0"),
    ({"datasets": datasets([scale(1)])}, "coordinateTransformations"),
    ({"datasets": datasets([scale(1, 1), shift(1, float("inf"))])}, "finite"),
    ({"datasets": datasets([{"type": "scale", "scale": ["1", "1"]}])}, "finite"),
])
def test_broken_keys_are_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    multiscale = {"axes": AXES, "datasets": datasets([scale(1, 1)]), **change}
    path = write(tmp_path / "broken.zarr", {"multiscales": [multiscale]}, [(8, 8)])
    with pytest.raises(SourceError, match=words) as caught:
        open_pyramid(path)
    assert "broken.zarr" in str(caught.value)
