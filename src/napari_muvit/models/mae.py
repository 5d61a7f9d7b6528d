"""Stage 5 of 7: features become a reconstruction (masked autoencoder; MuViT, section 3.3).

Axis letters: B batch, L levels, C channels, S spatial extent, A spatial axes, n patches of a
level, N = L * n tokens, Nv visible and Nm masked ones, P values of a patch, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from napari_muvit.geometry import TokenCoordinates
from napari_muvit.models.decoder import Decoder, DecoderContext
from napari_muvit.models.embedding import Number, check_choice, level_rows
from napari_muvit.models.encoder import Encoder
from napari_muvit.models.layers import AttentionMode, project, take
from napari_muvit.models.masking import (
    Mask,
    MaskingMode,
    MaskRule,
    level_numbers,
    mask_from_visible,
    masked_by_level,
)
from napari_muvit.models.rope import RopeFrequencies, RotaryMode
from napari_muvit.models.tokens import Patches, Spread, unpatchify

DECODER_MODES = ("single", "multi", "multi_iso")
LOSSES = ("mse", "norm_mse")
DECODER_CONTEXTS = ("all", "visible")


@dataclass(frozen=True)
class Targets:
    """What is to be reconstructed, (B, N, P), and how it was normalised, (B, N, 1) each."""

    values: Tensor
    mean: Tensor
    scale: Tensor


class MAE(nn.Module):
    """Masked autoencoder over nested crops.

    Parameters
    ----------
    in_channels, levels, patch_size, num_layers, dim, heads, use_level_embed, rotary_mode,
    rotary_base, attention_mode, input_space, dropout
        See `Encoder`.
    num_layers_decoder, dim_decoder
        Sizes of each decoder; a width of None is the encoder's.
    decoder_mode
        One decoder for all levels (``single``), or one per level that sees all levels
        (``multi``) or its own only (``multi_iso``).
    loss
        Mean squared error of pixels (``mse``) or of pixels normalised per patch (``norm_mse``).
    masking_ratio, masking_mode
        See `masking.MaskRule`.
    ndim, token_coordinates, rope_frequencies, crop_size, scaled_axes
        See `Encoder`.
    decoder_context
        What the first layer of a decoder looks at: all tokens, as in the official code, or the
        visible ones alone (``visible``), as in the paper's words (section 3.3). A ``multi_iso``
        decoder has no context, and so no choice.
    """

    ndim: int = 2
    encoder_class: ClassVar[type[Encoder]] = Encoder
    decoder_class: ClassVar[type[Decoder]] = Decoder

    def __init__(
        self, in_channels: int = 1, levels: Sequence[Number] = (1, 4),
        patch_size: int | Sequence[int] = 16, num_layers: int = 12, dim: int = 512,
        num_layers_decoder: int = 2, dim_decoder: int | None = 256, heads: int = 8,
        decoder_mode: Literal["single", "multi", "multi_iso"] = "multi",
        loss: Literal["mse", "norm_mse"] = "mse", masking_ratio: float = 0.75,
        use_level_embed: bool = True, rotary_mode: RotaryMode = "per_layer",
        rotary_base: int = 10000, attention_mode: AttentionMode = "all",
        masking_mode: MaskingMode = "dirichlet", input_space: str = "real",
        dropout: float = 0.0, *, ndim: int | None = None,
        token_coordinates: TokenCoordinates = "span", rope_frequencies: RopeFrequencies = "base",
        crop_size: int | Sequence[int] | None = None, scaled_axes: Sequence[int] | None = None,
        decoder_context: DecoderContext = "all",
    ) -> None:
        super().__init__()
        self.ndim = type(self).ndim if ndim is None else ndim
        check_choice("decoder_mode", decoder_mode, DECODER_MODES)
        check_choice("decoder_context", decoder_context, DECODER_CONTEXTS)
        check_choice("loss", loss, LOSSES)
        width = dim if dim_decoder is None else dim_decoder
        self.encoder = self.encoder_class(
            in_channels, levels, patch_size, num_layers, dim, heads, attention_mode,
            use_level_embed, rotary_mode, rotary_base, input_space, dropout, ndim=self.ndim,
            token_coordinates=token_coordinates, rope_frequencies=rope_frequencies,
            crop_size=crop_size, scaled_axes=scaled_axes,
        )
        level_numbers(masking_mode, len(self.encoder.levels))
        self._config: dict[str, Any] = {
            **self.encoder._config, "decoder_mode": decoder_mode, "loss": loss,
            "masking_ratio": masking_ratio, "masking_mode": masking_mode,
            "num_layers_decoder": num_layers_decoder, "dim_decoder": width,
        }
        self.patch_size = self.encoder.patch_size
        self.masking_ratio, self.masking_mode = masking_ratio, masking_mode
        self.decoder_mode, self.loss_fn = decoder_mode, loss
        self.decoder_context: DecoderContext = decoder_context
        self.final = nn.Linear(width, in_channels * math.prod(self.patch_size))
        num_vectors = 1 if decoder_mode == "single" else len(self.encoder.levels)
        self.mask_token = nn.Parameter(torch.randn(1, num_vectors, dim))
        self.decoder = self._build_decoder(
            dim, width, num_layers_decoder, heads, rotary_mode, rotary_base, dropout
        )

    def _build_decoder(self, *arguments: Any) -> nn.Module:
        """The decoder of all levels, or a list with one for each level."""
        if self.decoder_mode == "single":
            return self.decoder_class(*arguments, ndim=self.ndim)
        return nn.ModuleList(
            self.decoder_class(*arguments, ndim=self.ndim) for _ in self.encoder.levels
        )

    def config(self) -> dict[str, Any]:
        """All constructor arguments."""
        return {**self.encoder.config(), **self._config, "decoder_context": self.decoder_context}

    def _mask(
        self, num_patches: int, batch: int, visible_idx: Tensor | None, rule: MaskRule,
        generator: torch.Generator | None,
    ) -> Mask:
        if visible_idx is None:
            return self.encoder.draw_mask(rule, batch, num_patches, generator)
        device = self.mask_token.device
        num_tokens = num_patches * len(self.encoder.levels)
        return mask_from_visible(visible_idx, num_tokens).to(device)

    def _decode(
        self, cut: Patches, mask: Mask, encoded: Tensor, wanted: Sequence[Tensor] = ()
    ) -> Tensor:
        """Decoded tokens (B, N, D) from encoded visible ones (B, Nv, dim).

        With `wanted`, (B, K) positions for every level, those of each level alone, in order.
        """
        num_levels, num_patches = len(self.encoder.levels), math.prod(cut.grid)
        spread = Spread(mask.visible, num_levels, cut.grid)
        vectors = self.mask_token.expand(encoded.shape[0], num_levels, -1).to(encoded.dtype)
        table = torch.cat([encoded, vectors], dim=1)
        coords = cut.coords
        if isinstance(self.decoder, Decoder):
            return self.decoder.decode(
                spread, table, coords, slice(None), context=self.decoder_context)
        blocks = [slice(i * num_patches, (i + 1) * num_patches) for i in range(num_levels)]
        decoders = cast(list[Decoder], list(cast(nn.ModuleList, self.decoder)))
        if self.decoder_mode == "multi":
            pairs = zip(decoders, blocks, strict=True)
            chosen: Sequence[Tensor | None] = wanted or [None] * num_levels
            parts = [
                d.decode(spread, table, coords, block, choice, self.decoder_context)
                for (d, block), choice in zip(pairs, chosen, strict=True)
            ]
        else:
            z = spread(table)
            pairs = zip(decoders, blocks, strict=True)
            parts = [d(z[:, block], coords[:, block]) for d, block in pairs]
        return torch.cat(parts, dim=1)

    def _targets(self, patches: Tensor, eps: float) -> Targets:
        """The patches (B, N, P) as the loss wants them."""
        if self.loss_fn == "mse":
            ones = torch.ones_like(patches[..., :1])
            return Targets(patches, torch.zeros_like(ones), ones)
        mean = patches.mean(dim=-1, keepdim=True)
        scale = patches.std(dim=-1, keepdim=True) + eps
        return Targets((patches - mean) / scale, mean, scale)

    def forward(
        self, x: Tensor, bbox: Tensor | None = None, return_all: bool = False, eps: float = 1e-2,
        consistent_levels: bool = False, rng_generator: torch.Generator | None = None,
        masking_mode_is_ratio: bool = False, *, visible_idx: Tensor | None = None,
        generator: torch.Generator | None = None, mask_per_sample: bool = False,
        only_loss: bool = False,
    ) -> dict[str, Tensor]:
        """Reconstruct masked patches.

        Parameters
        ----------
        x, bbox
            See `Encoder.tokenize`.
        return_all
            Also return images, features and the loss of every level.
        eps
            Added to a patch's standard deviation under ``norm_mse``.
        consistent_levels, masking_mode_is_ratio, mask_per_sample
            See `masking.MaskRule`.
        rng_generator, generator
            Source of the mask, under its official and its short name.
        visible_idx
            (B, Nv) positions of the visible tokens, in place of a drawn mask.
        only_loss
            Return the loss alone; visible patches are then not reconstructed.

        Returns
        -------
        ``input`` and ``output`` (B, N, P) and ``loss``; with `return_all` also ``encoded``
        (B, Nv, D), ``decoded`` (B, N, P), ``reco``, ``input_masked`` and ``mask``
        (B, L, C, *S), and ``loss_per_level`` (L,).
        """
        cut = self.encoder.cut(x, bbox)
        rule = MaskRule(
            self.masking_ratio, self.masking_mode, masking_mode_is_ratio, consistent_levels,
            mask_per_sample,
        )
        source = rng_generator if generator is None else generator
        mask = self._mask(math.prod(cut.grid), x.shape[0], visible_idx, rule, source)
        encoded = self.encoder.encode_visible(cut, mask.visible)
        targets = self._targets(cut.patches, eps)
        if only_loss:
            return {"loss": self._loss(cut, mask, encoded, targets.values)}
        output = project(self.final, self._decode(cut, mask, encoded))
        wanted = take(targets.values, mask.masked)
        error = (take(output, mask.masked).to(wanted.dtype) - wanted).square()
        result = {"input": cut.patches, "output": output, "loss": error.mean()}
        if return_all:
            per_level = self._level_losses(error, mask.masked, math.prod(cut.grid))
            result |= {"encoded": encoded, "decoded": output, "loss_per_level": per_level}
            result |= self._pictures(x, cut.patches, targets, output, mask)
        return result

    def _loss(self, cut: Patches, mask: Mask, encoded: Tensor, values: Tensor) -> Tensor:
        """Mean squared error of the masked patches, decoding no more than these where it can."""
        # How many a level has is asked of the mask, which a GPU would have to be waited for.
        is_known = mask.masked.device.type == "cpu" and not torch.compiler.is_compiling()
        if self.decoder_mode != "multi" or not is_known or not mask.masked.numel():
            decoded = self._decode(cut, mask, encoded)
            guess, wanted = (take(t, mask.masked) for t in (decoded, values))
            return functional.mse_loss(project(self.final, guess).to(wanted.dtype), wanted)
        num_levels, num_patches = len(self.encoder.levels), math.prod(cut.grid)
        found = masked_by_level(mask, num_levels, num_patches)
        decoded = self._decode(cut, mask, encoded, [index for index, _ in found])
        places = [index + num_patches * level for level, (index, _) in enumerate(found)]
        wanted = take(values, torch.cat(places, dim=1))
        error = (project(self.final, decoded).to(wanted.dtype) - wanted).square()
        is_real = torch.cat([real for _, real in found], dim=1)
        weight = is_real[..., None] / (mask.masked.numel() * error.shape[-1])
        return (error * weight.to(error.dtype)).sum()

    def _level_losses(self, error: Tensor, masked: Tensor, num_patches: int) -> Tensor:
        """Mean error (L,) of each level's masked tokens; 0 for a level without any."""
        count = len(self.encoder.levels)
        per_token = error.mean(dim=-1)
        is_level = functional.one_hot(masked // num_patches, count).to(per_token.dtype)
        sums = (per_token[..., None] * is_level).sum(dim=(0, 1))
        return sums / is_level.sum(dim=(0, 1)).clamp(min=1)

    def _pictures(
        self, x: Tensor, patches: Tensor, targets: Targets, output: Tensor, mask: Mask
    ) -> dict[str, Tensor]:
        """Reconstruction, masked input and mask as images (B, L, C, *S)."""
        index = mask.masked[..., None].expand(-1, -1, patches.shape[-1])
        guess = output.to(patches.dtype).gather(1, index)
        reco = targets.values.scatter(1, index, guess) * targets.scale + targets.mean
        is_masked = torch.zeros_like(patches, dtype=torch.bool).scatter(1, index, True)
        hidden = patches.masked_fill(is_masked, 0.5)
        shape = x.shape[2:]
        return {
            "reco": self.patch_token_to_image(reco, *shape),
            "mask": self.patch_token_to_image(is_masked, *shape),
            "input_masked": self.patch_token_to_image(hidden, *shape),
        }

    def patch_token_to_image(self, x: Tensor, *shape: int) -> Tensor:
        """Patches (B, N, P) as images (B, L, C, *S); `shape` is (C, *S)."""
        num_levels = len(self.encoder.levels)
        patches = x.reshape(x.shape[0], num_levels, x.shape[1] // num_levels, x.shape[2])
        return unpatchify(patches, self.patch_size, shape[0], shape[1:])

    def token_to_patch(self, x: Tensor) -> Tensor:
        """One-channel patches (B, N, P) with their axes, (B, N, *patch)."""
        return x.reshape(*x.shape[:-1], *self.patch_size)

    def extract_levels(self, levels: Sequence[Number], copy: bool = True) -> Self:
        """An autoencoder with some of the levels, in the given order; see `Encoder`."""
        wanted = tuple(levels)
        if not copy and wanted == self.encoder.levels:
            return self
        rows = level_rows(self.encoder.levels, wanted)
        config = {**self.config(), "levels": wanted}
        if not isinstance(self.masking_mode, str):
            config["masking_mode"] = tuple(self.masking_mode[row] for row in rows)
        taken = type(self)(**config)
        taken.encoder = self.encoder.extract_levels(wanted)
        taken.final.load_state_dict(self.final.state_dict())
        if self.decoder_mode == "single":
            taken.decoder.load_state_dict(self.decoder.state_dict())
            taken.mask_token.data = self.mask_token.detach().clone()
        else:
            pairs = zip(cast(nn.ModuleList, taken.decoder), rows, strict=True)
            for decoder, row in pairs:
                source = cast(nn.ModuleList, self.decoder)[row]
                decoder.load_state_dict(source.state_dict())
            taken.mask_token.data = self.mask_token.detach()[:, rows].clone()
        return taken.to(self.mask_token).train(self.training)
