"""The body of both segmentation heads: tokens of several layers become features of every pixel.

MuViT, sections 3.4 and B.2: tokens of evenly spaced encoder layers are projected to the head's
width; the deepest starts the path upwards, each stage doubles the resolution and takes in the
next shallower layer, and the last stage takes in the finest image itself. Each stage is two
3x3 convolutions with norm and ReLU around which the upsampled features are carried (residual).

What the paper leaves open is decided so that the parameter counts of Table S1 come out
(within 1 %): skips are concatenated (3.4), not added (B.2); every level has its own
projections, and the levels are concatenated in front of shared convolutions. Before that the
features of coarser levels are resampled to the finest crop's field of view (`placement`):
concatenating equal grid indices would put features of other places next to each other. What
lies outside the finest crop reaches the pixels through the encoder's attention.

Tokens pass a norm without parameters before their projection, since the encoder ends without
one. No bias stands in front of a norm, where it could not act.

Axis letters: B batch, L levels, S spatial extent, G patch grid, D encoder width, W head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from napari_muvit.errors import InputError
from napari_muvit.models.kernels import linear
from napari_muvit.models.placement import align, alignment

Norm = Literal["batch", "group"]

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}
_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def convolution(
    in_channels: int, out_channels: int, kernel: int, ndim: int, bias: bool
) -> nn.Module:
    """A convolution over `ndim` axes that keeps their size."""
    kind = _CONVOLUTIONS[ndim]
    return kind(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias)


def build_norm(kind: Norm, width: int, ndim: int) -> nn.Module:
    """Batch norm, or group norm with eight channels in a group where `width` allows.

    Raises
    ------
    InputError
        If `kind` is neither.
    """
    if kind == "batch":
        return _BATCH_NORMS[ndim](width)
    if kind == "group":
        return nn.GroupNorm(max(1, width // 8) if width % 8 == 0 else 1, width)
    raise InputError(f"norm is {kind!r}; a head knows 'batch' (the paper's) and 'group'.")


def stage_factors(patch_size: Sequence[int]) -> list[tuple[int, ...]]:
    """Upsampling factor of every stage along every axis, first stage first.

    An axis with a smaller patch doubles in the last stages only. A patch of one pixel needs no
    upsampling, yet one stage to take in the image.

    Raises
    ------
    InputError
        If a side of the patch is no power of two.
    """
    doublings = [int(side).bit_length() - 1 for side in patch_size]
    if [2.0**count for count in doublings] != list(patch_size):
        raise InputError(
            f"patch_size is {tuple(patch_size)}; a segmentation head doubles the resolution in "
            "each stage, so every side must be a power of two. Take for example 8."
        )
    stages = max(1, *doublings)
    return [tuple(2 if stages - i <= count else 1 for count in doublings) for i in range(stages)]


def skip_layers(num_layers: int, num_stages: int) -> tuple[int, ...]:
    """Evenly spaced encoder layers, one for each stage, the last one included: [0, 5, 11]."""
    if num_stages == 1:
        return (num_layers - 1,)
    return tuple(math.floor(i * (num_layers - 1) / (num_stages - 1)) for i in range(num_stages))


class ConvBlock(nn.Sequential):
    """3x3 convolution, norm and ReLU, (B, C, *S) to (B, W, *S)."""

    def __init__(self, in_channels: int, width: int, norm: Norm, ndim: int) -> None:
        super().__init__(
            convolution(in_channels, width, 3, ndim, bias=False),
            build_norm(norm, width, ndim),
            nn.ReLU(inplace=True),
        )


class Stage(nn.Module):
    """One doubling: upsampled features and a skip, fused by two convolution blocks."""

    def __init__(self, width: int, skip_channels: int, norm: Norm, ndim: int) -> None:
        super().__init__()
        self.fuse = ConvBlock(width + skip_channels, width, norm, ndim)
        self.refine = ConvBlock(width, width, norm, ndim)

    def forward(self, x: Tensor, skip: Tensor, size: Sequence[int]) -> Tensor:
        """(B, W, *S) and (B, C, *any) to (B, W, *size)."""
        x, skip = resize(x, size), resize(skip, size)
        fused: Tensor = self.refine(self.fuse(torch.cat([x, skip], dim=1)))
        return x + fused


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Linear interpolation of (B, C, *S) to `size`, aligned at the outer edges."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    mode = _INTERPOLATION[x.ndim - 2]
    return functional.interpolate(x, size=list(size), mode=mode, align_corners=False)


class PixelDecoder(nn.Module):
    """Tokens of several layers and the finest image to features of every pixel.

    Parameters
    ----------
    dim
        Width of the tokens.
    num_levels
        Levels of the encoder.
    in_channels
        Channels of the image.
    patch_size
        Patch sides, (A,), each a power of two.
    width
        Width of every convolution; 256 in the paper.
    """

    def __init__(
        self, dim: int, num_levels: int, in_channels: int, patch_size: Sequence[int],
        width: int = 256, norm: Norm = "batch",
    ) -> None:
        super().__init__()
        ndim = len(patch_size)
        self.factors = stage_factors(patch_size)
        self.num_skips = len(self.factors)
        shape = (self.num_skips, num_levels, width, dim)
        self.project = nn.Parameter(torch.empty(shape).uniform_(-1, 1) * dim**-0.5)
        self.bottom = nn.Sequential(
            convolution(num_levels * width, width, 1, ndim, bias=False),
            build_norm(norm, width, ndim), nn.ReLU(inplace=True),
        )
        self.stem = nn.Sequential(
            ConvBlock(in_channels, width, norm, ndim), ConvBlock(width, width, norm, ndim)
        )
        skips = [num_levels * width] * (self.num_skips - 1) + [width]
        self.stages = nn.ModuleList(Stage(width, channels, norm, ndim) for channels in skips)

    def forward(self, layers: Sequence[Tensor], image: Tensor, bbox: Tensor) -> Tensor:
        """Pixel features (B, W, *S).

        Parameters
        ----------
        layers
            One (B, L, *G, D) for each skip, shallowest first.
        image
            (B, C, *S) of the finest level.
        bbox
            (B, L, 2, A) world px.
        """
        grid = layers[0].shape[2:-1]
        matrices = alignment(bbox, grid, layers[0].dtype, layers[0].device)
        skips = [self._place(i, x, matrices) for i, x in enumerate(layers)]
        skips = skips[::-1] + [self.stem(_channels_last(image))]
        x: Tensor = self.bottom(skips[0])
        size = tuple(grid)
        for stage, skip, factors in zip(self.stages, skips[1:], self.factors, strict=True):
            size = tuple(s * f for s, f in zip(size, factors, strict=True))
            x = stage(x, skip, size)
        return x

    def _place(self, skip: int, tokens: Tensor, matrices: Sequence[Tensor]) -> Tensor:
        """(B, L, *G, D) to (B, L * W, *G): normed, projected, all on the finest grid."""
        tokens = functional.layer_norm(tokens, tokens.shape[-1:])
        levels = [linear(x, w) for x, w in zip(tokens.unbind(1), self.project[skip], strict=True)]
        if len(levels) > 1:
            levels[1:] = align(torch.stack(levels[1:], dim=1), matrices).unbind(1)
        return torch.cat(levels, dim=-1).movedim(-1, 1)


def _channels_last(image: Tensor) -> Tensor:
    # The convolutions' fastest layout on CPUs, and the one that projected tokens have anyway.
    layout = _CHANNELS_LAST.get(image.ndim - 2)
    return image if layout is None else image.contiguous(memory_format=layout)
