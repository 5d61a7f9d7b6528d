"""Stages 3 to 5 of 7: a nested crop becomes logits of its finest level (MuViT, section 3.4).

Axis letters: B batch, L levels (Lf fine ones), C channels, S spatial extent, A spatial axes,
G patch grid, N tokens, D encoder width, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from napari_muvit.errors import InputError
from napari_muvit.models.coarse_to_fine import Context
from napari_muvit.models.encoder import Encoder
from napari_muvit.models.kernels import product_precision
from napari_muvit.models.linear import LinearHead
from napari_muvit.models.mask2former import Mask2Former
from napari_muvit.models.pixel_decoder import Norm, skip_layers, stage_factors
from napari_muvit.models.rope import wavelength_range
from napari_muvit.models.tokens import naive_boxes, patch_grid
from napari_muvit.models.unetr import UNETR

Decoder = Literal["unetr", "mask2former", "linear"]
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
        ``unetr``, ``mask2former``, or ``linear``: what frozen features alone can tell.
    norm
        Norm of the head: ``batch`` (the paper's) or ``group``.
    head_dim
        Width of the head; 256 in the paper.
    freeze_encoder
        Train the head alone; the encoder then runs without gradients.
    num_queries
        Mask2Former only; at least `num_classes`.
    temperature
        What the head's logits are divided by: above 1 the probabilities are lower. Fine-tuning
        writes the one that suits the validation crops, see `training.calibration`.

    Raises
    ------
    InputError
        If an argument names nothing known or does not fit the encoder.
    """

    def __init__(
        self, encoder: Encoder, num_classes: int, decoder: Decoder = "unetr",
        norm: Norm = "batch", head_dim: int = 256, freeze_encoder: bool = False,
        num_queries: int | None = None, temperature: float = 1.0,
    ) -> None:
        super().__init__()
        _check(encoder, num_classes, decoder, head_dim, num_queries)
        self._config: dict[str, Any] = {
            "num_classes": num_classes, "decoder": decoder, "norm": norm, "head_dim": head_dim,
            "num_queries": num_queries,
        }
        self.temperature = temperature
        self.encoder = encoder
        self.num_classes = num_classes
        self.levels = encoder.levels
        self.ndim = encoder.ndim
        patch = encoder.patch_size
        self.skip_layers = skip_layers(encoder.num_layers, len(stage_factors(patch)))
        sizes = (encoder.dim, len(encoder.levels), encoder.in_channels, patch, num_classes)
        self.head: UNETR | Mask2Former | LinearHead
        if decoder == "linear":
            self.head = LinearHead(encoder.dim, len(encoder.levels), num_classes)
        elif decoder == "unetr":
            self.head = UNETR(*sizes, head_dim=head_dim, norm=norm)
        else:
            self.head = Mask2Former(
                *sizes, wavelengths=_wavelengths(encoder), head_dim=head_dim, norm=norm,
                num_queries=num_queries,
            )
        self.freeze_encoder = freeze_encoder

    @property
    def temperature(self) -> float:
        """What the head's logits are divided by."""
        return float(self._config["temperature"])

    @temperature.setter
    def temperature(self, value: float) -> None:
        if not 0 < value < math.inf:
            raise InputError(f"temperature is {value}; it must be a number above 0.")
        self._config["temperature"] = float(value)

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
        with self._encoder_gradients():
            outputs = self.encoder.forward_layers(x, bbox, layers=self._wanted)[0]
        boxes = self._naive_boxes(x) if bbox is None else bbox
        layers = self._as_maps(outputs, x)
        return self._run_head(layers, x, boxes), layers[-1]

    def encode_context(self, x_coarse: Tensor, bbox_coarse: Tensor) -> Context:
        """What `forward_fine` needs of the coarse levels, see `Encoder.encode_context`."""
        with self._encoder_gradients():
            return self.encoder.encode_context(x_coarse, bbox_coarse)

    def forward_fine(self, x_fine: Tensor, bbox: Tensor, context: Context) -> Tensor:
        """As `forward`, computing the fine levels only; needs ``coarse_to_fine`` attention.

        Parameters
        ----------
        x_fine
            (B, Lf, C, *S) crops of the levels that the context lacks.
        bbox
            (B, L, 2, A) boxes of all levels.
        context
            Of the coarse levels, for each sample or one for all.
        """
        with self._encoder_gradients():
            fine = bbox[:, : x_fine.shape[1]]
            outputs = self.encoder.encode_fine(x_fine, fine, context, self._wanted)[-1]
        return self._run_head(self._as_maps(outputs, x_fine), x_fine, bbox)

    @property
    def _wanted(self) -> list[int]:
        return sorted(set(self.skip_layers))

    def _encoder_gradients(self) -> torch.set_grad_enabled:
        return torch.set_grad_enabled(torch.is_grad_enabled() and not self._freeze_encoder)

    def _as_maps(self, outputs: Sequence[Tensor], x: Tensor) -> list[Tensor]:
        """Outputs (B, N, D) of the wanted layers as (B, L, *G, D) for each skip."""
        found = dict(zip(self._wanted, outputs, strict=True))
        grid = patch_grid(x.shape[3:], self.encoder.patch_size)
        shape = (x.shape[0], len(self.levels), *grid, self.encoder.dim)
        return [found[layer].reshape(shape) for layer in self.skip_layers]

    def _run_head(self, layers: Sequence[Tensor], x: Tensor, boxes: Tensor) -> Tensor:
        with product_precision(x.device.type):
            logits: Tensor = self.head(layers, x[:, 0], boxes)
        if self.temperature != 1:
            logits = logits / self.temperature
        return logits.to(x.dtype)

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
        raise InputError(f"decoder is {decoder!r}; known are 'unetr', 'mask2former' and 'linear'.")
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
