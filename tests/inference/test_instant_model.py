"""An instant model: the linear head of strokes, used by the predictor like any other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_muvit import api
from napari_muvit.data.annotations import AnnotationStore, open_annotations
from napari_muvit.data.pyramid import open_pyramid
from napari_muvit.errors import InputError
from napari_muvit.inference.instant import InstantPrediction
from napari_muvit.inference.instant_features import EncoderFeatures
from napari_muvit.inference.instant_model import finest_level, instant_segmenter
from napari_muvit.models.checkpoint import ModelMeta, load_model, save_model
from napari_muvit.models.encoder import Encoder

SHAPE = (300, 420)
NORMALIZATION = {"kind": "constant", "percentiles": [1, 99.8], "constant": 255.0}


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Dark on the left, bright on the right."""
    noise = np.random.default_rng(0).normal(0, 10, SHAPE)
    side = np.where(np.arange(SHAPE[1]) < SHAPE[1] // 2, 60, 180)
    return (noise + side).clip(0, 255).astype(np.uint8)


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    model = Encoder(in_channels=1, levels=(1, 4), patch_size=8, num_layers=1, dim=48, heads=2,
                    ndim=2, crop_size=64)
    model.meta = ModelMeta("encoder", crop_size=(64, 64), normalization=NORMALIZATION)
    return model.eval()


@pytest.fixture
def store(image: np.ndarray, tmp_path: Path) -> Iterator[AnnotationStore]:
    with open_annotations(open_pyramid(image), folder=tmp_path) as opened:
        yield opened


def paint(store: AnnotationStore, row: int, column: int, value: int) -> None:
    store.write(1, (row, column), np.ones((16, 40), bool), value)
    store.flush()


def test_the_predictor_takes_it_like_any_model(
    store: AnnotationStore, image: np.ndarray, encoder: Encoder, tmp_path: Path
) -> None:
    for row in (30, 200):
        paint(store, row, 60, 1)
        paint(store, row, 320, 2)
    instant = InstantPrediction(open_pyramid(image), store, encoder)
    model = instant_segmenter(instant)
    labels = np.asarray(api.predict(image, model, tissue="none", kernels="torch"))
    assert labels.shape == SHAPE
    truth = np.where(np.arange(SHAPE[1]) < SHAPE[1] // 2, 1, 2)
    assert (labels == truth).mean() > 0.95
    save_model(tmp_path / "model", model, model.meta)
    again = load_model(tmp_path / "model")
    assert np.array_equal(
        np.asarray(api.predict(image, again, tissue="none", kernels="torch")), labels)
    probabilities = np.asarray(api.predict(
        image, model, tissue="none", kernels="torch", probabilities=True))
    painted = [store.classes.values.index(value) for value in (1, 2)]
    unseen = np.delete(probabilities, painted, axis=0)
    assert unseen.max(initial=0.0) == 0.0


def test_each_pixel_is_taught_by_the_crop_that_covers_it(
    store: AnnotationStore, image: np.ndarray, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint(store, 40, 40, 1)  # over the borders of crops of 64 px
    paint(store, 40, 320, 2)
    asked = []
    original = EncoderFeatures.maps

    def spy(self, level, place):
        asked.append(place)
        return original(self, level, place)

    monkeypatch.setattr(EncoderFeatures, "maps", spy)
    instant = InstantPrediction(open_pyramid(image), store, encoder)
    instant_segmenter(instant)
    assert set(asked) == {(0, 0), (0, 1), (0, 5)}
    instant_segmenter(instant)
    assert len(asked) == 3  # features are kept


def test_one_class_is_not_enough(
    store: AnnotationStore, image: np.ndarray, encoder: Encoder
) -> None:
    paint(store, 40, 40, 1)
    instant = InstantPrediction(open_pyramid(image), store, encoder)
    with pytest.raises(InputError, match="at least two classes"):
        instant_segmenter(instant)


def test_without_a_model_there_is_none(store: AnnotationStore, image: np.ndarray) -> None:
    paint(store, 40, 40, 1)
    with pytest.raises(InputError, match="has no model"):
        instant_segmenter(InstantPrediction(open_pyramid(image), store))


def test_a_level_between_two_pixels_is_refused() -> None:
    assert finest_level((2.0, 4)) == 2
    with pytest.raises(InputError, match=r"finest level is 1\.5"):
        finest_level((1.5, 4))
