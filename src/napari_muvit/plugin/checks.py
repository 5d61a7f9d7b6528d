"""What is said before a run starts: whether its levels fit the images, and the memory it takes.

A rough count, without building the model; what is really needed shows in the first steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from napari_muvit.config import PRESETS, FinetuneConfig, PretrainConfig, RunConfig
from napari_muvit.errors import InputError, MuvitError
from napari_muvit.plugin.crops import first_crops
from napari_muvit.plugin.devices import DESK, DeviceDesk, training_words
from napari_muvit.plugin.image_choices import NUM_AXES

BYTES_PER_WEIGHT = 16
"""A float32 weight, its gradient and the two averages of AdamW."""

VALUES_PER_TOKEN = 24
"""Numbers that a layer keeps for the backward pass, for each token and unit of width."""

CLOSE_TO_ALL = 0.8
"""Share of the memory above which a person is warned."""

GB = 1e9


def advise(backend: Any, config: RunConfig, desk: DeviceDesk = DESK) -> str:
    """Sentences for a person before a run starts (runs in a thread).

    Planes of volumes, levels that do not fit an image, memory, and who else uses the device.
    """
    said: list[str] = []
    ndim = 2
    for path in config.images:
        if Path(path).suffix.lower() == ".csv":
            continue
        try:
            pyramid = backend.open_pyramid(path, channels=config.channels, t=config.t)
            if pyramid.ndim > NUM_AXES:
                said.append(planes_text(config, pyramid))
                if config.z is not None:
                    pyramid = pyramid.plane(0)
            ndim = pyramid.ndim
            axes = tuple("zyx"[-ndim:].index(axis) for axis in config.scaled_axes
                         if axis in "zyx"[-ndim:])
            size = config.crop_size[0] if len(config.crop_size) == 1 else config.crop_size
            advice = backend.advise_levels(pyramid, config.levels, size, axes)
        except InputError as error:
            advice = str(error)
        except (MuvitError, OSError):
            # The start will say it, in the place where it matters.
            continue
        if advice and (advice := advice[0].upper() + advice[1:]) not in said:
            said.append(advice)
    said += pretrained_words(config)
    said.append(memory_text(config, ndim))
    return " ".join([*said, *training_words(backend, desk, config.device)])


def pretrained_words(config: RunConfig) -> list[str]:
    """What is wrong with the folder of the pretrained model, while there is time to mend it."""
    place = config.pretrained if isinstance(config, FinetuneConfig) else None
    if not place or "://" in place or Path(place).expanduser().is_dir():
        return []
    return [f"The pretrained model {place!r} does not exist; give the folder of a run."]


def suggest_options(backend: Any, path: str) -> dict[str, Any]:
    """Levels and crop size for an image, or for the first of a table; none if it is unreadable.

    The same as in Crops. Runs in a thread.
    """
    try:
        if Path(path).suffix.lower() == ".csv":
            path = backend.read_cohort(path)[0].image
        crop_size, levels = first_crops(backend, backend.open_pyramid(path), path)
    except (MuvitError, OSError):
        # The start will say it, in the place where it matters.
        return {}
    return {"levels": levels, "crop_size": (crop_size,)}


def planes_text(config: RunConfig, pyramid: Any) -> str:
    """Which planes of a volume a run learns from, and which are left out."""
    name, depth = pyramid.name, pyramid.spatial_shape[0]
    is_labelled = isinstance(config, FinetuneConfig)
    if config.z is None:
        which = "all planes with labels" if is_labelled else "all planes"
        return (
            f"{name!r} is a volume of {depth} planes, so this will be a model of volumes. For a "
            f"2D model of {which}, type 'all' into Planes (advanced options)."
        )
    if config.z == "all":
        which = f"Those of the {depth} planes" if is_labelled else f"All {depth} planes"
        return f"{which} of {name!r}{' that have labels' * is_labelled} are taken as 2D images."
    numbers = ", ".join(str(z) for z in config.z)
    left = "; what is painted on other planes is left out" if is_labelled else ""
    one = f"Plane {numbers} of {name!r} is taken as a 2D image"
    several = f"Planes {numbers} of {name!r} are taken as 2D images"
    return f"{one if len(config.z) == 1 else several}{left}."


def memory_text(config: RunConfig, ndim: int = 2) -> str:
    """How much memory the run takes, against what there is."""
    needed = memory_bytes(config, ndim)
    text = f"Needs about {max(needed / GB, 0.1):.1f} GB of memory"
    there, what = available_bytes(config.device)
    if there is None:
        return f"{text}."
    text += f" of {there / GB:.0f} GB {what}"
    if needed > CLOSE_TO_ALL * there:
        return f"{text}: take a smaller batch size, crop size or preset."
    return f"{text}."


def memory_bytes(config: RunConfig, ndim: int = 2) -> float:
    """Weights with their optimizer, and what one batch keeps for the backward pass."""
    sizes = {**PRESETS[config.preset], **config.model_sizes()}
    dim, depth, patch = sizes["dim"], sizes["num_layers"], sizes["patch_size"]
    weights = 12.0 * dim**2 * depth
    per_axis = tuple(config.crop_size) * (ndim if len(config.crop_size) == 1 else 1)
    patches = tuple(patch) if isinstance(patch, (tuple, list)) else (patch,)
    patches = patches * (ndim if len(patches) == 1 else 1)
    tokens = len(config.levels) * float(np.prod([n / p for n, p in zip(
        per_axis, patches, strict=True)]))
    kept = tokens * dim * depth * VALUES_PER_TOKEN
    if isinstance(config, FinetuneConfig):
        kept += float(np.prod(per_axis)) * sizes["head_dim"] * 8
    if isinstance(config, PretrainConfig):
        kept = kept * (1 - config.masking_ratio) + (
            tokens * sizes["dim_decoder"] * sizes["num_layers_decoder"] * VALUES_PER_TOKEN)
    return float(weights * BYTES_PER_WEIGHT + kept * 4 * config.batch_size)


def available_bytes(device: str) -> tuple[float | None, str]:
    """Memory of the device, and what it is called; None where it cannot be told."""
    import psutil  # comes with napari
    import torch

    if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()):
        if not torch.cuda.is_available():
            return None, ""
        return float(torch.cuda.get_device_properties(0).total_memory), "on the graphics card"
    return float(psutil.virtual_memory().total), "in this computer"
