"""Validation on whole images at the end of a run, by the very predictor that users run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Literal, cast

from napari_muvit.data.labels import ClassTable
from napari_muvit.data.pyramid import Pyramid
from napari_muvit.inference.scores import evaluate
from napari_muvit.inference.to_store import predict_to_zarr
from napari_muvit.training.control import Control
from napari_muvit.training.folder import VALIDATION, RunFolder


class WholeImages:
    """Predicts whole validation images into the run folder and scores them.

    Parameters
    ----------
    pyramids, labels
        Validation images and their labels.
    table
        The classes, for the names of the metrics.
    device, precision, threads
        As the run's.
    """

    def __init__(
        self, pyramids: Sequence[Pyramid], labels: Sequence[Pyramid], table: ClassTable, *,
        device: str, precision: str, threads: int | None,
    ) -> None:
        self.pyramids, self.labels, self.table = pyramids, labels, table
        self.device, self.precision, self.threads = device, precision, threads
        self.names = ("whole_mdsc", *(f"whole_dice_{name}" for name in table.names))

    def __call__(self, folder: RunFolder, control: Control) -> dict[str, float]:
        """Metrics of the run's best model if it validated, else of its last.

        Predictions stay in the run folder as ``validation/NUMBER_NAME.ome.zarr``.

        Raises
        ------
        StoppedError
            If a stop is asked for between two tiles.
        """
        shutil.rmtree(folder.path / VALIDATION, ignore_errors=True)  # of an earlier attempt
        outputs = []
        for number, pyramid in enumerate(self.pyramids):
            output = folder.path / VALIDATION / f"{number}_{pyramid.name}.ome.zarr"
            output.parent.mkdir(exist_ok=True)
            for _ in predict_to_zarr(
                pyramid, folder.model_folder(), output, device=self.device,
                precision=cast(Literal["fp32", "bf16"], self.precision), threads=self.threads,
            ):
                control.check()
            outputs.append(output)
        scores = evaluate(
            outputs, list(self.labels), self.table.unlabelled, self.table.background)
        found = {"whole_mdsc": scores.mdsc}
        for name, value in zip(self.table.names, self.table.values, strict=True):
            found[f"whole_dice_{name}"] = scores.dice.get(value, float("nan"))
        return found
