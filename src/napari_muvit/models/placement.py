"""Where the patches of every level lie, as seen from the finest crop.

Every level has as many patches as the finest, over a field of view that is larger by its
factor, so equal grid indices are different places. A head that puts features of several
levels on one grid has to look each one up where it lies in the world. Boxes are parallel to
the axes, hence linear interpolation separates into one small matrix for each axis: any number
of axes, no scatter in the backward pass (deterministic), every device.

Axis letters: B batch, L levels, A spatial axes, G patches along one axis, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from napari_muvit.models.devices import widest_float


def alignment(
    bbox: Tensor, grid: Sequence[int], dtype: torch.dtype, device: torch.device | None = None,
) -> list[Tensor]:
    """Interpolation matrices from each coarser level's patches to the finest level's.

    Row g holds the weights of the coarse patches around the centre of finest patch g; beyond
    the outermost centres the outermost patch counts alone.

    Parameters
    ----------
    bbox
        (B, L, 2, A) world px, on any device.
    dtype, device
        Of the matrices; by default they stay where the boxes are.

    Returns
    -------
    list of Tensor
        One (B, L - 1, G, G) for each axis.
    """
    boxes = bbox.to(widest_float(bbox.device))  # differences far from the origin need it
    finest, coarse = boxes[:, :1], boxes[:, 1:]
    matrices = []
    for axis, count in enumerate(grid):
        low_f, high_f = finest[:, :, 0, axis, None], finest[:, :, 1, axis, None]
        low_c, high_c = coarse[:, :, 0, axis, None], coarse[:, :, 1, axis, None]
        place = (low_f - low_c) + _fractions(count, boxes) * (high_f - low_f)  # (B, L-1, G)
        index = (place / (high_c - low_c) * count - 0.5).clamp(0, count - 1)
        patches = torch.arange(count, dtype=boxes.dtype, device=boxes.device)
        matrices.append((1 - (index[..., None] - patches).abs()).clamp(min=0).to(device, dtype))
    return matrices


def align(coarse: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Coarser levels' features (B, L - 1, *G, D) brought onto the finest level's grid."""
    for axis, matrix in enumerate(matrices):
        moved = coarse.movedim(2 + axis, 2)
        flat = matrix.to(moved.dtype) @ moved.flatten(3)
        coarse = flat.reshape(moved.shape).movedim(2, 2 + axis)
    return coarse


def _fractions(count: int, like: Tensor) -> Tensor:
    return (torch.arange(count, dtype=like.dtype, device=like.device) + 0.5) / count
