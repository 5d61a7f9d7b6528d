"""Features from a model folder, ours or the official project's: FOLDER IMAGE [CROP_SIZE].

The official folder does not say which crop size it was trained with; the paper takes 256.
"""

import sys

import numpy as np

import napari_muvit as muvit


def main(folder: str, image: str, crop_size: str = "256") -> np.ndarray:
    model = muvit.load_model(folder)
    encoder = getattr(model, "encoder", model)
    if encoder.crop_size is None:
        encoder.crop_size = (int(crop_size),) * encoder.ndim
    levels = encoder.levels
    features = muvit.features(image, model, level=levels[0])    # dask: nothing computed yet
    corner = features[(slice(None), *[slice(0, 8)] * (features.ndim - 1))].compute()
    print(f"levels {levels}; features {features.shape}; mean of a corner {corner.mean():.3f}")
    return corner


if __name__ == "__main__":
    if len(sys.argv) not in {3, 4}:
        sys.exit(__doc__)
    main(*sys.argv[1:])
