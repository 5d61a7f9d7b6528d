"""What a fine-tuning takes over from a pretrained model, and where it warns."""

from __future__ import annotations

import re

import pytest

from napari_muvit.config import FinetuneConfig, parse_config
from napari_muvit.models.checkpoint import ModelMeta, load_model
from napari_muvit.models.encoder import Encoder
from napari_muvit.training import find_model, start_finetune, start_pretrain
from napari_muvit.training.events import WarningEvent
from napari_muvit.training.folder import RunFolder
from napari_muvit.training.pretrained import Pretrained, adopt_encoder, differences

GIVEN = {"images": "a", "labels": "b", "output": "o", "levels": (1, 2), "crop_size": 16,
         "patch_size": 4}


def pretrained(rule=None, *, pixel_size=None, ndim=2, scaled_axes=None, has_meta=True):
    encoder = Encoder(
        in_channels=1, levels=(1, 2), patch_size=4, num_layers=1, dim=30, heads=1, ndim=ndim,
        scaled_axes=scaled_axes)
    meta = ModelMeta("mae", pixel_size=pixel_size, normalization=rule or {})
    return Pretrained(encoder, meta if has_meta else None)


def taken(model, **given):
    config = parse_config(FinetuneConfig, {**GIVEN, **given})
    return adopt_encoder(config, model)


def rule_of(config):
    return config.normalization, config.percentiles, config.normalization_constant


CONSTANT = {"kind": "constant", "percentiles": [1.0, 99.8], "constant": 100.0}
NARROW = {"kind": "percentile", "percentiles": [5.0, 95.0], "constant": 255.0}


@pytest.mark.parametrize(("rule", "given", "expected", "is_other"), [
    (CONSTANT, {}, ("constant", (1, 99.8), 100), False),
    (NARROW, {}, ("percentile", (5, 95), 255), False),
    (NARROW, {"normalization": "percentile"}, ("percentile", (5, 95), 255), False),
    (NARROW, {"percentiles": (2, 98)}, ("percentile", (2, 98), 255), True),
    (CONSTANT, {"percentiles": (2, 98)}, ("percentile", (2, 98), 255), True),
    (CONSTANT, {"normalization": "constant"}, ("constant", (1, 99.8), 100), False),
    (CONSTANT, {"normalization": "none"}, ("none", (1, 99.8), 255), True),
    (None, {}, ("percentile", (1, 99.8), 255), False),
])
def test_normalisation_is_the_models_unless_the_user_says_otherwise(
    rule, given, expected, is_other
):
    model = pretrained(rule)
    config = taken(model, **given)
    assert rule_of(config) == expected
    said = differences(config, model, None)
    assert len(said) == is_other
    assert all("the pretrained model learned from" in text for text in said)


def test_an_official_model_says_nothing_of_normalisation():
    model = pretrained(has_meta=False)
    assert rule_of(taken(model)) == ("percentile", (1, 99.8), 255)
    assert differences(taken(model), model, (0.5, 0.5)) == []


def test_axes_that_levels_scale_are_the_models_unless_the_user_says_otherwise():
    model = pretrained(ndim=3, scaled_axes=(0, 1, 2))
    assert taken(model).scaled_axes == ("z", "y", "x")
    assert differences(taken(model), model, None) == []
    own = taken(model, scaled_axes=("x", "y"))
    assert own.scaled_axes == ("x", "y")
    [text] = differences(own, model, None)
    assert text.startswith("scaled_axes are x, y; the levels of the pretrained model scale z, y, x")
    flat = pretrained()
    assert differences(taken(flat, scaled_axes=("x", "y")), flat, None) == []


@pytest.mark.parametrize(("learned", "now", "words"), [
    (0.25, 0.25, None), (0.25, 0.275, None), (0.25, None, None), (None, 0.5, None),
    (0.25, 0.5, r"0\.5 um, those of the pretrained model had 0\.25 um.* 0\.5 times as large"),
    (0.5, 0.25, "2 times as large"),
])
def test_pixels_of_quite_another_size_are_told_of(learned, now, words):
    model = pretrained(pixel_size=None if learned is None else (learned, learned))
    said = differences(taken(model), model, None if now is None else (now, now))
    assert bool(said) == (words is not None)
    if words is not None:
        assert re.search(words, said[0])


def test_the_size_of_pixels_counts_along_the_axes_that_levels_scale():
    model = pretrained(pixel_size=(1, 0.5, 0.5), ndim=3, scaled_axes=(1, 2))
    assert differences(taken(model), model, (5, 0.5, 0.5)) == []
    assert len(differences(taken(model), model, (1, 1.0, 1.0))) == 1


def test_a_run_trains_as_its_pretrained_model_did_or_warns(
    pretrain_options, finetune_options, tmp_path
):
    start_pretrain({**pretrain_options, "steps": 1, "normalization": "constant",
                    "normalization_constant": 200.0}).wait()
    options = {**finetune_options, "pretrained": pretrain_options["output"], "steps": 1}
    events = list(start_finetune(options))
    assert not any(isinstance(event, WarningEvent) for event in events)
    assert RunFolder(tmp_path / "fine").config().normalization_constant == 200
    rule = load_model(find_model(tmp_path / "fine")).meta.normalization
    assert (rule["kind"], rule["constant"]) == ("constant", 200)
    other = {**options, "normalization": "percentile", "output": str(tmp_path / "other")}
    [warning] = [e for e in start_finetune(other) if isinstance(e, WarningEvent)]
    assert warning.message.startswith("images are normalised by the percentiles 1 and 99.8; ")
    assert "the constant 200" in warning.message
