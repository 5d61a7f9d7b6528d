"""Stage 5 of 7: features become logits, by a UNETR head (MuViT, sections 3.4 and B.2).

Follows UNETR (Hatamizadeh et al., WACV 2022) as far as the paper does: see `pixel_decoder`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from napari_muvit.models.pixel_decoder import Norm, PixelDecoder, convolution


class UNETR(nn.Module):
    """Pixel decoder and one 1x1 convolution to the classes; 2D and 3D.

    Parameters
    ----------
    dim, num_levels, in_channels, patch_size
        Of the encoder.
    num_classes
        Channels of the logits.
    head_dim
        Width of the convolutions; 256 in the paper.
    norm
        ``batch`` (the paper's) or ``group``.
    """

    def __init__(
        self, dim: int, num_levels: int, in_channels: int, patch_size: Sequence[int],
        num_classes: int, head_dim: int = 256, norm: Norm = "batch",
    ) -> None:
        super().__init__()
        self.decoder = PixelDecoder(dim, num_levels, in_channels, patch_size, head_dim, norm)
        self.classify = convolution(head_dim, num_classes, 1, len(patch_size), bias=True)

    def forward(self, layers: Sequence[Tensor], image: Tensor, bbox: Tensor) -> Tensor:
        """Logits (B, K, *S); for what goes in see `PixelDecoder.forward`."""
        logits: Tensor = self.classify(self.decoder(layers, image, bbox))
        return logits
