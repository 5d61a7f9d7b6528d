"""Stages 3 to 5 of 7: a nested crop becomes logits of its finest level (MuViT, section 3.4).

Axis letters: B batch, L levels, C channels, S spatial extent, A spatial axes, G patch grid,
N tokens, D encoder width, K classes.
"""

from __future__ import annotations

from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from napari_muvit.errors import InputError
from napari_muvit.models.encoder import Encoder
from napari_muvit.models.kernels import product_precision
from napari_muvit.models.mask2former import Mask2Former
from napari_muvit.models.pixel_decoder import Norm, skip_layers, stage_factors
from napari_muvit.models.rope import wavelength_range
from napari_muvit.models.tokens import naive_boxes, patch_grid
from napari_muvit.models.unetr import UNETR

Decoder = Literal["unetr", "mask2former"]
ASSUMED_GRID = 32
"""Patches along a crop's side where the encoder does not say its crop size."""


class Segmenter(nn.Module):
    """An encoder and a segmentation head; logits at the resolution of ``levels[0]``.

    Take a subset of a pretrained encoder's levels with ``encoder.extract_levels(...)`` first.

    Parameters
    ----------
    encoder
        2D or 3D, with patches whose sides are powers of two.
    num_classes
        Channels of the logits.
    decoder
        ``unetr`` or ``mask2former``.
    norm
        Norm of the head: ``batch`` (the paper's) or ``group``.
    head_dim
        Width of the head; 256 in the paper.
    freeze_encoder
        Train the head alone; the encoder then runs without gradients.
    num_queries
        Mask2Former only; at least `num_classes`.

    Raises
    ------
    InputError
        If an argument names nothing known or does not fit the encoder.
    """

    def __init__(
        self, encoder: Encoder, num_classes: int, decoder: Decoder = "unetr",
        norm: Norm = "batch", head_dim: int = 256, freeze_encoder: bool = False,
        num_queries: int | None = None,
    ) -> None:
        super().__init__()
        _check(encoder, num_classes, decoder, head_dim, num_queries)
        self._config: dict[str, Any] = {
            "num_classes": num_classes, "decoder": decoder, "norm": norm, "head_dim": head_dim,
            "num_queries": num_queries,
        }
        self.encoder = encoder
        self.num_classes = num_classes
        self.levels = encoder.levels
        self.ndim = encoder.ndim
        patch = encoder.patch_size
        self.skip_layers = skip_layers(encoder.num_layers, len(stage_factors(patch)))
        sizes = (encoder.dim, len(encoder.levels), encoder.in_channels, patch, num_classes)
        self.head: UNETR | Mask2Former
        if decoder == "unetr":
            self.head = UNETR(*sizes, head_dim=head_dim, norm=norm)
        else:
            self.head = Mask2Former(
                *sizes, wavelengths=_wavelengths(encoder), head_dim=head_dim, norm=norm,
                num_queries=num_queries,
            )
        self.freeze_encoder = freeze_encoder

    @property
    def freeze_encoder(self) -> bool:
        """Whether the encoder is left as it is while the head trains."""
        return self._freeze_encoder

    @freeze_encoder.setter
    def freeze_encoder(self, freeze: bool) -> None:
        self._freeze_encoder = bool(freeze)
        self.encoder.requires_grad_(not freeze)

    def forward(self, x: Tensor, bbox: Tensor | None = None) -> Tensor:
        """Logits (B, K, *S) of the finest level.

        Parameters
        ----------
        x
            (B, L, C, *S), normalised.
        bbox
            (B, L, 2, A) world px; concentric boxes by default.
        """
        return self.forward_with_tokens(x, bbox)[0]

    def forward_with_tokens(self, x: Tensor, bbox: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits (B, K, *S), and the last layer's tokens (B, L, *G, D) that they come from."""
        layers = self._encode(x, bbox)
        boxes = self._naive_boxes(x) if bbox is None else bbox
        with product_precision(x.device.type):
            logits: Tensor = self.head(layers, x[:, 0], boxes)
        return logits.to(x.dtype), layers[-1]

    def _encode(self, x: Tensor, bbox: Tensor | None) -> list[Tensor]:
        """Tokens after each skip layer, (B, L, *G, D)."""
        wanted = sorted(set(self.skip_layers))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._freeze_encoder):
            outputs, _, _ = self.encoder.forward_layers(x, bbox, layers=wanted)
        found = dict(zip(wanted, outputs, strict=True))
        shape = (len(self.levels), *patch_grid(x.shape[3:], self.encoder.patch_size))
        return [found[layer].reshape(x.shape[0], *shape, -1) for layer in self.skip_layers]

    def _naive_boxes(self, x: Tensor) -> Tensor:
        encoder = self.encoder
        boxes = naive_boxes(encoder.scales, x.shape[3:], encoder.token_coordinates)
        return boxes.to(x.device).expand(x.shape[0], -1, -1, -1)

    def train(self, mode: bool = True) -> Self:
        """Training mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self._freeze_encoder:
            self.encoder.eval()
        return self


def _wavelengths(encoder: Encoder) -> tuple[tuple[float, float], ...]:
    """Of the keys' rotation; see `rope.wavelength_range`."""
    patch = encoder.patch_size
    crop = encoder.crop_size or tuple(ASSUMED_GRID * side for side in patch)
    return wavelength_range(patch, crop, encoder.scales)


def _check(
    encoder: Encoder, num_classes: int, decoder: str, head_dim: int, num_queries: int | None
) -> None:
    if decoder not in get_args(Decoder):
        raise InputError(f"decoder is {decoder!r}; known are 'unetr' and 'mask2former'.")
    if encoder.ndim not in {2, 3}:
        raise InputError(
            f"the encoder has {encoder.ndim} spatial axes; segmentation heads exist for 2 and 3."
        )
    if num_classes < 1:
        raise InputError(f"num_classes is {num_classes}; a segmenter needs at least one class.")
    if head_dim < 16 or head_dim % 16:
        raise InputError(
            f"head_dim is {head_dim}; it must be a positive multiple of 16. Take 256 as the paper."
        )
    if num_queries is not None and num_queries < num_classes:
        raise InputError(
            f"num_queries is {num_queries} for {num_classes} classes; there must be at least as "
            "many queries as classes."
        )
