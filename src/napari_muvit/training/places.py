"""Where a training sample comes from, in words."""

from __future__ import annotations

from collections.abc import Sequence

from napari_muvit.training.loader import Batch


def describe_place(batch: Batch, index: int, names: Sequence[str]) -> str:
    """Image and finest box of sample `index`, for example ``image 'A' at y 0..256, x 64..320``."""
    parts = []
    if "image_index" in batch:
        number = int(batch["image_index"][index])
        name = names[number] if number < len(names) else f"number {number}"
        parts.append(f"image {name!r}")
    if batch.get("bbox") is not None:
        lower, upper = batch["bbox"][index, 0].tolist()
        axes = "tzyx"[-len(lower):]
        spans = [f"{a} {lo:.0f}..{hi:.0f}" for a, lo, hi in zip(axes, lower, upper, strict=True)]
        parts.append("at " + ", ".join(spans))
    return " ".join(parts) or f"sample {index} of the batch"
