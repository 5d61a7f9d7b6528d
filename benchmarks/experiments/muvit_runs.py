"""MuViT rows: runs of the public interface, as a user would start them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.naive import naive_boxes
from napari_muvit import api
from napari_muvit.data.cohort import CohortRow
from napari_muvit.errors import RunExistsError
from napari_muvit.training.events import StepEvent, ValidationEvent


def finish_run(
    start: Callable[[dict[str, Any]], Any], options: dict[str, Any], is_naive: bool = False
) -> Path:
    """The folder of a completed run: made, gone on with, or found."""
    output = Path(options["output"])
    with naive_boxes(is_naive):
        try:
            run = start(options)
        except RunExistsError:
            if api.RunFolder(output).status().state == "completed":
                return output
            run = api.resume(output)
        run.wait()
    return output


def seconds_of(run: Path) -> float:
    """Seconds that the optimizer steps took, over all interruptions."""
    events = api.RunFolder(run).events()
    return sum(event.seconds for event in events if isinstance(event, StepEvent))


def curve_of(run: Path, metric: str = "mdsc") -> list[tuple[int, float]]:
    """(step, value) of each validation."""
    events = api.RunFolder(run).events()
    return [(event.step, event.metrics[metric]) for event in events
            if isinstance(event, ValidationEvent) and metric in event.metrics]


def score_run(
    run: Path, rows: Sequence[CohortRow], device: str, threads: int, is_naive: bool = False,
    unlabelled: int | None = None,
) -> dict[str, float]:
    """Pooled Dice of whole test images by class name, predicted as users do; and their mDSC."""
    outputs = []
    with naive_boxes(is_naive):
        for row in rows:
            output = run / "test" / f"{Path(row.image).name.split('.')[0]}.ome.zarr"
            output.parent.mkdir(exist_ok=True)
            events = api.predict_to_zarr(
                row.image, str(run), output, device=device, threads=threads, tissue="none")
            with contextlib.closing(events):  # type: ignore[type-var]
                for _ in events:
                    pass
            outputs.append(str(output))
    return scores_of(outputs, rows, unlabelled)


def scores_of(
    predictions: Sequence[Any], rows: Sequence[CohortRow], unlabelled: int | None = None
) -> dict[str, float]:
    """Dice by class name, and mDSC; of predictions that `evaluate` takes."""
    scores = api.evaluate(list(predictions), [row.labels for row in rows], unlabelled)
    named = {scores.classes[value]: dice for value, dice in scores.dice.items()}
    return {**named, "mdsc": float(scores.mdsc)}
