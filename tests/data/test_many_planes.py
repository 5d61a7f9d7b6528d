"""Hundreds of planes of one volume as 2D images: each is looked at more coarsely."""

from __future__ import annotations

import numpy as np
import pytest

from napari_muvit.config import PretrainConfig
from napari_muvit.data import normalize, tissue, training_image
from napari_muvit.data.omezarr import create_pyramid
from napari_muvit.training.images import open_images

SIDE = 600


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A disc that moves from plane to plane, bright on dark."""
    path = str(tmp_path_factory.mktemp("stack") / "stack.ome.zarr")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    [array] = create_pyramid(
        path, shape=(32, SIDE, SIDE), axes="zyx", levels=(1,), dtype=np.uint8, chunk=256)
    for z in range(32):
        disc = (y - 300) ** 2 + (x - 200 - 6 * z) ** 2 < 150**2
        array[z] = rng.integers(0, 12, (SIDE, SIDE)) + disc * rng.integers(100, 140, (SIDE, SIDE))
    return path


def images(stack: str, z: object, **options: object) -> tuple[training_image.TrainingImage, ...]:
    config = PretrainConfig(
        images=(stack,), z=z, levels=(1, 4), crop_size=(32,), output="run", **options)
    return open_images(config).training.samples.images


def test_few_planes_are_images_like_any(stack: str) -> None:
    one, = images(stack, (3,))
    few = images(stack, tuple(range(8)))
    assert len(few) == 8
    assert np.array_equal(few[3].places.mask, one.places.mask)
    assert few[3].normalization.to_dict() == one.normalization.to_dict()


@pytest.mark.parametrize("option", ["auto", "none"])
def test_many_planes_are_seen_coarsely_and_alike(
    stack: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = tissue.coarse_view

    def looking(pyramid: object, view_pixels: int | None = None) -> object:
        view = real(pyramid, view_pixels)
        seen.append(view[0][0].size)
        return view

    monkeypatch.setattr(tissue, "coarse_view", looking)
    normalize._measured.clear()
    many = images(stack, "all", tissue=option)
    assert len(many) == 32
    assert len(seen) == 32
    assert max(seen) <= tissue.VIEW_PIXELS * training_image.FEW_PLANES // 32
    seen.clear()
    one, = images(stack, (20,), tissue=option)
    difference = many[20].normalization.offset - one.normalization.offset
    assert np.abs(difference / one.normalization.scale).max() < 0.03
    assert many[20].normalization.scale == pytest.approx(one.normalization.scale, rel=0.04)
    assert many[20].places.area == pytest.approx(one.places.area, rel=0.1)


def test_large_planes_give_fewer_blocks(stack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalize, "WHOLE_PIXELS", 1000)
    counts: list[int] = []
    real = normalize._scatter

    def counting(shape: object, places: object, num_blocks: int) -> object:
        counts.append(num_blocks)
        return real(shape, places, num_blocks)

    monkeypatch.setattr(normalize, "_scatter", counting)
    many = images(stack, "all")
    assert set(counts) == {training_image.FEWEST_BLOCKS}
    monkeypatch.undo()
    one, = images(stack, (9,))
    assert many[9].normalization.scale == pytest.approx(one.normalization.scale, rel=0.1)
