"""Panels and curves of report.png, collected from run folders and images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.demo.report import Curve, Panel, colour_labels, write_report

LARGEST_PICTURE = 1024
PREVIEW_CAPTIONS = {
    "pretrain": "each level: input, masked, reconstruction",
    "finetune": "input, truth, prediction, confidence",
}


def report(
    path: Path, title: str, rgb: NDArray[np.uint8], label_panels: Sequence[Any], table: Any,
    runs: Sequence[Path], notes: Sequence[str], extra: Sequence[Panel] = (),
    scores: Sequence[Sequence[str]] = (),
) -> None:
    """Write report.png from an image, labels with their class table, and run folders."""
    colours = {} if table is None else {c.value: c.color for c in table.classes}
    panels: list[Panel] = [("image", rgb)]
    panels += [(name, colour_labels(shrink(labels), colours)) for name, labels in label_panels]
    panels += [panel for run in runs for panel in previews(run)]
    panels += list(extra)
    charts = [(f"{run.name}: loss", curves(run)) for run in runs]
    legend = [] if table is None else [(c.name, c.color) for c in table.classes]
    write_report(path, title, panels, charts, notes, scores, legend)


def previews(run: Path) -> list[Panel]:
    """The newest preview picture of a run, with its caption."""
    from PIL import Image

    from napari_muvit import api

    found = api.RunFolder(run).previews()
    if not found:
        return []
    with Image.open(found[-1]) as picture:
        return [(PREVIEW_CAPTIONS.get(run.name, run.name), np.asarray(picture.convert("RGB")))]


def curves(run: Path) -> list[Curve]:
    """The loss curves in a run's metrics: training, and validation where there is one."""
    from napari_muvit import api

    rows = api.RunFolder(run).metrics()
    found: list[Curve] = []
    for split, name in (("train", "training"), ("val", "validation")):
        points = [(float(row["step"]), float(row["loss"])) for row in rows
                  if row["split"] == split and row.get("loss") not in (None, "")]
        if points:
            steps, values = zip(*points, strict=True)
            found.append((name, steps, values))
    return found


def overview(pyramid: Any) -> NDArray[np.uint8]:
    """A small RGB picture of a whole image."""
    level = max(1.0, max(pyramid.spatial_shape[-2:]) / LARGEST_PICTURE)
    image_CYX = pyramid.level_image(level)
    if image_CYX.ndim == 4:
        image_CYX = image_CYX[:, image_CYX.shape[1] // 2]
    channels = image_CYX[:3] if len(image_CYX) >= 3 else image_CYX[:1].repeat(3, axis=0)
    if channels.dtype == np.uint8 and pyramid.is_rgb:
        return np.asarray(np.moveaxis(channels, 0, -1), dtype=np.uint8)
    return np.stack([_stretch(channel) for channel in channels], axis=-1)


def feature_colours(features_DYX: Any) -> NDArray[np.uint8]:
    """The first three principal components of features (D, Y, X) as a picture."""
    values = np.asarray(features_DYX, dtype=np.float32)
    if values.ndim == 4:
        values = values[:, values.shape[1] // 2]
    depth = len(values)
    flat = values.reshape(depth, -1) - values.reshape(depth, -1).mean(1, keepdims=True)
    _, vectors = np.linalg.eigh(flat @ flat.T)
    components = (vectors[:, -3:].T @ flat).reshape(3, *values.shape[1:])
    return np.stack([_stretch(component) for component in components], axis=-1)


def shrink(labels: NDArray[np.integer]) -> NDArray[np.integer]:
    """Every n-th pixel of labels that are larger than a picture need be."""
    step = max(1, max(labels.shape) // LARGEST_PICTURE)
    small: NDArray[np.integer] = labels[::step, ::step]
    return small


def _stretch(channel: NDArray[Any]) -> NDArray[np.uint8]:
    low, high = np.percentile(channel, [1, 99.8])
    scaled = (channel.astype(np.float64) - low) / max(high - low, 1e-9)
    picture: NDArray[np.uint8] = (np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    return picture
