"""A session in napari's console: crops, live and lazy prediction without opening a widget.

In napari's console, where `viewer` is there already, paste everything below its line. As a
script: `python examples/console_session.py [IMAGE RUN]`; as it stands it opens the sample
image and trains a small model on its stains.
"""

# %%
import sys
from pathlib import Path

import napari
import numpy as np

import napari_muvit as muvit
from napari_muvit.plugin.console import lazy_labels, live_prediction, show_crops

IMAGE, RUN, STEPS = "", "", 50

if "__file__" in globals() and len(sys.argv) == 3:
    IMAGE, RUN = sys.argv[1:]

viewer = napari.Viewer()

# %%
if IMAGE:
    viewer.open(IMAGE, plugin="napari-muvit")
else:
    viewer.open_sample("napari-muvit", "immunohistochemistry")
image = viewer.layers[-1]

# %% [markdown]
# A napari layer goes wherever an image does.

# %%
pyramid = muvit.open_pyramid(image)
print(pyramid)
boxes = show_crops(viewer, image, levels=(1, 4), size=64)

# %%
if not RUN:
    dark = pyramid.level_image(1).mean(axis=0)
    classes = (1 + (dark < np.median(dark))).astype(np.uint8)
    folder = Path("console-session")
    list(muvit.convert(classes, folder / "labels.ome.zarr", levels=(1,), as_labels=True))
    list(muvit.convert(image, folder / "image.ome.zarr", levels=(1, 4)))  # training reads files
    RUN = str(folder / "run")
    muvit.finetune({
        "images": [str(folder / "image.ome.zarr")],
        "labels": [str(folder / "labels.ome.zarr")],
        "levels": [1, 4], "crop_size": 64, "preset": "tiny", "steps": STEPS, "batch_size": 4,
        "output": RUN,
    }).wait()

# %% [markdown]
# A layer that is predicted when napari shows it, for a box of the image:

# %%
labels = lazy_labels(viewer, RUN, image, box=[[100, 100], [228, 228]])
print(np.unique(np.asarray(labels.data)))

# %% [markdown]
# Or one that follows the camera until it is told to stop:

# %%
session = live_prediction(viewer, RUN, image)
session.stop()

# %%
if "__file__" in globals():
    napari.run()
