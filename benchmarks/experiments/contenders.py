"""Contenders of ``alternatives.py``: how each is trained for some seconds, and predicts a section.

All run in processes of their own, told by a `Job` what to do. Networks and MuViT see the same
loss, augmentations and schedule (`plain_loop`), and as many labelled pixels in every step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from experiments.forest import classify, train_forest, validation_score
from experiments.muvit_runs import curve_of, finish_run, seconds_of
from experiments.networks import NETWORKS, Autocast
from experiments.plain_loop import PlainTraining, predict_tiles
from experiments.sections import UNLABELLED, read_scaled
from experiments.sets import rows_of
from napari_muvit import api
from napari_muvit.config import FinetuneConfig
from napari_muvit.models.checkpoint import load_model
from napari_muvit.training.folder import find_model

OVERLAP = 0.25
WEIGHTS, FOREST = "weights.pt", "forest.joblib"


@dataclass(frozen=True)
class Budget:
    """Sizes of a comparison, the same for all contenders.

    Attributes
    ----------
    seconds
        Of training; validation, which all have, comes on top.
    search_share
        Share of the seconds that each trial of the search has.
    trials
        How many of a contender's choices are tried, from the first on; with one there is no
        search.
    step_pixels, val_pixels
        Labelled pixels of a training step, and of a validation: number of crops by their area.
    sections
        Sections of each donor that are used.
    speed_steps
        Steps by which the speed of a network is measured before its first trial.
    """

    seconds: float = 600.0
    search_share: float = 0.1
    trials: int = 6
    step_pixels: int = 1 << 15
    val_pixels: int = 1 << 20
    validations: int = 10
    sections: int = 4
    speed_steps: int = 5
    levels: tuple[int, ...] = (1, 2, 8)
    preset: str = "tiny"
    is_large: bool = False
    device: str = "cpu"
    precision: str = "fp32"
    threads: int = 1
    workers: int = 0


@dataclass(frozen=True)
class Job:
    """What one process has to do.

    Attributes
    ----------
    verb
        ``train``, or ``predict`` with what was trained in `place`.
    choice
        What the search chooses: tile and rate, or options of the forest.
    steps, seconds
        How long: networks take steps, the forest seconds.
    """

    verb: str
    contender: str
    cohort: str
    place: str
    choice: dict[str, Any]
    seed: int
    steps: int
    seconds: float
    validations: int
    budget: Budget = field(default_factory=Budget)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Job:
        """The job that was written as JSON."""
        budget = {**data["budget"], "levels": tuple(data["budget"]["levels"])}
        return cls(**{**data, "budget": Budget(**budget)})

    def options(self, levels: tuple[int, ...]) -> dict[str, Any]:
        """Options of fine-tuning."""
        b, tile = self.budget, self.choice["tile"]
        every = max(1, self.steps // self.validations)
        return {
            "images": [self.cohort], "unlabelled": UNLABELLED, "levels": levels,
            "crop_size": tile, "preset": b.preset, "learning_rate": self.choice["rate"],
            "batch_size": max(1, b.step_pixels // tile**2), "steps": self.steps,
            "seed": self.seed, "validate_every": every, "checkpoint_every": every,
            "preview_every": self.steps, "val_samples": max(1, b.val_pixels // tile**2),
            "device": b.device, "precision": b.precision, "threads": b.threads,
            "workers": b.workers, "output": str(Path(self.place) / "run"),
        }


Predict = Callable[[str], NDArray[np.float32]]


class Contender(Protocol):
    """One that can be trained and then predicts the image at a path as (K, H, W)."""

    def train(self, job: Job) -> dict[str, Any]:
        """Train; ``val`` (mDSC), ``seconds``, and how much of what was done."""
        ...

    def load(self, job: Job) -> tuple[tuple[int, ...], Predict]:
        """Label values of the K classes, and the function that predicts."""
        ...


class Muvit:
    """A run of the public interface with its defaults, from scratch."""

    def train(self, job: Job) -> dict[str, Any]:
        run = finish_run(api.finetune, job.options(job.budget.levels))
        return {"val": max(value for _, value in curve_of(run)), "seconds": seconds_of(run),
                "steps": job.steps, "parameters": _count(load_model(find_model(run)))}

    def load(self, job: Job) -> tuple[tuple[int, ...], Predict]:
        b, model = job.budget, api.load_model(Path(job.place) / "run", job.budget.device)
        meta: Any = model.meta

        def predict(source: str) -> NDArray[np.float32]:
            lazy = api.predict(
                source, model, overlap=OVERLAP, probabilities=True, tissue="none",
                device=b.device, precision=b.precision, threads=b.threads)
            return np.asarray(lazy.compute(scheduler="synchronous"), np.float32)

        return tuple(api.ClassTable.from_dict(meta.classes).values), predict


class PlainNetwork:
    """A network without levels, on tiles."""

    def __init__(self, name: str) -> None:
        self.network = NETWORKS[name]

    def _build(self, budget: Budget, num_classes: int, seed: int) -> nn.Module:
        options = self.network.large if budget.is_large else self.network.small
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.network.build(3, num_classes, **options)
        is_mixed = budget.precision == "bf16"
        return Autocast(model, budget.device) if is_mixed else model

    def train(self, job: Job) -> dict[str, Any]:
        config, place = FinetuneConfig(**job.options((1,))), Path(job.place)
        values = _values_of(job)
        model = self._build(job.budget, len(values), job.seed)
        training = PlainTraining(model, config, place / "run")
        training.run()
        torch.save(model.state_dict(), place / WEIGHTS)
        progress = training.progress
        return {"val": progress.best, "seconds": progress.seconds, "steps": job.steps,
                "parameters": _count(model)}

    def load(self, job: Job) -> tuple[tuple[int, ...], Predict]:
        values, device = _values_of(job), job.budget.device
        model = self._build(job.budget, len(values), job.seed)
        state = torch.load(Path(job.place) / WEIGHTS, weights_only=True, map_location="cpu")
        model.load_state_dict(state)
        model.to(device).eval()

        def predict(source: str) -> NDArray[np.float32]:
            image = torch.from_numpy(read_scaled(source)).to(device)
            total = predict_tiles(model, image, job.choice["tile"], OVERLAP, len(values))
            return (total / total.sum(0)).cpu().numpy()

        return values, predict


class Forest:
    """Filters and a random forest; what is chosen are options of scikit-learn's."""

    def train(self, job: Job) -> dict[str, Any]:
        import joblib

        forest, seconds = train_forest(
            rows_of(Path(job.cohort), "train"), UNLABELLED, job.choice, job.seconds, job.seed,
            job.budget.threads)
        joblib.dump(forest, Path(job.place) / FOREST)
        value = validation_score(forest, rows_of(Path(job.cohort), "val"), UNLABELLED)
        return {"val": value, "seconds": seconds, "steps": forest.n_estimators}

    def load(self, job: Job) -> tuple[tuple[int, ...], Predict]:
        import joblib

        # Its own file of the same table; scikit-learn has no other format.
        forest = joblib.load(Path(job.place) / FOREST)

        def predict(source: str) -> NDArray[np.float32]:
            return classify(forest, read_scaled(source))

        return tuple(int(value) for value in forest.classes_), predict


