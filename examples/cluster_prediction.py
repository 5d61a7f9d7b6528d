"""Predict one image on several workers.

As a script, on your files: `python examples/cluster_prediction.py IMAGE MODEL OUT [SCHEDULER]`.
As it stands it trains a model for one step, on noise, and starts two workers on this machine.
"""

# %%
import sys

import numpy as np

import napari_muvit as muvit

IMAGE, MODEL, OUT, SCHEDULER = "", "", "prediction.ome.zarr", "local:2"

if "__file__" in globals() and len(sys.argv) in {4, 5}:
    IMAGE, MODEL, OUT = sys.argv[1:4]
    SCHEDULER = sys.argv[4] if len(sys.argv) == 5 else "local"

# %% [markdown]
# On SLURM, `--cluster slurm:8` starts eight jobs; or start workers as your cluster wants it and
# pass the scheduler's address:
#
#     from dask_jobqueue import SLURMCluster
#     cluster = SLURMCluster(cores=8, memory="32GB", job_extra_directives=["--gres=gpu:1"])
#     cluster.scale(jobs=4); SCHEDULER = cluster.scheduler_address
#
# Workers import this file: what starts them stands below `__name__ == "__main__"`.


# %%
def prepare() -> tuple[str, str]:
    """An image of noise, and a model that has seen it once; their paths."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (256, 256), np.uint8)
    classes = rng.integers(1, 3, (256, 256), np.uint8)
    for _ in muvit.convert(noise, "noise.ome.zarr", levels=(1, 4)):
        pass
    for _ in muvit.convert(classes, "classes.ome.zarr", levels=(1,), as_labels=True):
        pass
    muvit.finetune({
        "images": ["noise.ome.zarr"], "labels": ["classes.ome.zarr"], "levels": [1, 4],
        "crop_size": 64, "preset": "tiny", "steps": 1, "batch_size": 1, "output": "noise-model",
    }).wait()
    return "noise.ome.zarr", "noise-model"


# %%
if __name__ == "__main__":
    image, model = (IMAGE, MODEL) if IMAGE else prepare()
    for event in muvit.predict_to_zarr(image, model, OUT, cluster=SCHEDULER):
        print(event)
