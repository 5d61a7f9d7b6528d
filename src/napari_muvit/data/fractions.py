"""Class fractions of every patch: the targets of supervision at every level.

A coarse patch holds many classes at once, so its target is the share of each class among its
labelled pixels (MuViT, A.3, judges every level; the light head that learns this is dropped
after training).

Axis letters: L levels, K classes, S spatial extent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def class_fractions(
    labels: NDArray[np.int16], num_classes: int, patch: Sequence[int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
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
        (L, *grid) bool, whether it has one.
    """
    shape = [len(labels)]
    for size, step in zip(labels.shape[1:], patch, strict=True):
        shape += [size // step, step]
    blocks = labels.reshape(shape)
    inner = tuple(range(2, len(shape), 2))
    counts = np.stack(
        [np.count_nonzero(blocks == k, axis=inner) for k in range(num_classes)], axis=1
    )
    total = counts.sum(axis=1, keepdims=True)
    fractions = (counts / np.maximum(total, 1)).astype(np.float32)
    return fractions, total[:, 0] > 0
