"""Colours, groups and likeness of features."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import dask.array as da
import numpy as np
import pytest

from napari_muvit.plugin import features, predict

RNG = np.random.default_rng(0)


def two_kinds() -> np.ndarray:
    """Features (6, 8, 10) of two kinds of patches: left and right."""
    values = RNG.normal(0, 0.05, (6, 8, 10)).astype(np.float32)
    values[0, :, :6] += 3
    values[1, :, 6:] += 3
    return values


def shown(values: np.ndarray, mode: str, count: int = 5) -> np.ndarray:
    region = predict.plan_region(np.array([[-0.5, -0.5], [63.5, 79.5]]), (8, 10), 8.0)
    found = features.FeatureMap(1, values, region)
    return features.Painter().paint([found], mode, count)[0].picture


def test_groups_find_the_two_kinds() -> None:
    found = shown(two_kinds(), features.GROUPS, 2)
    assert np.all(found[:, :6] == 1)
    assert np.all(found[:, 6:] == 2)


def test_more_groups_than_patches() -> None:
    assert features.fit_groups(np.ones((3, 1, 2), np.float32), 5).centres.shape == (2, 3)


def test_colours_tell_the_two_kinds_apart() -> None:
    colours = shown(two_kinds(), features.COLOURS).astype(float)
    assert colours.shape == (8, 10, 3)
    assert abs(colours[:, :6, 0].mean() - colours[:, 6:, 0].mean()) > 200


@pytest.mark.parametrize("mode", features.MODES)
def test_colours_and_groups_keep_their_meaning_until_told(mode: str) -> None:
    region = predict.plan_region(np.array([[-0.5, -0.5], [63.5, 79.5]]), (8, 10), 8.0)
    first = features.FeatureMap(1, two_kinds(), region)
    flipped = features.FeatureMap(1, np.ascontiguousarray(two_kinds()[:, :, ::-1]), region)
    painter = features.Painter()
    one = painter.paint([first], mode, 2)[0].picture
    other = painter.paint([flipped], mode, 2)[0].picture
    left, right = (picture.reshape(8, 10, -1).astype(float) for picture in (one, other))
    assert np.allclose(left[:, :4].mean((0, 1)), right[:, -4:].mean((0, 1)), atol=30)
    assert not np.allclose(left[:, :4].mean((0, 1)), right[:, :4].mean((0, 1)), atol=0.5)
    painter.forget()
    mirrored = features.FeatureMap(1, -two_kinds() * 3, region)
    fresh = features.Painter().paint([mirrored], mode, 2)[0].picture
    assert np.array_equal(painter.paint([mirrored], mode, 2)[0].picture, fresh)


def test_likeness_is_one_at_the_place_and_low_elsewhere() -> None:
    values = two_kinds()
    similarity = features.likeness(values, values[:, 2, 3])
    assert similarity[2, 3] == pytest.approx(1, abs=1e-5)
    assert similarity[:, :6].min() > 0.9
    assert similarity[:, 6:].max() < 0.2


class CountingBackend:
    """Features that are the patch's row and column; counts the blocks it computes."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape, self.computed, self.devices = shape, [], []

    def features(self, pyramid: object, model: object, level: float, device: str) -> da.Array:
        rows, columns = np.indices(self.shape)

        def compute(block: np.ndarray) -> np.ndarray:
            self.devices.append(device)
            self.computed.append((level, *block[:, 0, 0].astype(int).tolist()))
            return block

        source = da.from_array(np.stack([rows, columns]).astype(np.float32), chunks=(2, 4, 4))
        return source.map_blocks(compute, meta=np.empty((0, 0, 0), np.float32))


def cache_of(backend: CountingBackend, device: Any = lambda: "cpu") -> features.FeatureCache:
    pyramid = SimpleNamespace(pixel_size=None)
    image: Any = SimpleNamespace(pyramid=pyramid, name="image")
    model = features.LoadedEncoder(None, (1.0, 4.0), 8, None)
    return features.FeatureCache(backend, image, model, device)


def test_only_what_is_in_view_is_computed_and_once() -> None:
    backend = CountingBackend((20, 20))
    cache = cache_of(backend)
    whole = [found for found in cache.maps(np.array([[39.5, 15.5], [79.5, 63.5]]))
             if isinstance(found, features.FeatureMap) and found.is_whole]
    assert [found.level for found in whole] == [4, 1]
    fine = whole[1]
    assert fine.values.shape == (2, 5, 6)
    assert np.array_equal(fine.values[0, :, 0], np.arange(5, 10))
    assert np.array_equal(fine.values[1, 0], np.arange(2, 8))
    blocks = {block[1:] for block in backend.computed if block[0] == 1}
    assert blocks == {(4, 0), (4, 4), (8, 0), (8, 4)}
    assert len(backend.computed) == len(set(backend.computed))
    before = len(backend.computed)
    list(cache.maps(np.array([[39.5, 15.5], [87.5, 63.5]])))
    assert len(backend.computed) == before


def test_the_next_block_is_computed_where_it_is_due() -> None:
    backend = CountingBackend((20, 20))
    cache = cache_of(backend, lambda: "cuda" if len(backend.devices) < 3 else "cpu")
    list(cache.maps(np.array([[-0.5, -0.5], [63.5, 63.5]])))
    assert backend.devices[:3] == ["cuda"] * 3
    assert set(backend.devices[3:]) == {"cpu"}
    assert len(backend.computed) == len(set(backend.computed)) > 3


def test_a_level_with_too_much_in_view_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "MOST_PATCHES", 100)
    backend = CountingBackend((20, 20))
    found = list(cache_of(backend).maps(np.array([[-0.5, -0.5], [159.5, 159.5]])))
    assert features.TooWide(1) in found
    assert all(block[0] == 4 for block in backend.computed)


def test_blocks_not_seen_for_longest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "KEPT_BYTES", 2 * 4 * 4 * 4 * 2)
    backend = CountingBackend((20, 20))
    cache = cache_of(backend)
    for low in (0, 32, 64, 0):
        list(cache.maps(np.array([[low - 0.5, -0.5], [low + 31.5, 31.5]])))
    assert backend.computed.count((1, 0, 0)) == 2


def test_patch_at_a_place() -> None:
    region = predict.plan_region(np.array([[63.5, 31.5], [191.5, 159.5]]), (40, 40), 8.0)
    found = features.FeatureMap(1, np.zeros((2, 16, 16), np.float32), region)
    assert found.patch_at((64, 32)) == (0, 0)
    assert found.patch_at((79.4, 55.4)) == (1, 2)
    assert found.patch_at((10, 10)) is None
