"""Networks without levels: a U-Net and a network like DeepLabV3, for the finest crop alone.

U-Net: Ronneberger et al. (MICCAI 2015). DeepLabV3: Chen et al. (2017), an encoder of residual
blocks whose last stage is dilated, atrous pyramid pooling with the mean of the crop as one
branch, and bilinear upsampling. Both are small enough for a CPU and of the size of the preset
tiny; no pretrained weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def conv_block(in_channels: int, width: int, *, stride: int = 1, dilation: int = 1) -> nn.Module:
    """3x3 convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, stride, dilation, dilation, bias=False),
        nn.BatchNorm2d(width), nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """(B, C, H, W) to logits (B, K, H, W); sides divisible by 2 ** depth.

    Parameters
    ----------
    width
        Channels of the first stage; doubled in each of the `depth` next ones.
    """

    def __init__(
        self, in_channels: int, num_classes: int, width: int = 24, depth: int = 3
    ) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(depth + 1)]
        self.down = nn.ModuleList(
            nn.Sequential(conv_block(before, after), conv_block(after, after))
            for before, after in zip([in_channels, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(
            nn.Sequential(conv_block(below + above, above), conv_block(above, above))
            for below, above in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.classify = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for i, stage in enumerate(self.down):
            x = stage(functional.max_pool2d(x, 2) if i else x)
            skips.append(x)
        for stage, skip in zip(self.up, skips[-2::-1], strict=True):
            x = functional.interpolate(x, scale_factor=2.0, mode="bilinear")
            x = stage(torch.cat([x, skip], dim=1))
        logits: Tensor = self.classify(x)
        return logits


class Residual(nn.Module):
    """Two 3x3 convolutions around which the input is carried."""

    def __init__(self, in_channels: int, width: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.first = conv_block(in_channels, width, stride=stride, dilation=dilation)
        self.second = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, dilation, dilation, bias=False), nn.BatchNorm2d(width))
        is_same = stride == 1 and in_channels == width
        self.carry: nn.Module = nn.Identity() if is_same else nn.Conv2d(
            in_channels, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.second(self.first(x)) + self.carry(x))


class DeepLab(nn.Module):
    """(B, C, H, W) to logits (B, K, H, W), computed at a quarter of the resolution."""

    def __init__(
        self, in_channels: int, num_classes: int, width: int = 32,
        rates: tuple[int, ...] = (2, 4, 8),
    ) -> None:
        super().__init__()
        wide = 2 * width
        self.encoder = nn.Sequential(
            conv_block(in_channels, width, stride=2), Residual(width, width),
            Residual(width, wide, stride=2), Residual(wide, wide), Residual(wide, wide, dilation=2),
        )
        branches = [nn.Conv2d(wide, wide, 1), *(conv_block(wide, wide, dilation=r) for r in rates)]
        self.branches = nn.ModuleList(branches)
        self.pooled = nn.Conv2d(wide, wide, 1)
        self.fuse = conv_block(wide * (len(branches) + 1), wide)
        self.classify = nn.Conv2d(wide, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.encoder(x)
        mean = functional.relu(self.pooled(features.mean((2, 3), keepdim=True)))
        parts = [branch(features) for branch in self.branches] + [mean.expand_as(features)]
        logits = self.classify(self.fuse(torch.cat(parts, dim=1)))
        return functional.interpolate(logits, size=x.shape[2:], mode="bilinear")


BASELINES: dict[str, type[nn.Module]] = {"unet": UNet, "deeplab": DeepLab}
