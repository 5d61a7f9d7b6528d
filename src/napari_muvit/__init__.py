"""MuViT for gigapixel microscopy: open, pretrain, fine-tune, predict.

Names are resolved when they are first used (PEP 562), so that importing the package loads
neither torch nor napari.
"""

from __future__ import annotations

import importlib
from typing import Any

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
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