def _values_of(job: Job) -> tuple[int, ...]:
    """Label values of the classes that the training sections have."""
    from napari_muvit.training.images import open_images

    table = open_images(FinetuneConfig(**job.options((1,)))).training.class_table
    assert table is not None
    return tuple(table.values)


def _count(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def contender(name: str) -> Contender:
    """The contender of a row."""
    if name == "muvit":
        return Muvit()
    return Forest() if name == "forest" else PlainNetwork(name)


def do_job(job: Job) -> dict[str, Any]:
    """What was measured; predictions are files beside the job, see `prediction_path`."""
    torch.set_num_threads(job.budget.threads)
    if job.verb == "train":
        return contender(job.contender).train(job)
    values, predict = contender(job.contender).load(job)
    seconds = []
    for row in rows_of(Path(job.cohort), "test"):
        began = time.perf_counter()
        found = predict(row.image)
        seconds.append((time.perf_counter() - began) / (found[0].size / 1e6))
        np.save(prediction_path(job.place, row.image), found)
    return {"values": list(values), "seconds_per_mp": statistics.median(seconds)}


def prediction_path(place: str | Path, image: str) -> Path:
    """Where the probabilities (K, H, W) of an image lie until they are judged."""
    return Path(place) / f"{Path(image).stem}.npy"
