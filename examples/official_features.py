"""Features from a model folder, ours or the official project's.

As a script, on your files: `python examples/official_features.py FOLDER IMAGE [CROP_SIZE]`. As
it stands it writes a small official folder with untrained weights, and takes noise as image.
"""

# %%
import sys

import numpy as np

import napari_muvit as muvit

FOLDER, IMAGE, CROP_SIZE = "", "", 256

if "__file__" in globals() and len(sys.argv) in {3, 4}:
    FOLDER, IMAGE = sys.argv[1:3]
    CROP_SIZE = int(sys.argv[3]) if len(sys.argv) == 4 else CROP_SIZE

# %%
if not FOLDER:
    FOLDER, CROP_SIZE = "official-model", 64
    encoder = muvit.MuViTEncoder2d(in_channels=1, levels=(1, 4), patch_size=8, num_layers=2,
                                   dim=64, heads=2)
    encoder.save(FOLDER, overwrite=True)
image = IMAGE or np.random.default_rng(0).integers(0, 255, (256, 256), np.uint8)

# %% [markdown]
# The official folder does not say which crop size it was trained with; the paper takes 256.
# Nothing in the folder is executed.

# %%
model = muvit.load_model(FOLDER)
encoder = getattr(model, "encoder", model)
if encoder.crop_size is None:
    encoder.crop_size = (CROP_SIZE,) * encoder.ndim

# %% [markdown]
# Features of a level are a dask array: nothing is computed until a part of it is asked for.

# %%
levels = encoder.levels
features = muvit.features(image, model, level=levels[0])
corner = features[(slice(None), *[slice(0, 8)] * (features.ndim - 1))].compute()
print(f"levels {levels}; features {features.shape}; mean of a corner {corner.mean():.3f}")
