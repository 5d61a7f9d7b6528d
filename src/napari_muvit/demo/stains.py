"""Demo labels from stain separation: a function of colour, and no more than that.

Colour deconvolution into haematoxylin, eosin and DAB (Ruifrok and Johnston 2001), as
scikit-image has it, smoothed and cut at Otsu's thresholds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

REST, NUCLEI, DAB = 1, 2, 3
CLASSES = (
    (REST, "rest", "#d9d9d9"),
    (NUCLEI, "nuclei", "#3366cc"),
    (DAB, "DAB-positive", "#a0522d"),
)
"""Value, name and colour of each class."""


def stain_labels(rgb_YXC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Labels (Y, X) uint8 of an RGB image (Y, X, 3): 1 rest, 2 nuclei, 3 DAB-positive."""
    from skimage.color import rgb2hed
    from skimage.filters import gaussian, threshold_otsu

    hed = gaussian(rgb2hed(rgb_YXC), sigma=2, channel_axis=-1)
    nuclei, dab = hed[..., 0], hed[..., 2]
    is_dab = dab > threshold_otsu(dab)
    is_nuclei = (nuclei > threshold_otsu(nuclei[~is_dab])) & ~is_dab
    labels = np.full(dab.shape, REST, dtype=np.uint8)
    labels[is_nuclei] = NUCLEI
    labels[is_dab] = DAB
    return labels
