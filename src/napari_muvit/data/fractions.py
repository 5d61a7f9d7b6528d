"""Class fractions of every patch: the targets of supervision at every level.

A coarse patch holds many classes at once, so its target is the share of each class among its
labelled pixels (MuViT, A.3, judges every level; the light head that learns this is dropped
after training).

Axis letters: L levels, K classes, S spatial extent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def class_fractions(
    labels: NDArray[np.int16], num_classes: int, patch: Sequence[int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Share of each class among the labelled pixels of each patch.

    Parameters
    ----------
    labels
        (L, *S) class indices, -1 where not judged.
    patch
        Size of a patch along each spatial axis; it divides the crop.

    Returns
    -------
    fractions, known
        (L, K, *grid) float32 that sum to 1 where a patch has a labelled pixel, else 0; and
        (L, *grid) float32, the share of its pixels that is labelled: the weight of a patch.
    """
    grid = tuple(n // k for n, k in zip(labels.shape[1:], patch, strict=True))
    cells = np.zeros((1,) * len(grid), dtype=np.int64)
    for axis, (size, step) in enumerate(zip(labels.shape[1:], patch, strict=True)):
        shape = [-1 if other == axis else 1 for other in range(len(grid))]
        cells = cells * grid[axis] + (np.arange(size) // step).reshape(shape)
    # One count over (patch, class), unlabelled pixels as one class more that is dropped.
    count, bins = math.prod(grid), num_classes + 1
    level = np.arange(len(labels)).reshape((-1, *(1,) * len(grid)))
    keys = (level * count + cells) * bins + labels + 1
    counts = np.bincount(keys.ravel(), minlength=len(labels) * count * bins)
    counts = counts.reshape(len(labels), *grid, bins)[..., 1:]
    total = counts.sum(axis=-1)
    fractions = (counts / np.maximum(total, 1)[..., None]).astype(np.float32)
    known = (total / math.prod(patch)).astype(np.float32)
    return np.ascontiguousarray(np.moveaxis(fractions, -1, 1)), known
