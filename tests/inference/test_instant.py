"""Instant predictions: frozen features, a linear head, before any training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, map_coordinates

from napari_muvit.data.annotations import AnnotationStore, open_annotations
from napari_muvit.data.pyramid import open_pyramid
from napari_muvit.errors import InputError
from napari_muvit.inference.instant import InstantPrediction, InstantResult, _Head
from napari_muvit.inference.instant_features import EncoderFeatures, FeatureMap, filter_maps

SHAPE = (700, 900)


def make_image() -> np.ndarray:
    """Coarse grain on the left, fine grain on the right."""
    noise = np.random.default_rng(0).normal(size=SHAPE)
    coarse, fine = gaussian_filter(noise, 6), gaussian_filter(noise, 1)
    image = np.where(np.arange(SHAPE[1]) < SHAPE[1] // 2, coarse / coarse.std(), fine / fine.std())
    return (128 + 30 * image).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return make_image()


@pytest.fixture
def store(image: np.ndarray, tmp_path: Path) -> Iterator[AnnotationStore]:
    with open_annotations(open_pyramid(image), folder=tmp_path) as opened:
        yield opened


def paint(store: AnnotationStore, row: int, column: int, value: int) -> None:
    store.write(1, (row, column), np.ones((20, 40), bool), value)
    store.flush()


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 6))
def test_interpolation_equals_scipys(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(height, width, 2)).astype(np.float32)
    box = np.array([[9.5, 19.5], [9.5 + 4 * height, 19.5 + 4 * width]])
    points = rng.uniform((5, 15), (40, 50), (30, 2))
    found = FeatureMap.in_box(values, box).at(points)
    place = (points - (box[0] + 2)) / 4
    for feature in range(2):
        expected = map_coordinates(values[..., feature], place.T, order=1, mode="nearest")
        np.testing.assert_allclose(found[:, feature], expected, atol=1e-4)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 6))
def test_grid_equals_its_points(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(height, width, 2)).astype(np.float32)
    found = FeatureMap.in_box(values, np.array([[9.5, 19.5], [29.5, 59.5]]))
    rows, columns = rng.uniform(5, 40, 7), rng.uniform(15, 70, 5)
    points = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
    expected = found.at(points).reshape(7, 5, 2)
    np.testing.assert_allclose(found.on_grid(rows, columns), expected, atol=1e-5)


def test_weighting_and_interpolating_commute() -> None:
    rng = np.random.default_rng(0)
    item = FeatureMap.in_box(rng.normal(size=(5, 6, 4)).astype(np.float32),
                             np.array([[0.0, 0.0], [50.0, 60.0]]))
    weights = rng.normal(size=(4, 3)).astype(np.float32)
    points = rng.uniform(0, 50, (20, 2))
    np.testing.assert_allclose(item.weighted(weights).at(points), item.at(points) @ weights,
                               rtol=1e-4, atol=1e-5)


def test_filters_of_neighbouring_tiles_agree(image: np.ndarray) -> None:
    pyramid = open_pyramid(image)
    left = filter_maps(pyramid, 1, (0, 0), (256, 256))
    right = filter_maps(pyramid, 1, (0, 256), (256, 256))
    points = np.array([[100.0, 255.0], [101.0, 256.0]])
    for one, two in zip(left, right, strict=True):
        scale = np.abs(one.at(points)).max(axis=0)
        assert (np.abs(one.at(points) - two.at(points)).max(axis=0) <= 0.35 * scale + 1).all()


def test_head_tells_classes_of_unequal_size_apart() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1010, 5)).astype(np.float32)
    classes = np.r_[np.zeros(1000, int), np.full(10, 7)]
    features[1000:, 0] += 6
    head = _Head.fit(features, classes)
    scores = features @ head.weights + head.bias
    assert (head.classes[scores.argmax(axis=1)] == classes).mean() > 0.98


def test_two_strokes_are_enough(store: AnnotationStore, image: np.ndarray) -> None:
    instant = InstantPrediction(open_pyramid(image), store)
    paint(store, 100, 100, 1)
    with pytest.raises(InputError, match="at least two classes"):
        instant.predict(1, (0, 0), (300, 900))
    paint(store, 100, 700, 2)
    truth = np.broadcast_to(np.where(np.arange(SHAPE[1]) < SHAPE[1] // 2, 1, 2), SHAPE)
    assert (instant.predict(1, (0, 0), SHAPE).labels == truth).mean() > 0.95
    # And a few more make it better.
    for row in (300, 500):
        paint(store, row, 200, 1)
        paint(store, row, 600, 2)
    result = instant.predict(1, (0, 0), SHAPE)
    assert (result.labels == truth).mean() > 0.96
    assert result.confidence.min() >= 0.5 - 1e-6
    assert result.confidence.max() <= 1


def test_strokes_elsewhere_teach_and_corrections_change_the_answer(
    store: AnnotationStore, image: np.ndarray
) -> None:
    instant = InstantPrediction(open_pyramid(image), store)
    paint(store, 100, 100, 1)
    paint(store, 100, 700, 2)
    first = instant.predict(1, (400, 500), (200, 300)).labels
    assert (first == 2).mean() > 0.9
    paint(store, 100, 100, 2)
    paint(store, 100, 700, 1)
    assert (instant.predict(1, (400, 500), (200, 300)).labels == 1).mean() > 0.9


def test_a_stroke_costs_no_features_again(
    store: AnnotationStore, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari_muvit.inference import instant as module

    calls: list[tuple[int, ...]] = []
    real = module.filter_maps

    def counted(pyramid: object, level: int, start: tuple[int, int], size: object) -> object:
        calls.append(start)
        return real(pyramid, level, start, size)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "filter_maps", counted)
    instant = InstantPrediction(open_pyramid(image), store)
    paint(store, 100, 100, 1)
    paint(store, 100, 700, 2)
    instant.predict(1, (0, 0), SHAPE)
    count = len(calls)
    assert count == len(set(calls)) == 3 * 4
    paint(store, 300, 700, 2)
    instant.predict(1, (0, 0), SHAPE)
    assert len(calls) == count


def test_parts_of_a_view_equal_the_whole(store: AnnotationStore, image: np.ndarray) -> None:
    instant = InstantPrediction(open_pyramid(image), store)
    paint(store, 100, 100, 1)
    paint(store, 100, 700, 2)
    whole = instant.predict(2, (0, 0), (350, 450))
    part = instant.predict(2, (90, 100), (200, 300))
    np.testing.assert_array_equal(part.labels, whole.labels[90:290, 100:400])


def test_most_uncertain_place_lies_where_confidence_is_least(
    store: AnnotationStore, image: np.ndarray
) -> None:
    instant = InstantPrediction(open_pyramid(image), store)
    paint(store, 100, 100, 1)
    paint(store, 100, 700, 2)
    result = instant.predict(1, (0, 0), SHAPE)
    y, x = result.most_uncertain()
    means = result.confidence[:640, :896].reshape(5, 128, 7, 128).mean(axis=(1, 3))
    assert 0 <= y < SHAPE[0]
    assert 0 <= x < SHAPE[1]
    block = result.confidence[int(y) // 128 * 128 :, int(x) // 128 * 128 :][:128, :128]
    assert block.mean() <= means.min() + 1e-6


@pytest.mark.parametrize("level", [1, 4, 32])
def test_tokens_of_a_model_are_used_where_they_lie(
    store: AnnotationStore, image: np.ndarray, level: int
) -> None:
    from napari_muvit.models.encoder import Encoder

    encoder = Encoder(in_channels=1, levels=(1, 4), patch_size=8, num_layers=1, dim=48, heads=2,
                      ndim=2, crop_size=64)
    pyramid = open_pyramid(image)
    features = EncoderFeatures(encoder, pyramid)
    place = tuple(features.places(level, np.array([[300.0, 500.0]]))[0])
    maps = features.maps(level, place)
    assert len(maps) == {1: 2, 4: 1, 32: 1}[level]
    assert all(item.values.shape == (8, 8, 48) for item in maps)
    span = maps[0].factor * 8
    assert (np.abs(maps[0].lower + span / 2 - [300, 500]) <= span).all()
    instant = InstantPrediction(pyramid, store, encoder)
    paint(store, 100, 100, 1)
    paint(store, 100, 700, 2)
    assert set(np.unique(instant.predict(2, (0, 0), (350, 450)).labels)) == {1, 2}


def test_every_pixel_of_a_view_is_judged_by_the_crop_that_covers_it(
    store: AnnotationStore, image: np.ndarray
) -> None:
    from napari_muvit.models.encoder import Encoder

    encoder = Encoder(in_channels=1, levels=(1, 4), patch_size=8, num_layers=1, dim=48, heads=2,
                      ndim=2, crop_size=64)
    instant = InstantPrediction(open_pyramid(image), store, encoder)
    covered = np.zeros((200, 150), int)
    for low, extent in instant._blocks(1, (), (30, 70), (200, 150)):
        cut = tuple(slice(a - s, a - s + n)
                    for a, n, s in zip(low, extent, (30, 70), strict=True))
        covered[cut] += 1
        corner = [encoder_number(instant, a) for a in (low, np.add(low, extent) - 1)]
        assert corner[0] == corner[1]
        maps = instant._block_maps(1, (low[0] // 256, low[1] // 256), low)[-2:]
        inside = (np.array([low, np.add(low, extent) - 1]) - maps[0].lower) / maps[0].factor
        assert inside.min() >= -0.5
        assert inside.max() <= 7.5
    assert (covered == 1).all()


def encoder_number(instant: InstantPrediction, pixel: object) -> tuple[int, int]:
    return tuple(instant._encoder(()).places(1, np.asarray([pixel], float))[0])


def test_the_middle_of_a_block_that_the_view_cuts_is_named() -> None:
    confidence = np.ones((300, 400), np.float32)
    confidence[256:, 384:] = 0
    result = InstantResult(np.zeros((300, 400), np.uint8), confidence, 2, (10, 20))
    # rows 256 to 300 and columns 384 to 400, in pixels of level 2 from (10, 20) on
    assert result.most_uncertain(128).tolist() == [(10 + 278) * 2 - 0.5, (20 + 392) * 2 - 0.5]


def test_pixels_that_are_no_numbers_are_padding() -> None:
    from napari_muvit.models.encoder import Encoder

    pixels = np.random.default_rng(0).random((200, 200)).astype(np.float32)
    pixels[:, 60:80] = np.nan
    pyramid = open_pyramid(pixels)
    encoder = Encoder(in_channels=1, levels=(1, 4), patch_size=8, num_layers=1, dim=48, heads=2,
                      ndim=2, crop_size=64)
    maps = [*filter_maps(pyramid, 1, (0, 0), (128, 128)),
            *EncoderFeatures(encoder, pyramid).maps(1, (0, 1))]
    assert all(np.isfinite(found.values).all() for found in maps)


def test_nothing_but_pixels_that_are_no_numbers_is_an_empty_place() -> None:
    pyramid = open_pyramid(np.full((64, 64), np.nan, np.float32))
    assert all(np.isfinite(found.values).all()
               for found in filter_maps(pyramid, 1, (0, 0), (64, 64)))
