"""Annotating without Qt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_muvit import api
from napari_muvit.data.labels import ClassTable, LabelClass
from napari_muvit.data.rasterize import Polygon, fill_rings
from napari_muvit.errors import InputError
from napari_muvit.plugin import annotate, stored_images
from napari_muvit.plugin.layers import ResolvedImage, ViewerTransform, viewer_transform

TABLE = ClassTable((LabelClass(1, "background", "#808080"), LabelClass(2, "a", "#e41a1c")), 0, 1)
IDENTITY = ViewerTransform(np.eye(3), ("pixel", "pixel"))


@settings(deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(1e-2, 1e2), st.floats(10, 1e5))
def test_fitting_level_is_as_fine_as_the_screen(
    screen: float, pixel: float, longest: float
) -> None:
    level = annotate.fitting_level(screen, pixel, longest)
    assert level & (level - 1) == 0
    assert longest / level <= annotate.LARGEST_WINDOW
    if longest / max(1, level // 2) <= annotate.LARGEST_WINDOW and level > 1:
        assert level * pixel <= screen * 1.0001
    assert level == 1 or 2 * level * pixel > screen * 0.9999


def test_window_covers_the_view() -> None:
    box = np.array([[-0.5, 9.5], [99.5, 30.5]])
    assert annotate.window_size(box, 1) == (100, 21)
    assert annotate.window_size(box, 8) == (13, 3)


def test_classes_are_added_changed_and_removed() -> None:
    table = annotate.add_class(TABLE, LabelClass)
    assert table.values == (1, 2, 3)
    assert len({item.color for item in table.classes}) == 3
    table = annotate.change_class(table, 3, name=" gland ", color="#000000")
    assert table.classes[2] == LabelClass(3, "gland", "#000000")
    with pytest.raises(InputError, match="its own name"):
        annotate.change_class(table, 3, name="a")
    table = annotate.remove_class(annotate.remove_class(table, 1), 2)
    assert (table.values, table.background, table.unlabelled) == ((3,), None, 0)
    with pytest.raises(InputError, match="last class"):
        annotate.remove_class(table, 3)
    full = replace(TABLE, classes=tuple(
        LabelClass(v, f"c{v}", "#000000") for v in range(1, 256)))
    with pytest.raises(InputError, match="255"):
        annotate.add_class(full, LabelClass)
    assert annotate.add_class(TABLE, LabelClass, {3, 4}).values == (1, 2, 5)
    with pytest.raises(InputError, match="Rename a class"):
        annotate.add_class(TABLE, LabelClass, range(256))


def test_classes_for_new_values() -> None:
    table = annotate.extend_table(TABLE, [0, 1, 7], LabelClass)
    assert table.values == (1, 2, 7)


def test_balance_in_words() -> None:
    assert "Nothing" in annotate.balance_text(TABLE, {})
    assert annotate.balance_text(TABLE, {1: 10}) == "Not annotated yet: a."
    assert "a has 1.0%" in annotate.balance_text(TABLE, {1: 990, 2: 10})
    assert annotate.balance_text(TABLE, {1: 30, 2: 10}) == ""
    rows = annotate.class_rows(TABLE, {1: 30, 2: 10})
    assert [row[3] for row in rows] == ["75.0%", "25.0%"]


def make_image(
    path: str | None, plane: dict[str, int] | None = None, identity: str = ""
) -> ResolvedImage:
    return ResolvedImage("my image", None, IDENTITY, (), path, plane or {}, identity)


def test_places_of_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_images, "cache_folder", lambda: tmp_path / "cache")
    slide = str(tmp_path / "slide.svs")
    found = annotate.store_path(api, make_image(slide), "")
    assert found == tmp_path / "slide_annotations.ome.zarr"
    found = annotate.store_path(api, make_image(slide, {"t": 2, "z": 5}), str(tmp_path / "mine"))
    assert found == tmp_path / "mine" / "slide_t2_annotations.ome.zarr"
    remote = make_image("https://example.org/a/slide.ome.zarr")
    found = annotate.store_path(api, remote, "")
    assert found == tmp_path / "cache" / "images" / "slide_annotations.ome.zarr"
    found = annotate.store_path(api, make_image(None, identity="12ab"), str(tmp_path))
    assert found == tmp_path / "my_image-12ab_annotations.ome.zarr"


def test_annotations_in_memory_are_found_again_by_their_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_images, "cache_folder", lambda: tmp_path)
    first = annotate.store_path(api, make_image(None, identity="12ab"), "")
    assert first == tmp_path / "images" / "my_image-12ab_annotations.ome.zarr"
    first.mkdir(parents=True)
    renamed = ResolvedImage("other name", None, IDENTITY, (), None, {}, "12ab")
    assert annotate.store_path(api, renamed, "") == first
    (tmp_path / "mine" / "old-12ab_annotations.ome.zarr").mkdir(parents=True)
    mine = annotate.store_path(api, renamed, str(tmp_path / "mine"))
    assert mine == tmp_path / "mine" / "old-12ab_annotations.ome.zarr"
    other = ResolvedImage("my image", None, IDENTITY, (), None, {}, "34cd")
    assert annotate.store_path(api, other, "") != first


def test_shapes_become_polygons_where_they_are_seen() -> None:
    from napari.layers import Image, Shapes

    image = Image(np.zeros((40, 50)), scale=(2, 2), translate=(100, 0))
    box = np.array([[9.5, 9.5], [9.5, 19.5], [14.5, 19.5], [14.5, 9.5]])
    corners = np.array([image.data_to_world(corner) for corner in box])
    shapes = Shapes([corners / 4], shape_type="rectangle", scale=(4, 4))
    (polygon,) = annotate.shape_polygons(shapes, viewer_transform(image), 3, Polygon)
    mask = fill_rings(polygon.rings, (0, 0), (40, 50))
    assert polygon.value == 3
    assert mask[10:15, 10:20].all()
    assert mask.sum() == 50


def test_ellipses_and_lines_have_their_area() -> None:
    corners = np.array([[0, 0], [0, 40], [20, 40], [20, 0]], float)
    (ring,) = annotate.shape_rings(corners, "ellipse", 1)
    assert fill_rings([ring], (0, 0), (21, 41)).sum() == pytest.approx(np.pi * 200, rel=0.03)
    pieces = annotate.shape_rings(np.array([[5.0, 5], [5, 25], [15, 25]]), "path", 4)
    mask = np.any([fill_rings([piece], (0, 0), (30, 40)) for piece in pieces], axis=0)
    assert mask[4:6, 4:26].all()
    assert mask[5:16, 24:26].all()
    assert mask.sum() < 5 * 24 + 5 * 14


def test_labels_must_lie_on_whole_pixels() -> None:
    from napari.layers import Labels

    labels = Labels(np.zeros((10, 10), int), scale=(4, 4), translate=(1.5, 1.5))
    level, corner = annotate.label_place(labels, IDENTITY)
    assert level == 4
    np.testing.assert_allclose(corner, [-0.5, -0.5])
    for scale in ((2.5, 2.5), (0.5, 0.5), (2, 3)):
        with pytest.raises(InputError, match="whole numbers of image pixels"):
            annotate.label_place(Labels(np.zeros((4, 4), int), scale=scale), IDENTITY)


def test_instances_are_told_from_classes() -> None:
    assert annotate.distinct_values(np.array([[0, 3], [9, 3]])) == [0, 3, 9]
    assert annotate.distinct_values(np.arange(400).reshape(20, 20)) is None


def test_thumbnails_show_labels_over_the_picture() -> None:
    picture = np.full((4, 4, 3), 100, np.uint8)
    labels = np.zeros((4, 4), np.uint8)
    labels[0] = 2
    found = annotate.overlay(picture, labels, TABLE)
    assert (found[1:] == 100).all()
    assert found[0, 0, 0] > 150


def test_remembered_windows_in_words() -> None:
    place = SimpleNamespace(name="window 1", level=4, start=(10, 20), size=(300, 400))
    assert annotate.window_text(place) == "window 1\nlevel 4, 1,200 x 1,600 px"
    np.testing.assert_array_equal(annotate.centre_of(place), [639.5, 879.5])
