"""MuViT for gigapixel microscopy: open, pretrain, fine-tune, predict.

Names are resolved when they are first used (PEP 562), so that importing the package loads
neither torch nor napari.
"""

from __future__ import annotations

import os
import sys

from napari_muvit.lookup import lazy_names

if sys.platform == "darwin":
    # Torch reads it when it is loaded: what its Apple backend lacks is computed on the CPU.
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

__version__ = "0.1.0"

_HOMES = {
    "napari_muvit.api": (
        "open_pyramid", "pretrain", "finetune", "resume", "predict", "predict_to_zarr", "features",
        "evaluate", "convert", "load_model",
    ),
    "napari_muvit.official": (
        "MuViTDataset",
        "MuViTEncoder2d", "MuViTEncoder3d", "MuViTEncoder4d",
        "MuViTDecoder2d", "MuViTDecoder3d", "MuViTDecoder4d",
        "MuViTMAE2d", "MuViTMAE3d", "MuViTMAE4d",
        "MuViTSegmenter2d", "MuViTSegmenter3d",
    ),
    "napari_muvit.config": ("PretrainConfig", "FinetuneConfig"),
    "napari_muvit.errors": ("MuvitError",),
}

__all__ = ["__version__", *sorted(name for names in _HOMES.values() for name in names)]
__getattr__, __dir__ = lazy_names(globals(), _HOMES)
