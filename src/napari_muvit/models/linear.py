"""Stage 5 of 7: features become logits, by one linear map: what frozen features alone can tell.

Each level's tokens are weighed for the classes and spread over the finest level's pixels by
the boxes; a linear map and an interpolation commute, so nothing wider than the classes is
enlarged.

Axis letters: B batch, L levels, C channels, S spatial extent, A spatial axes, G patch grid,
D encoder width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class LinearHead(nn.Module):
    """Sum over the levels of weighed tokens, interpolated to the finest level; 2D and 3D.

    Parameters
    ----------
    dim, num_levels
        Of the encoder.
    num_classes
        Channels of the logits.
    """

    def __init__(self, dim: int, num_levels: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_levels, num_classes, dim))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, layers: Sequence[Tensor], image: Tensor, bbox: Tensor) -> Tensor:
        """Logits (B, K, *S).

        Parameters
        ----------
        layers
            Tokens after each skip layer, of which the last counts, each (B, L, *G, D).
        image
            (B, C, *S) of the finest level.
        bbox
            (B, L, 2, A) world px.
        """
        tokens_BLGD = layers[-1].float()
        size = image.shape[2:]
        logits = self.bias.reshape(-1, *(1,) * len(size))
        for level, tokens in enumerate(tokens_BLGD.unbind(1)):
            scores_BKG = (tokens @ self.weight[level].mT).movedim(-1, 1)
            places = pixel_places(size, bbox[:, 0], bbox[:, level])
            logits = logits + functional.grid_sample(
                scores_BKG, places, mode="bilinear", padding_mode="border", align_corners=False)
        return logits


def pixel_places(size: Sequence[int], fine: Tensor, box: Tensor) -> Tensor:
    """Centres of the pixels that fill the box `fine` (B, 2, A), as `grid_sample` wants them.

    That is (B, *S, A), the last axis first, -1 and 1 being the edges of `box` (B, 2, A).
    """
    axes = []
    for axis, count in enumerate(size):
        low, high = fine[:, 0, axis, None], fine[:, 1, axis, None]
        steps = (torch.arange(count, device=fine.device, dtype=fine.dtype) + 0.5) / count
        world = low + (high - low) * steps
        edges = box[:, 0, axis, None], box[:, 1, axis, None]
        place = 2 * (world - edges[0]) / (edges[1] - edges[0]) - 1
        shape = [1] * len(size)
        shape[axis] = count
        axes.append(place.reshape(-1, *shape).expand(-1, *size))
    return torch.stack(axes[::-1], dim=-1).float()
