"""Models from configs: the one place where options become constructor arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from napari_muvit.config import FinetuneConfig, PretrainConfig, RunConfig
from napari_muvit.errors import ChannelError, ConfigError
from napari_muvit.models.encoder import Encoder
from napari_muvit.models.mae import MAE
from napari_muvit.models.segmenter import Segmenter

AXES = "tzyx"


def build_mae(config: PretrainConfig, in_channels: int, ndim: int) -> MAE:
    """A new masked autoencoder.

    Raises
    ------
    ConfigError, InputError
        If sizes do not fit `ndim` axes or one another.
    """
    sizes = config.model_sizes()
    return MAE(
        **_encoder_arguments(config, in_channels, ndim),
        num_layers_decoder=sizes["num_layers_decoder"], dim_decoder=sizes["dim_decoder"],
        loss=config.loss, masking_ratio=config.masking_ratio, masking_mode=config.masking_mode,
        decoder_context=config.decoder_context,
    )


def build_encoder(config: RunConfig, in_channels: int, ndim: int) -> Encoder:
    """A new encoder.

    Raises
    ------
    ConfigError, InputError
        If sizes do not fit `ndim` axes or one another.
    """
    return Encoder(**_encoder_arguments(config, in_channels, ndim))


def build_segmenter(
    config: FinetuneConfig, in_channels: int, ndim: int, num_classes: int,
    encoder: Encoder | None = None,
) -> Segmenter:
    """A new segmenter, on a new encoder or the wanted levels of a pretrained one.

    Raises
    ------
    ChannelError
        If the pretrained encoder reads another number of channels.
    ConfigError, InputError
        If it has another number of axes, lacks a level, or sizes do not fit.
    """
    if encoder is None:
        encoder = build_encoder(config, in_channels, ndim)
    else:
        _check_pretrained(encoder, in_channels, ndim)
        encoder = encoder.extract_levels(config.levels, copy=False)
    return Segmenter(
        encoder, num_classes, decoder=config.decoder, norm=config.norm,
        head_dim=config.model_sizes()["head_dim"], freeze_encoder=config.freeze_encoder,
    )


def scaled_axis_indices(names: Sequence[str], ndim: int) -> tuple[int, ...]:
    """Positions of the named axes among the last `ndim` of (t)zyx.

    Raises
    ------
    ConfigError
        If the image has no such axis.
    """
    axes = AXES[-ndim:]
    missing = [name for name in names if name not in axes]
    if missing:
        raise ConfigError(
            f"scaled_axes names {missing[0]!r}; the image has the spatial axes {axes!r}. Leave "
            "it out.", field="scaled_axes",
        )
    return tuple(sorted(axes.index(name) for name in names))


def _encoder_arguments(config: RunConfig, in_channels: int, ndim: int) -> dict[str, Any]:
    sizes = config.model_sizes()
    patch = sizes["patch_size"]
    return {
        "in_channels": in_channels, "levels": config.levels,
        "patch_size": _per_axis("patch_size", (patch,) if isinstance(patch, int) else patch, ndim),
        "num_layers": sizes["num_layers"], "dim": sizes["dim"], "heads": sizes["heads"],
        "attention_mode": config.attention_mode, "rotary_mode": config.rotary_mode, "ndim": ndim,
        "token_coordinates": config.token_coordinates,
        "rope_frequencies": config.rope_frequencies,
        "crop_size": _per_axis("crop_size", config.crop_size, ndim),
        "scaled_axes": scaled_axis_indices(config.scaled_axes, ndim),
    }


def _per_axis(name: str, sizes: Sequence[int], ndim: int) -> tuple[int, ...]:
    if len(sizes) not in {1, ndim}:
        raise ConfigError(
            f"{name} is {tuple(sizes)}; the image has {ndim} spatial axes. Give one number, or "
            "one for every axis.", field=name,
        )
    return tuple(sizes) * (ndim // len(sizes))


def _check_pretrained(encoder: Encoder, in_channels: int, ndim: int) -> None:
    if encoder.ndim != ndim:
        raise ConfigError(
            f"the pretrained model has {encoder.ndim} spatial axes, the images have {ndim}. "
            "Choose another model, or one plane of the images with z.", field="pretrained",
        )
    if encoder.in_channels != in_channels:
        raise ChannelError(
            f"the pretrained model reads {encoder.in_channels} channels, the images have "
            f"{in_channels}. Choose channels of the images, or another model."
        )
