"""Stores that we write: valid metadata, exact scales, only what was touched on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from napari_muvit.data.omezarr import create_pyramid, open_arrays
from napari_muvit.data.pyramid import open_pyramid
from napari_muvit.errors import InputError, RunExistsError, SourceError


@dataclass(frozen=True)
class Row:
    value: int
    name: str
    color: str


@dataclass(frozen=True)
class Table:
    """Just enough of a class table."""

    classes: tuple[Row, ...]
    unlabelled: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {"classes": [vars(row) for row in self.classes], "unlabelled": 0}


TABLE = Table((Row(1, "nucleus", "#ff8000"), Row(2, "rest", "#0000ff")))


def metadata(path: Path, fmt: str) -> dict[str, Any]:
    if fmt == "0.4":
        return dict(json.loads((path / ".zattrs").read_text()))
    return dict(json.loads((path / "zarr.json").read_text())["attributes"])


@pytest.mark.parametrize(("fmt", "shard"), [("0.4", None), ("0.5", None), ("0.5", 64)])
@pytest.mark.parametrize(("axes", "shape"), [("yx", (70, 90)), ("cyx", (3, 70, 90)),
                                             ("zyx", (9, 70, 90)), ("tczyx", (2, 5, 9, 70, 90))])
def test_written_stores_are_valid_and_read_back(
    tmp_path: Path, fmt: str, shard: int | None, axes: str, shape: tuple[int, ...]
) -> None:
    path = tmp_path / "image.ome.zarr"
    sizes = (2.0, 0.5, 0.25)[-len([a for a in axes if a in "zyx"]):]
    names = [f"c{i}" for i in range(shape[axes.index("c")])] if "c" in axes else None
    arrays = create_pyramid(path, shape=shape, axes=axes, levels=(1, 2.5, 8), dtype="uint16",
                            chunk=32, shard=shard, pixel_size=sizes, fmt=fmt, channel_names=names)
    for number, array in enumerate(arrays):
        array[:] = number + 1
    _validate(path, fmt)
    t = 1 if "t" in axes else None
    pyramid = open_pyramid(path, t=t)
    assert [f[-1] for f in pyramid.factors] == pytest.approx([1, 2.5, 8])
    assert [o[-1] for o in pyramid.offsets] == pytest.approx([0, 0.75, 3.5])
    assert pyramid.pixel_size is not None
    assert pyramid.pixel_size[0] == pytest.approx(sizes)
    assert pyramid.shapes[2][-2:] == (9, 12)
    assert pyramid.shapes[0] == pyramid.spatial_shape
    if names:
        assert list(pyramid.channel_names) == names
    for number in range(3):
        pixels = pyramid.read(number, [0] * pyramid.ndim, pyramid.shapes[number])
        assert (pixels == number + 1).all()
    if shard:
        assert arrays[0].shards[-2:] == (64, 64)


def _validate(path: Path, fmt: str) -> None:
    """By the models of the specification, where they are installed."""
    models = pytest.importorskip("ome_zarr_models", reason="needs napari-muvit[test]")
    group = zarr.open_group(path, mode="r")
    checker = models.v04.Image if fmt == "0.4" else models.v05.Image
    assert checker.from_zarr(group)


@pytest.mark.parametrize("fmt", ["0.4", "0.5"])
def test_labels_carry_their_classes(tmp_path: Path, fmt: str) -> None:
    path = tmp_path / "labels.zarr"
    create_pyramid(path, shape=(64, 64), axes="yx", levels=(1, 4), dtype="uint8", fmt=fmt,
                   classes=TABLE)  # type: ignore[arg-type]
    found = metadata(path, fmt)
    block = found.get("ome", found)["image-label"]
    assert block["colors"][0] == {"label-value": 1, "rgba": [255, 128, 0, 255]}
    assert block["properties"][1] == {"label-value": 2, "class": "rest"}
    pyramid = open_pyramid(path)
    assert pyramid.is_labels
    assert pyramid.label_metadata is not None
    assert pyramid.label_metadata["muvit"]["classes"] == TABLE.to_dict()
    assert pyramid.label_metadata["image-label"]["colors"]


def test_labels_without_a_table(tmp_path: Path) -> None:
    create_pyramid(tmp_path / "l.zarr", shape=(8, 8), axes="yx", levels=1, dtype="uint8",
                   is_labels=True)
    assert open_pyramid(tmp_path / "l.zarr").is_labels


def test_places_keep_the_outer_edge(tmp_path: Path) -> None:
    create_pyramid(tmp_path / "p.zarr", shape=(64, 64), axes="yx", levels=(1, 4), dtype="uint8",
                   pixel_size=(0.5, 0.5), translation=(100.0, 20.0))
    rows = metadata(tmp_path / "p.zarr", "0.5")["ome"]["multiscales"][0]["datasets"]
    shifts = [row["coordinateTransformations"][1]["translation"] for row in rows]
    assert shifts == [[100.0, 20.0], [100.75, 20.75]]
    pyramid = open_pyramid(tmp_path / "p.zarr")
    assert pyramid.origin == (100.0, 20.0)
    assert pyramid.offsets[1] == (1.5, 1.5)


def test_only_touched_chunks_exist(tmp_path: Path) -> None:
    path = tmp_path / "sparse.zarr"
    arrays = create_pyramid(path, shape=(200_000, 200_000), axes="yx", levels=(1, 8, 32),
                            dtype="uint8")
    arrays[0][1000:1010, 5000:5010] = 3
    chunks = [file for file in path.rglob("*") if file.is_file() and file.name != "zarr.json"]
    assert len(chunks) == 1
    again = open_arrays(path)
    assert [array.shape[0] for array in again] == [200_000, 25_000, 6250]
    again[0][0, 0] = 9
    assert open_pyramid(path).read(0, (0, 0), (1, 1)) == 9


def test_nothing_is_overwritten_unless_asked(tmp_path: Path) -> None:
    options: dict[str, Any] = {"shape": (8, 8), "axes": "yx", "levels": 1, "dtype": "uint8"}
    create_pyramid(tmp_path / "a.zarr", **options)
    with pytest.raises(RunExistsError, match="already exists"):
        create_pyramid(tmp_path / "a.zarr", **options)
    create_pyramid(tmp_path / "a.zarr", **options, overwrite=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    with pytest.raises(RunExistsError, match="no zarr store"):
        create_pyramid(tmp_path / "notes", **options, overwrite=True)
    assert (tmp_path / "notes" / "thesis.txt").exists()


@pytest.mark.parametrize(("change", "words"), [
    ({"axes": "xy"}, "axes"), ({"axes": "cyx"}, "shape"), ({"shape": (0, 8)}, "shape"),
    ({"fmt": "0.3"}, "fmt"), ({"fmt": "0.4", "shard": 64}, "shards"), ({"chunk": 0}, "chunk"),
    ({"chunk": (1, 2, 3)}, "chunk"), ({"levels": (4, 2)}, "ascending"),
    ({"chunk": "512"}, "chunk"), ({"chunk": 0.5}, "chunk"), ({"chunk": None}, "chunk"),
    ({"pixel_size": (1,)}, "pixel_size"), ({"translation": (1, float("nan"))}, "translation"),
])
def test_wrong_arguments_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    options: dict[str, Any] = {"shape": (8, 8), "axes": "yx", "levels": 1, "dtype": "uint8"}
    with pytest.raises(InputError, match=words):
        create_pyramid(tmp_path / "x.zarr", **{**options, **change})
    assert not (tmp_path / "x.zarr").exists()


def test_channel_names_must_fit(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="channel_names"):
        create_pyramid(tmp_path / "x.zarr", shape=(2, 8, 8), axes="cyx", levels=1, dtype="uint8",
                       channel_names=["a"])


def test_open_arrays_needs_a_store_of_ours(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "g.zarr")
    with pytest.raises(SourceError, match="no array '0'"):
        open_arrays(tmp_path / "g.zarr")


def test_ome_zarr_reads_what_we_write(tmp_path: Path) -> None:
    import warnings

    pytest.importorskip("ome_zarr")
    path = tmp_path / "image.ome.zarr"
    arrays = create_pyramid(path, shape=(2, 64, 64), axes="cyx", levels=(1, 2), dtype="uint8",
                            channel_names=["a", "b"])
    arrays[0][:] = np.ones((2, 64, 64), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ome_zarr.io import parse_url
        from ome_zarr.reader import Reader

        node = next(iter(Reader(parse_url(path))()))
    assert [level.shape for level in node.data] == [(2, 64, 64), (2, 32, 32)]
