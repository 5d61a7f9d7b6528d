"""Your own image, from nothing to a prediction.

As a script, on your files: `python examples/own_image.py IMAGE LABELS OUT`. As it stands it
takes the tissue image that comes with scikit-image, and labels made from its stains.
"""

# %%
import sys
from pathlib import Path

import numpy as np
from skimage.color import rgb2hed
from skimage.data import immunohistochemistry

import napari_muvit as muvit

IMAGE, LABELS = "", ""
OUT = Path("own-image")
STEPS, CROP_SIZE = 100, 64

if "__file__" in globals() and len(sys.argv) == 4:
    IMAGE, LABELS, OUT = sys.argv[1], sys.argv[2], Path(sys.argv[3])

# %% [markdown]
# An image of your own may be an OME-Zarr, a TIFF, a slide, a PNG. Labels are any image of the
# same size whose values are the classes: painted in napari, exported from QuPath or ImageJ.

# %%
if not IMAGE:
    rgb = immunohistochemistry()
    brown = rgb2hed(rgb)[..., 2]
    IMAGE, LABELS = str(OUT / "image.ome.zarr"), str(OUT / "labels.ome.zarr")
    for _ in muvit.convert(np.moveaxis(rgb, -1, 0), IMAGE, levels=(1, 2, 4)):
        pass
    brown_or_not = (1 + (brown > np.median(brown))).astype(np.uint8)
    for _ in muvit.convert(brown_or_not, LABELS, levels=(1, 2, 4), as_labels=True):
        pass

# %% [markdown]
# Levels by the size of the image: full detail, and a view of about the whole side.

# %%
pyramid = muvit.open_pyramid(IMAGE)
coarsest = max(1, min(32, max(pyramid.spatial_shape[-2:]) // CROP_SIZE))
levels = [1] if coarsest == 1 else [1, coarsest]
print(pyramid, "levels", levels)

# %% [markdown]
# Pretraining needs no labels. Both runs leave a folder with everything in it.

# %%
shared = {"images": [IMAGE], "levels": levels, "crop_size": CROP_SIZE, "preset": "tiny",
          "steps": STEPS, "batch_size": 4}
muvit.pretrain(shared | {"output": str(OUT / "pretrained")}).wait()
finished = muvit.finetune(shared | {
    "labels": [LABELS], "pretrained": str(OUT / "pretrained"), "output": str(OUT / "finetuned"),
}).wait()
print(finished)

# %% [markdown]
# The prediction is an OME-Zarr of labels; a second start would go on where a first one stopped.
# This score is measured on the image that was learnt from: for an honest one keep images apart.

# %%
for _ in muvit.predict_to_zarr(IMAGE, OUT / "finetuned", OUT / "prediction.ome.zarr"):
    pass
print(muvit.evaluate(OUT / "prediction.ome.zarr", LABELS))
