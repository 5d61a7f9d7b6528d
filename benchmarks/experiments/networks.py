"""Networks that others would take, from their libraries, with random weights: nothing is fetched.

SegFormer: Xie et al. (NeurIPS 2021), of transformers. Swin UNETR: Hatamizadeh et al. (2022), of
monai. U-Net: `baselines`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.baselines import UNet

MIT_B2: dict[str, Any] = {
    "hidden_sizes": [64, 128, 320, 512], "depths": [3, 4, 6, 3], "decoder_hidden_size": 768,
}


class Segformer(nn.Module):
    """(B, C, H, W) to logits (B, K, H, W), computed at a quarter of the resolution."""

    def __init__(self, in_channels: int, num_classes: int, **options: Any) -> None:
        super().__init__()
        from transformers import SegformerConfig, SegformerForSemanticSegmentation

        config = SegformerConfig(num_channels=in_channels, num_labels=num_classes, **options)
        self.model = SegformerForSemanticSegmentation(config)

    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(self.model(x).logits, size=x.shape[2:], mode="bilinear")


def swin_unetr(in_channels: int, num_classes: int, **options: Any) -> nn.Module:
    """(B, C, H, W) to logits (B, K, H, W); sides divisible by 32."""
    from monai.networks.nets import SwinUNETR

    model: nn.Module = SwinUNETR(
        in_channels=in_channels, out_channels=num_classes, spatial_dims=2, **options)
    return model


class Autocast(nn.Module):
    """A network computed in bfloat16 where that is safe, as ours is with precision bf16."""

    def __init__(self, model: nn.Module, device: str) -> None:
        super().__init__()
        self.model, self.kind = model, torch.device(device).type

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(self.kind, torch.bfloat16):
            logits: Tensor = self.model(x)
        return logits.float()


@dataclass(frozen=True)
class Network:
    """A way to build a network, in the size that a laptop and the one that a GPU is for."""

    build: Callable[..., nn.Module]
    small: dict[str, Any] = field(default_factory=dict)
    large: dict[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()


NETWORKS = {
    "unet": Network(UNet, large={"width": 64, "depth": 4}),
    "segformer": Network(Segformer, large=MIT_B2, needs=("transformers",)),
    "swin_unetr": Network(
        swin_unetr, {"feature_size": 12}, {"feature_size": 48}, needs=("monai", "einops")),
}


def missing_libraries(needs: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the modules that are not installed."""
    return tuple(name for name in needs if find_spec(name) is None)
