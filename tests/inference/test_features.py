"""Features of whole images: right place, right level, any slice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_muvit.data.pyramid import open_pyramid
from napari_muvit.errors import CheckpointError, InputError
from napari_muvit.geometry import is_nested
from napari_muvit.inference import features as room
from napari_muvit.inference.features import features, parse_encoder, plan_features
from napari_muvit.inference.model_source import MOST_LOADED, ModelSource
from napari_muvit.inference.spec import ModelSpec, fingerprint_folder
from napari_muvit.inference.tiles import Region

from .models import make_model, save
from .stubs import TABLE


@pytest.fixture(scope="module")
def model():
    return make_model()


def image(shape=(150, 130), seed=0):
    return np.random.default_rng(seed).random(shape).astype(np.float32)


@pytest.mark.parametrize(("level", "shape"), [(1, (32, 19, 17)), (4, (32, 5, 5))])
def test_one_vector_for_each_patch_of_the_level(model, level, shape):
    lazy = features(image(), model, level=level, device="cpu")
    assert lazy.shape == shape
    assert lazy.dtype == np.float32
    found = lazy.compute()
    assert np.isfinite(found).all()
    assert found.std(axis=(1, 2)).min() > 1e-3


def test_a_tile_holds_what_the_encoder_says(model):
    pixels = image()
    lazy = features(pixels, model, level=1, overlap=0.5, device="cpu")
    found = lazy.compute()
    encoder = parse_encoder(model, device="cpu")
    pyramid = open_pyramid(pixels)
    plan = plan_features(pyramid, encoder.open().spec, 0, (8, 8), 0.5)
    tile = plan.tile((2, 3))
    crop = pyramid.crop(corner=tile.corners, levels=(1, 4), size=32)
    low, high = np.percentile(pixels, (1, 99.8))
    x = np.where(crop.valid[:, None], (crop.image - low) / (high - low), 0).astype(np.float32)
    origin = crop.bbox[-1].mean(axis=0)
    with torch.inference_mode():
        maps = model.encoder.compute_features(
            torch.from_numpy(x)[None], torch.from_numpy(crop.bbox - origin).float()[None])
    region: Region = plan.cell_region((2, 3))
    target = tuple(slice(part.start // 8, part.stop // 8) for part in region)
    inside = tuple(
        slice((part.start - first) // 8, (part.stop - first) // 8)
        for part, first in zip(region, tile.start, strict=True)
    )
    np.testing.assert_allclose(
        found[(slice(None), *target)], maps[0, 0].numpy()[(slice(None), *inside)], atol=2e-5)


def test_slices_equal_the_whole(model, monkeypatch):
    monkeypatch.setattr(room, "choose_block", lambda step, *_: tuple(2 * s for s in step))
    lazy = features(image(), model, level=4, device="cpu")
    again = features(image(), model, level=4, device="cpu")
    assert lazy.npartitions > 0
    np.testing.assert_array_equal(again[:, 1:3, 2:4].compute(), lazy.compute()[:, 1:3, 2:4])


def test_folders_of_any_model_will_do(model, tmp_path):
    folder = save(model, tmp_path / "run" / "model")
    small = image((40, 40))
    expected = features(small, model, level=4, device="cpu").compute()
    np.testing.assert_array_equal(
        features(small, folder.parent, level=4, device="cpu").compute(), expected)


def test_a_new_checkpoint_in_the_same_folder_is_seen(model, tmp_path):
    folder, small = tmp_path / "model", image((40, 40))
    for seed in range(MOST_LOADED + 2):
        other = make_model(seed=seed)
        save(other, folder)
        lazy = features(small, folder, level=4, device="cpu")
        expected = features(small, other, level=4, device="cpu").compute()
        np.testing.assert_array_equal(lazy.compute(), expected)
    assert len(room._ENCODERS) <= MOST_LOADED
    chosen = parse_encoder(folder, device="cpu")
    save(model, folder)
    room._ENCODERS.clear()
    with pytest.raises(CheckpointError, match="replaced since"):
        chosen.open()


def test_refuses_what_it_does_not_have(model):
    with pytest.raises(InputError, match="level is 2"):
        features(image(), model, level=2)
    with pytest.raises(CheckpointError, match="NoneType, which has no encoder"):
        features(image(), None, device="cpu")
    with pytest.raises(CheckpointError, match="no encoder"):
        features(image(), torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match="spatial axes"):
        features(image((12, 40, 40)), model)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(10, 900), st.integers(10, 900)), st.sampled_from([0, 1, 2]),
    st.sampled_from([0.0, 0.25, 0.5]),
)
def test_crops_nest_around_every_tile(shape, base, overlap):
    spec = ModelSpec((1, 4, 16), (32, 32), 2, 1, TABLE)
    plan = plan_features(open_pyramid(np.zeros(shape, np.uint8)), spec, base, (8, 8), overlap)
    covered = np.zeros(plan.shape, int)
    for index in np.ndindex(plan.num_tiles):
        tile = plan.tile(index)
        extents = np.asarray(plan.scales) * 32
        boxes = np.stack([tile.corners, tile.corners + extents], axis=1)
        assert is_nested(boxes, tolerance=8.01)
        covered[plan.reach(index)] += 1
        assert all(first % 8 == 0 for first in tile.start)
    assert (covered == 1).all()


def test_official_folders_are_told_apart_by_their_weights(tmp_path):
    from napari_muvit.official import MuViTEncoder2d

    for seed in (0, 1):
        torch.manual_seed(seed)
        MuViTEncoder2d(1, (1, 2), 4, num_layers=1, dim=48, heads=2).save(tmp_path / str(seed))
    marks = [fingerprint_folder(tmp_path / str(seed)) for seed in (0, 1)]
    assert marks[0] != marks[1]
    sources = [ModelSource(str(tmp_path / str(i)), mark=marks[i]) for i in (0, 1)]
    first, second = (room._load_encoder(source).state_dict() for source in sources)
    assert not all(torch.equal(first[name], second[name]) for name in first)


def test_pixels_that_are_no_numbers_are_padding(model):
    pixels = image()
    pixels[:, 60:80] = np.nan
    found = features(pixels, model, level=1, device="cpu").compute()
    assert np.isfinite(found).all()
