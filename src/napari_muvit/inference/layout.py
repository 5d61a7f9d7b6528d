"""Stage 7 of 7: where the output lies: shape, chunks, scale, translation, areas."""

from __future__ import annotations

from typing import Any

import numpy as np

from napari_muvit.data.output import OutputLayout
from napari_muvit.inference.job import Job
from napari_muvit.inference.lazy import Output
from napari_muvit.inference.planes import Planes
from napari_muvit.inference.tiles import TilePlan

LARGEST_CHUNK = 640
"""Pixels of a chunk along y and x, at most, where blocks allow it."""


def make_layout(
    planes: Planes, job: Job, output: Output, *, fmt: str = "0.5", shard: bool = False
) -> OutputLayout:
    """The layout of one output of a job: the grid of ``levels[0]`` in the image's own units."""
    plan = job.plan
    letters = "zyx"[-plan.ndim:]
    sizes = dict(zip(letters, plan.shape, strict=True))
    sizes |= dict(zip(planes.axes, planes.shape, strict=True))
    if output == "probabilities":
        sizes["c"] = len(job.spec.class_table)
    axes = "".join(letter for letter in "tczyx" if letter in sizes)
    scale, translation, has_unit = place_output(planes, job)
    return OutputLayout(
        shape=tuple(sizes[letter] for letter in axes), axes=axes, block=plan.block,
        chunk=choose_chunk(plan), scale=scale, translation=translation, has_unit=has_unit,
        is_sharded=shard, fmt=fmt, name=f"{job.pyramid.name} prediction",
    )


def place_output(
    planes: Planes, job: Job
) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """Scale and translation of the finest output array along z, y, x, and whether in um."""
    whole = planes.whole
    letters = whole.axes[1:]
    has_unit = whole.pixel_size is not None
    unit = whole.pixel_size[0] if whole.pixel_size is not None else whole.spacing
    world = {
        letter: (size, place / spacing * size)
        for letter, size, place, spacing in zip(
            letters, unit, whole.origin, whole.spacing, strict=True
        )
    }
    places = zip(
        "zyx"[-job.plan.ndim:], job.output_scale, job.output_offset, strict=True
    )
    grid = {letter: (scale, offset) for letter, scale, offset in places}
    scales, shifts = [], []
    for letter in "zyx":
        if letter not in grid and letter not in planes.axes:
            continue
        size, origin = world.get(letter, (1.0, 0.0))
        scale, offset = grid.get(letter, (1.0, 0.0))
        scales.append(float(size * scale))
        shifts.append(float(origin + size * offset))
    return tuple(scales), tuple(shifts), has_unit


def choose_chunk(plan: TilePlan) -> tuple[int, ...]:
    """Pixels of a chunk: whole cells, a whole number of them in a block."""
    chunk = []
    for block, step in zip(plan.block, plan.step, strict=True):
        cells = block // step
        fitting = [k for k in range(1, cells + 1) if cells % k == 0 and k * step <= LARGEST_CHUNK]
        chunk.append(max(fitting, default=1) * step)
    return tuple(chunk)


def area_table(job: Job, tally: dict[int, int]) -> list[dict[str, Any]]:
    """Area of each class.

    Rows of value, name, pixels of the output, px of the image's full resolution, and um2 (um3
    for volumes) where the pixel size is known.
    """
    pixel = float(np.prod(job.output_scale))
    sizes = job.pyramid.pixel_size
    physical = None if sizes is None else pixel * float(np.prod(sizes[0]))
    unit = "um3" if job.plan.ndim == 3 else "um2"
    rows = []
    for item in job.spec.class_table.classes:
        pixels = tally.get(item.value, 0)
        rows.append({
            "value": item.value, "name": item.name, "pixels": pixels, "px": pixels * pixel,
            unit: None if physical is None else pixels * physical,
        })
    return rows
