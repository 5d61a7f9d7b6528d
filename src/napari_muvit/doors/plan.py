"""`napari-muvit doctor IMAGE`: what the afternoon would hold, measured on this machine.

For each preset a few real steps of pretraining and fine-tuning are run on the image, and one
block is predicted; the rest is multiplication. Of a volume the middle plane is taken, for models
of planes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from napari_muvit.doors.shell import duration, say
from napari_muvit.errors import MuvitError

STEPS, MEASURED_STEPS, BATCH_SIZE = 1000, 3, 8
PRESETS = ("tiny", "small", "base")


@dataclass(frozen=True)
class PresetTimes:
    """Seconds: a pretraining and a fine-tuning of `STEPS` steps, and the whole prediction."""

    preset: str
    pretrain: float
    finetune: float
    predict: float

    def __str__(self) -> str:
        return (f"  {self.preset:<8}{duration(self.pretrain):>12}{duration(self.finetune):>12}"
                f"{duration(self.predict):>12}")


def plan(image: str, device: str = "auto") -> Iterator[str]:
    """Lines of the plan for `image`, each as soon as it is measured.

    Raises
    ------
    SourceError
        If the image cannot be read.
    """
    from napari_muvit import api

    pyramid = api.open_pyramid(image)
    crop_size, levels = api.suggest_crops(pyramid)
    yield (f"{pyramid.name}: {' x '.join(map(str, pyramid.spatial_shape))} px; levels "
           f"{', '.join(map(str, levels))}, crops of {crop_size} px, batch {BATCH_SIZE}"
           + (", plane by plane" if num_planes(pyramid) > 1 else ""))
    yield (f"  {'preset':<8}{'pretrain':>12}{'fine-tune':>12}{'predict':>12}   "
           f"({STEPS} steps each, whole image)")
    for preset in PRESETS:
        say(f"doctor: measuring preset {preset}")
        try:
            yield str(measure(pyramid, image, preset, crop_size, levels, device))
        except MuvitError as error:
            yield f"  {preset:<8}not measured: {error}"


def measure(
    pyramid: Any, image: str, preset: str, crop_size: int, levels: tuple[int, ...], device: str
) -> PresetTimes:
    """The times of one preset from `MEASURED_STEPS` steps of one crop each, and one block."""
    from napari_muvit import api

    with tempfile.TemporaryDirectory() as folder:
        labels = _painted_block(pyramid, Path(folder) / "labels.ome.zarr", crop_size)
        shared: dict[str, Any] = {
            "images": [image], "levels": levels, "crop_size": crop_size, "preset": preset,
            "device": device, "batch_size": 1, "steps": MEASURED_STEPS, "tissue": "none",
        }
        if num_planes(pyramid) > 1:
            shared["z"] = [num_planes(pyramid) // 2]
        per_crop = []
        for kind, more in (("pretrain", {}), ("finetune", {"labels": [str(labels)]})):
            run = getattr(api, kind)(shared | more | {"output": str(Path(folder) / kind)})
            seconds = [event.seconds for event in run if hasattr(event, "learning_rate")]
            per_crop.append(min(seconds))
        per_tile = _seconds_per_tile(pyramid, image, Path(folder), crop_size, device)
    num_tiles = num_planes(pyramid) * np.prod(
        [max(1, round(n / (crop_size * 0.75))) for n in pyramid.spatial_shape[-2:]])
    scale = STEPS * BATCH_SIZE
    return PresetTimes(preset, per_crop[0] * scale, per_crop[1] * scale,
                       per_tile * float(num_tiles) / levels[0] ** 2)


def num_planes(pyramid: Any) -> int:
    """Planes of a volume; 1 of an image."""
    shape = pyramid.spatial_shape
    return int(shape[0]) if len(shape) > 2 else 1


def _painted_block(pyramid: Any, path: Path, crop_size: int) -> Path:
    """A sparse label image with one painted block of two classes in the middle of the image."""
    from napari_muvit import api

    classes = (api.LabelClass(1, "one", "#cc3333"), api.LabelClass(2, "two", "#3333cc"))
    table = api.ClassTable(classes, unlabelled=0)
    shape = pyramid.spatial_shape
    axes = "zyx"[-len(shape):]
    array = api.create_pyramid(path, shape=shape, axes=axes, levels=(1,), dtype="uint8",
                               classes=table)[0]
    start = [max(0, (n - crop_size) // 2) for n in shape]
    region = tuple(slice(s, min(n, s + crop_size)) for s, n in zip(start, shape, strict=True))
    block = np.ones([r.stop - r.start for r in region], np.uint8)
    block[..., : block.shape[-1] // 2] = 2
    array[region] = block
    return path


def _seconds_per_tile(
    pyramid: Any, image: str, folder: Path, crop_size: int, device: str
) -> float:
    """Seconds of one tile, from predicting a block of a few in the middle of the image."""
    from napari_muvit import api

    half, planes = crop_size, num_planes(pyramid)
    middle = np.asarray(pyramid.spatial_shape[-2:], float) / 2
    roi = np.stack([middle - half, middle + half])
    tiles, seconds = 0, 0.0
    for event in api.predict_to_zarr(image, str(folder / "finetune"), folder / "p.ome.zarr",
                                     z=planes // 2 if planes > 1 else None, roi=roi,
                                     tissue="none", device=device):
        tiles, seconds = getattr(event, "done", tiles), getattr(event, "seconds", seconds)
    return seconds / max(tiles, 1)
