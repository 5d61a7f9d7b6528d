"""Options reach the models that are built from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from napari_muvit.config import FinetuneConfig, PretrainConfig
from napari_muvit.errors import ChannelError, ConfigError, InputError
from napari_muvit.models.factory import build_mae, build_segmenter, scaled_axis_indices


def pretraining(**options: Any) -> PretrainConfig:
    given = {"images": ("a",), "output": "run", "preset": "tiny", "crop_size": 32, "levels": (1, 4)}
    return PretrainConfig(**{**given, **options})


def finetuning(**options: Any) -> FinetuneConfig:
    given = {
        "images": ("a",), "labels": ("b",), "output": "run", "preset": "tiny", "crop_size": 32,
        "levels": (1, 4),
    }
    return FinetuneConfig(**{**given, **options})


def test_sizes_and_policies_reach_the_autoencoder() -> None:
    mae = build_mae(
        pretraining(
            dim=96, heads=2, num_layers=2, patch_size=4, dim_decoder=64, num_layers_decoder=1,
            loss="norm_mse", masking_ratio=0.5, masking_mode="random",
            token_coordinates="span", rotary_mode="shared", attention_mode="coarse_to_fine",
            decoder_context="visible",
        ),
        in_channels=3, ndim=2,
    )
    encoder = mae.encoder
    assert (encoder.dim, encoder.num_layers, encoder.heads) == (96, 2, 2)
    assert (encoder.patch_size, encoder.in_channels, encoder.ndim) == ((4, 4), 3, 2)
    assert encoder.crop_size == (32, 32)
    config = mae.config()
    expected = {
        "dim_decoder": 64, "num_layers_decoder": 1, "loss": "norm_mse", "masking_ratio": 0.5,
        "masking_mode": "random", "token_coordinates": "span", "rotary_mode": "shared",
        "attention_mode": "coarse_to_fine", "rope_frequencies": "scales", "scaled_axes": (0, 1),
        "decoder_context": "visible",
    }
    assert {key: config[key] for key in expected} == expected


@pytest.mark.parametrize("preset", ["tiny", "small", "base"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_every_preset_fits_two_and_three_axes(preset: str, ndim: int) -> None:
    with torch.device("meta"):
        build_mae(pretraining(preset=preset), in_channels=1, ndim=ndim)
        for decoder in ("unetr", "mask2former"):
            build_segmenter(finetuning(preset=preset, decoder=decoder), 1, ndim, 3)


def test_options_reach_the_segmenter() -> None:
    model = build_segmenter(
        finetuning(decoder="mask2former", norm="batch", freeze_encoder=True), 2, 2, 5
    )
    assert model.freeze_encoder
    assert model._config == {
        "num_classes": 5, "decoder": "mask2former", "norm": "batch", "head_dim": 32,
        "num_queries": None, "temperature": 1.0,
    }
    assert model(torch.zeros(2, 2, 2, 32, 32)).shape == (2, 5, 32, 32)


def test_a_volume_scales_its_named_axes_only() -> None:
    model = build_segmenter(
        finetuning(crop_size=(8, 16, 16), patch_size=(2, 8, 8)), 1, 3, 2
    )
    assert model.encoder.scales == ((1.0, 1.0, 1.0), (1.0, 4.0, 4.0))
    assert model.encoder.crop_size == (8, 16, 16)
    assert scaled_axis_indices(("z", "y", "x"), 3) == (0, 1, 2)
    assert scaled_axis_indices(("x", "y"), 4) == (2, 3)


def test_the_wanted_levels_of_a_pretrained_encoder_are_taken() -> None:
    encoder = build_mae(pretraining(levels=(1, 4, 16)), 1, 2).encoder
    model = build_segmenter(finetuning(levels=(1, 16)), 1, 2, 2, encoder=encoder)
    assert model.levels == (1, 16)
    torch.testing.assert_close(
        model.encoder.state_dict()["proj.1.0.weight"], encoder.state_dict()["proj.2.0.weight"]
    )


def test_what_does_not_fit_is_explained() -> None:
    encoder = build_mae(pretraining(), 1, 2).encoder
    with pytest.raises(ChannelError, match="1 channels, the images have 3"):
        build_segmenter(finetuning(), 3, 2, 2, encoder=encoder)
    with pytest.raises(ConfigError, match="2 spatial axes, the images have 3"):
        build_segmenter(finetuning(), 1, 3, 2, encoder=encoder)
    with pytest.raises(InputError, match="Level 8 not found"):
        build_segmenter(finetuning(levels=(1, 8)), 1, 2, 2, encoder=encoder)
    with pytest.raises(ConfigError, match="crop_size is") as caught:
        build_segmenter(finetuning(crop_size=(8, 16, 16), patch_size=8), 1, 2, 2)
    assert caught.value.field == "crop_size"
    with pytest.raises(ConfigError, match="scaled_axes names 'z'"):
        build_segmenter(finetuning(scaled_axes=("z", "y", "x")), 1, 2, 2)
