"""Label changes between neighbouring pixels: across tile borders, and elsewhere.

Used by `python benchmarks/prediction.py seams`, for predictions as they are written to disk
and for live ones. Lines on which a tile begins, ends or has half the weight count as borders,
and for every coarser level those of them where its crop changes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np

Rates = dict[str, np.ndarray[Any, Any]]
"""By kind of line: label changes and judged pixels, (2,)."""


def seams(given: argparse.Namespace) -> None:
    """Change rates over all images and models together, as ratios to those elsewhere."""
    for way, predict in (("on disk", predict_whole), ("live", predict_live)):
        total: Rates = {}
        for image in given.images:
            for model in given.model:
                for name, counts in measure(*predict(image, model, given)):
                    total[name] = total.get(name, np.zeros(2)) + counts
        show(way, total)


def show(way: str, total: Rates) -> None:
    """Print every kind of line beside what is elsewhere."""
    away = total.pop("elsewhere")
    if not away[0]:
        print(f"{way}: the model says the same everywhere; take another image or model")
        return
    elsewhere = away[0] / away[1]
    print(f"{way}: {elsewhere:.5f} changes a pixel elsewhere")
    for name, (changes, pixels) in total.items():
        if pixels:
            print(f"  {name:36s} {changes / pixels:.5f}, ratio {changes / pixels / elsewhere:.3f} "
                  f"({int(pixels)} pixels)")


def measure(
    labels: Any, judged: Any, plan: Any
) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Changes and pixels of every kind of line in one prediction."""
    for axis in range(2):
        both = judged & np.roll(judged, -1, axis)
        both = both.take(range(both.shape[axis] - 1), axis)
        changed = (np.diff(labels.astype(int), axis=axis) != 0) & both
        counts = np.stack([changed.sum(axis=1 - axis), both.sum(axis=1 - axis)])
        borders = _borders(plan, axis, None)
        yield "elsewhere", np.delete(counts, borders, axis=1).sum(axis=1)
        yield "at tile borders", counts[:, borders].sum(axis=1)
        for number, level in enumerate(plan.levels[1:]):
            lines = _borders(plan, axis, number)
            yield f"where the crop of level {level:g} changes", counts[:, lines].sum(axis=1)


def predict_whole(image: str, model: str, given: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Labels, where they are judged, and the plan, as `predict` computes them."""
    from napari_muvit.data.pyramid import open_pyramid
    from napari_muvit.inference.engine import Engine
    from napari_muvit.inference.job import plan_job
    from napari_muvit.inference.model_source import parse_model

    job = plan_job(open_pyramid(image), parse_model(model), overlap=given.overlap,
                   roi=given.roi and [given.roi[:2], given.roi[2:]])
    result = Engine(job).compute(tuple(slice(0, n) for n in job.plan.shape))
    return result.probabilities.argmax(axis=0), result.probabilities.max(axis=0) > 0, job.plan


def predict_live(image: str, model: str, given: argparse.Namespace) -> tuple[Any, Any, Any]:
    """The same of a live prediction whose view is the whole image."""
    from napari_muvit.data.pyramid import open_pyramid
    from napari_muvit.inference.job import plan_job
    from napari_muvit.inference.live import LivePrediction
    from napari_muvit.inference.model_source import parse_model

    pyramid = open_pyramid(image)
    job = plan_job(pyramid, parse_model(model), overlap=given.overlap, blend=False)
    with LivePrediction(pyramid, model, overlap=given.overlap) as view:
        view.set_view(pyramid.extent)
        view.wait()
        labels = np.asarray(view.arrays[0])
        judged = np.asarray(view.confidence_arrays[0]) > 0
    return labels, judged, job.plan


def _borders(plan: Any, axis: int, number: int | None) -> np.ndarray[Any, Any]:
    """Lines at which a tile begins, ends or has half the weight.

    With `number` only those between tiles with another crop of that coarser level.
    """
    starts = plan.starts[axis]
    contexts = [
        plan.tile(tuple(i if a == axis else 0 for a in range(plan.ndim))).context
        for i in range(len(starts))
    ]
    lines = []
    for i in range(1, len(starts)):
        if number is None or contexts[i][number] != contexts[i - 1][number]:
            lines += [int(starts[i]) - 1, int(starts[i - 1]) + plan.size[axis] - 1,
                      (int(starts[i]) + int(starts[i - 1]) + plan.size[axis]) // 2 - 1]
    lines = [line for line in lines if 0 <= line < plan.shape[axis] - 1]
    return np.unique(np.asarray(lines, dtype=int))
