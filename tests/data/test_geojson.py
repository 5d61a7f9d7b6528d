"""GeoJSON as QuPath writes it, in and out."""

from __future__ import annotations

import contextlib
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_muvit.data.geojson import export_geojson, read_geojson, write_geojson
from napari_muvit.data.labels import ClassTable, LabelClass
from napari_muvit.data.outlines import trace_labels
from napari_muvit.data.output import OutputLayout, PredictionStore
from napari_muvit.data.pyramid import open_pyramid
from napari_muvit.data.rasterize import fill_rings
from napari_muvit.errors import MuvitError, MuvitWarning, SourceError

TABLE = ClassTable(
    (LabelClass(1, "background", "#808080"), LabelClass(2, "Tumor", "#c80000")), 0, 1
)
SQUARE = [[0, 0], [4, 0], [4, 2], [0, 2], [0, 0]]


def feature(geometry: dict[str, Any], classification: Any = None) -> dict[str, Any]:
    properties: dict[str, Any] = {"objectType": "annotation", "isLocked": False}
    if classification is not None:
        properties["classification"] = classification
    return {"type": "Feature", "id": "2b1c", "geometry": geometry, "properties": properties}


def polygon(rings: Any = (SQUARE,), **more: Any) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": rings, **more}


def save(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_qupath_points_count_from_pixel_corners(tmp_path: Path) -> None:
    path = save(tmp_path / "a.geojson", {"type": "FeatureCollection", "features": [
        feature(polygon(), {"name": "Tumor", "color": [200, 0, 0]})]})
    (found,), table = read_geojson(path, TABLE)
    assert found.value == 2
    assert table == TABLE
    mask = fill_rings(found.rings, (0, 0), (5, 6))
    assert mask[:2, :4].all()
    assert mask.sum() == 8


@pytest.mark.parametrize("content", [
    [feature(polygon(), {"name": "tumor"})],
    feature(polygon(), {"name": "TUMOR"}),
    [feature({"type": "MultiPolygon", "coordinates": [[SQUARE]]}, {"names": ["Tumor"]})],
    [feature({"type": "GeometryCollection", "geometries": [polygon()]}, "Tumor")],
])
def test_forms_that_exports_take(tmp_path: Path, content: Any) -> None:
    (found,), _ = read_geojson(save(tmp_path / "a.json", content), TABLE)
    assert found.value == 2
    assert found.rings[0].shape == (4, 2)


def test_gzip_and_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson.gz"
    text = "\ufeff" + json.dumps([feature(polygon(), {"name": "Tumor"})])
    path.write_bytes(gzip.compress(text.encode("utf-8")))
    assert len(read_geojson(path, TABLE)[0]) == 1


def test_holes_and_planes_are_kept(tmp_path: Path) -> None:
    hole = [[1, 1], [2, 1], [2, 2], [1, 2], [1, 1]]
    geometry = polygon([SQUARE, hole], plane={"c": -1, "z": 3, "t": 0})
    (found,), _ = read_geojson(save(tmp_path / "a.json", [feature(geometry, "Tumor")]), TABLE)
    assert found.plane == 3
    assert fill_rings(found.rings, (0, 0), (4, 6)).sum() == 7


def test_new_classes_are_added_with_their_colours(tmp_path: Path) -> None:
    path = save(tmp_path / "a.json", [
        feature(polygon(), {"name": "Stroma", "color": [150, 200, 150]}),
        feature(polygon(), {"name": "Necrosis", "colorRGB": -13487566}),
        feature(polygon(), {"name": "stroma"}),
    ])
    polygons, table = read_geojson(path, TABLE)
    assert [p.value for p in polygons] == [3, 4, 3]
    assert table.names == ("background", "Tumor", "Stroma", "Necrosis")
    assert [c.color for c in table.classes[2:]] == ["#96c896", "#323232"]
    assert (table.unlabelled, table.background) == (0, 1)
    with pytest.raises(SourceError, match="Stroma"):
        read_geojson(path, TABLE, add_classes=False)


def test_what_is_no_area_is_left_out_with_a_warning(tmp_path: Path) -> None:
    path = save(tmp_path / "a.json", [
        feature({"type": "Point", "coordinates": [1, 2]}, "Tumor"), feature(polygon()),
        {"type": "Feature", "geometry": None, "properties": {}},
        feature(polygon(), "Tumor"),
    ])
    with pytest.warns(MuvitWarning, match="1 objects of type Point, 1 objects without a class"):
        polygons, _ = read_geojson(path, TABLE)
    assert len(polygons) == 1
    with pytest.warns(MuvitWarning):
        polygons, _ = read_geojson(path, TABLE, default=1)
    assert [p.value for p in polygons] == [1, 2]


@pytest.mark.parametrize("text", [
    "", "{", "[1, 2]", "3", '{"type": "FeatureCollection"}',
    json.dumps([feature(polygon([[[0, 0], [1]]]), "Tumor")]),
    json.dumps([feature(polygon([[["a", 0], [1, 2], [3, 4]]]), "Tumor")]),
    json.dumps([feature(polygon(7), "Tumor")]), "[" * 100_000,
    '[{"geometry": {"type": "Polygon", "coordinates": [[[0,0],[NaN,1],[2,2]]]}, '
    '"properties": {"classification": "Tumor"}}]',
])
def test_broken_files_are_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(text)
    with pytest.raises(SourceError, match=r"a\.geojson"):
        read_geojson(path, TABLE)


def test_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_geojson(tmp_path / "none.geojson", TABLE)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.sampled_from(
        ["Polygon", "MultiPolygon", "Feature", "FeatureCollection", "GeometryCollection", "Tumor"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["type", "features", "geometry", "geometries", "coordinates", "properties",
                         "classification", "name", "names", "color", "colorRGB", "plane", "z"]),
        inner, max_size=5),
    max_leaves=20,
)


@st.composite
def damaged_files(draw: st.DrawFn) -> Any:
    """A good file in which one value, anywhere, is replaced."""
    content: Any = {"type": "FeatureCollection", "features": [
        feature(polygon(plane={"c": -1, "z": 0, "t": 0}), {"name": "New", "color": [1, 2, 3]}),
        feature({"type": "GeometryCollection", "geometries": [polygon()]}, {"names": ["Tumor"]}),
    ]}
    node = content = json.loads(json.dumps(content))
    for _ in range(draw(st.integers(1, 8))):
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = draw(st.sampled_from(keys))
        if not isinstance(node[key], (dict, list)) or not node[key]:
            break
        parent, place, node = node, key, node[key]
    else:
        key, node = place, parent
    node[key] = draw(ANYTHING)
    return content


@pytest.mark.filterwarnings("ignore::napari_muvit.errors.MuvitWarning")
@settings(deadline=None, max_examples=300)
@given(ANYTHING | damaged_files())
def test_any_json_is_read_or_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, content: Any
) -> None:
    path = save(tmp_path_factory.mktemp("fuzz") / "a.geojson", content)
    with contextlib.suppress(MuvitError):
        read_geojson(path, TABLE)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_labels_go_out_and_come_back(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    labels = np.random.default_rng(seed).integers(0, 3, (9, 11))
    path = tmp_path_factory.mktemp("out") / "a.geojson"
    number = write_geojson(path, trace_labels(labels), TABLE)
    polygons, table = read_geojson(path, TABLE)
    assert len(polygons) == number
    assert table == TABLE
    found = np.zeros_like(labels)
    for item in polygons:
        found[fill_rings(item.rings, (0, 0), labels.shape)] = item.value
    np.testing.assert_array_equal(found, labels)


def test_written_features_are_annotations_with_class_and_colour(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    write_geojson(path, trace_labels(np.array([[2, 0], [0, 9]])), TABLE, plane=4)
    one, two = json.loads(path.read_text())["features"]
    assert one["properties"]["objectType"] == "annotation"
    assert one["properties"]["classification"] == {"name": "Tumor", "color": [200, 0, 0]}
    assert one["geometry"]["plane"] == {"c": -1, "z": 4, "t": 0}
    assert one["geometry"]["coordinates"] == [[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]]
    assert two["properties"]["classification"]["name"] == "class 9"


def test_export_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    path.write_text("old")

    def broken() -> Any:
        yield from trace_labels(np.ones((2, 2), int))
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        write_geojson(path, broken(), TABLE)
    assert [f.name for f in tmp_path.iterdir()] == ["a.geojson"]
    assert path.read_text() == "old"


def test_whole_store_and_prediction_are_exported(tmp_path: Path) -> None:
    from napari_muvit.data.annotations import open_annotations
    from napari_muvit.errors import InputError

    image = open_pyramid(np.zeros((3000, 700), np.uint8))
    with open_annotations(image, classes=TABLE, folder=tmp_path) as store:
        store.write(8, (30, 20), np.ones((300, 40), bool), 2)
        path = tmp_path / "a.geojson"
        assert export_geojson(store, path) == 1
        (found,), _ = read_geojson(path, TABLE)
        np.testing.assert_array_equal(found.box, [[239.5, 159.5], [2639.5, 479.5]])
        assert export_geojson(store, path, level=4) == 1
        (found,), _ = read_geojson(path, TABLE)
        np.testing.assert_array_equal(found.box, [[239.5, 159.5], [2639.5, 479.5]])
    pyramid = open_pyramid(str(store.path))
    assert export_geojson(pyramid, path, level=2) == 1
    (found,), table = read_geojson(path, TABLE)
    np.testing.assert_array_equal(found.box, [[239.5, 159.5], [2639.5, 479.5]])
    assert table == TABLE
    with pytest.raises(InputError, match="Pass one of them"):
        export_geojson(pyramid, path, level=3)


def predicted_store(path: Path, shape: tuple[int, ...] = (40, 50)) -> Path:
    """A prediction at 2 world px of its image, whose `Tumor` lies in background."""
    labels = np.ones(shape, np.uint8)
    labels[..., 10:20, 5:25] = 2
    axes = "zyx"[-len(shape):]
    lead = (1.0,) * (len(shape) - 2)
    layout = OutputLayout(shape, axes, (64, 64), (64, 64), (*lead, 2.0, 2.0),
                          (*(0.0 for _ in lead), 0.5, 0.5), has_unit=False)
    facts = {"grid": {"scale": [*lead, 2.0, 2.0], "offset": [*(0.0 for _ in lead), 0.5, 0.5]}}
    store = PredictionStore.create(
        path, layout, dtype=np.uint8, facts=facts, classes=TABLE)
    store.write([slice(0, n) for n in shape], labels)
    return path


def test_a_prediction_is_exported_in_pixels_of_its_image(tmp_path: Path) -> None:
    pyramid = open_pyramid(str(predicted_store(tmp_path / "p.ome.zarr"))).as_labels()
    path = tmp_path / "a.geojson"
    assert export_geojson(pyramid, path) == 1
    (found,), _ = read_geojson(path, TABLE)
    assert found.value == 2
    np.testing.assert_array_equal(found.box, [[19.5, 9.5], [39.5, 49.5]])


def test_a_volume_of_predictions_is_exported_plane_by_plane(tmp_path: Path) -> None:
    store = predicted_store(tmp_path / "p.ome.zarr", (2, 40, 50))
    assert export_geojson(open_pyramid(str(store)), tmp_path / "a.geojson", plane=1) == 1
    (found,), _ = read_geojson(tmp_path / "a.geojson", TABLE)
    assert found.plane == 1
    np.testing.assert_array_equal(found.box, [[19.5, 9.5], [39.5, 49.5]])
