"""Rows of a table: each is trained, tuned on validation images alone, and tested once.

For every row the highest learning rate is searched with trainings of a share of the steps,
judged on crops of the validation images; test images are read only by the final model of each
row and seed. Trainings of the search have a seed that no row of the table has.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from experiments.baselines import BASELINES
from experiments.muvit_runs import curve_of, finish_run, score_run, scores_of, seconds_of
from experiments.plain_loop import PlainTraining
from experiments.sets import make_set, rows_of, unlabelled_of
from experiments.table import (
    Column,
    load_result,
    markdown,
    place_of,
    save_result,
    write_json,
)
from napari_muvit import api
from napari_muvit.config import FinetuneConfig

SEARCH_SEED = 1000
SHARED = {"rope_frequencies", "rotary_mode", "token_coordinates", "attention_mode"}
"""Options of fine-tuning that its pretraining must have too."""
SHARES = (10, 25, 50, 75, 100)
"""Per cent of the samples at which validation scores are kept."""


@dataclass(frozen=True)
class Row:
    """One contender.

    Attributes
    ----------
    key, title
        Names of its folders, and in the table.
    levels
        What it reads.
    network
        ``muvit``, or a name in `baselines.BASELINES`.
    is_naive
        Whether it is given concentric boxes.
    options
        Options of its fine-tuning that differ from the common ones.
    pretraining
        Share of the steps that its own pretraining takes before, 0 for none.
    coarse_first
        Share of the steps, of those it has, in which coarser levels alone are supervised.
    before
        Options of its pretraining that differ from the common ones.
    """

    key: str
    title: str
    levels: tuple[int, ...]
    network: str = "muvit"
    is_naive: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    pretraining: float = 0.0
    coarse_first: float = 0.0
    before: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """Sizes of an experiment, the same for all rows."""

    task: str = "rings"
    size: int = 512
    counts: tuple[int, int, int] = (200, 20, 20)
    set_levels: tuple[int, ...] = (1, 4)
    crop_size: int = 64
    preset: str = "tiny"
    batch_size: int = 24
    steps: int = 600
    validations: int = 12
    val_samples: int = 96
    rates: tuple[float, ...] = (3e-4, 6e-4, 1.2e-3)
    search_share: float = 0.25
    device: str = "cpu"
    precision: str = "fp32"
    threads: int = 1
    workers: int = 0

    def cohort(self, folder: Path) -> Path:
        """The set of the task under `folder`, made where it is not there."""
        counts = dict(zip(("train", "val", "test"), self.counts, strict=True))
        place = folder / f"{self.task}_{self.size}"
        return make_set(self.task, place, counts, self.size, self.set_levels)

    def options(
        self, cohort: Path, levels: Sequence[int], seed: int, rate: float, steps: int,
        output: Path, validations: int | None = None,
    ) -> dict[str, Any]:
        """Options of one run, of pretraining and fine-tuning alike."""
        every = max(1, steps // (validations or self.validations))
        return {
            "images": [str(cohort)], "levels": tuple(levels), "crop_size": self.crop_size,
            "preset": self.preset, "tissue": "none", "normalization": "constant",
            "steps": steps, "batch_size": self.batch_size, "learning_rate": rate, "seed": seed,
            "validate_every": every, "val_samples": self.val_samples,
            "checkpoint_every": every, "preview_every": steps, "device": self.device,
            "precision": self.precision, "threads": self.threads, "workers": self.workers,
            "attention_mode": "all",  # the paper's; what another does, rows of their own show
            "output": str(output),
        }


class Experiment:
    """A table's folder and the rows that are measured into it.

    Parameters
    ----------
    folder
        Where sets, trainings and results are kept.
    settings
        Sizes; a folder that holds others is refused.

    Attributes
    ----------
    judged_by
        What ``val`` of a training is, in words; losses are negated there, so that more is better.
    """

    judged_by = "mDSC"

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self.settings = folder.absolute(), settings
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check_settings()
        self.cohort = settings.cohort(self.folder / "sets")
        torch.set_num_threads(settings.threads)

    def _check_settings(self) -> None:
        """One folder, one experiment: results of other sizes must not meet in a table."""
        path, given = self.folder / "settings.json", json.loads(json.dumps(vars(self.settings)))
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            free = {"device", "threads", "workers"}
            other = [key for key in given if key not in free and found.get(key) != given[key]]
            if other:
                raise SystemExit(
                    f"{self.folder} holds a table with {other[0]} {found.get(other[0])}, not "
                    f"{given[other[0]]}. Take another --output.")
        write_json(path, given)

    def measure(self, row: Row, seed: int) -> dict[str, Any]:
        """Train and test one row with one seed, unless that was done."""
        done = load_result(self.folder, row.key, seed)
        if done is not None:
            return done
        rate = self.search(row)
        place, began = place_of(self.folder, row.key, seed), time.time()
        found = self._train(row, seed, rate, self.settings.steps, place, is_tested=True)
        values = {**found, **share_scores(found["curve"], self.settings.steps), "rate": rate,
                  "row": row.title, "samples": self.settings.steps * self.settings.batch_size}
        result = save_result(self.folder, row.key, seed, values, self.settings.device)
        print(f"{row.title}, seed {seed}: {result['scores']}, {time.time() - began:.0f} s",
              flush=True)
        return result

    def search(self, row: Row) -> float:
        """The learning rate that validates best; kept once it is found."""
        path = self.folder / "search" / row.key / "rates.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        steps = max(1, round(self.settings.steps * self.settings.search_share))
        for rate in self.settings.rates if len(self.settings.rates) > 1 else ():
            if str(rate) in found:
                continue
            place = path.parent / f"rate_{rate:g}"
            found[str(rate)] = self._train(row, SEARCH_SEED, rate, steps, place)["val"]
            write_json(path, found)
            print(f"{row.title}, rate {rate:g}: validation {self.judged_by} "
                  f"{abs(found[str(rate)]):.4g}", flush=True)
        return max(self.settings.rates, key=lambda rate: found.get(str(rate), -1.0))

    def _train(
        self, row: Row, seed: int, rate: float, steps: int, place: Path, is_tested: bool = False,
    ) -> dict[str, Any]:
        if row.network == "muvit":
            return self._train_muvit(row, seed, rate, steps, place, is_tested)
        return self._train_baseline(row, seed, rate, steps, place, is_tested)

    def _train_muvit(
        self, row: Row, seed: int, rate: float, steps: int, place: Path, is_tested: bool,
    ) -> dict[str, Any]:
        s = self.settings
        options = {**s.options(self.cohort, row.levels, seed, rate, steps, place / "run"),
                   **self._labelling, **row.options}
        before, seconds = self._before(row, seed, rate, steps, place)
        if before is not None:
            options |= {"pretrained": str(before), "encoder_rate": 1.0}
            options["steps"] = steps - round(steps * row.coarse_first)
        run = finish_run(api.finetune, options, row.is_naive)
        curve = curve_of(run)
        found: dict[str, Any] = {
            "val": max(value for _, value in curve), "seconds": seconds_of(run) + seconds,
            "curve": [(step + steps - options["steps"], value) for step, value in curve],
        }
        if is_tested:
            rows = rows_of(self.cohort, "test")
            found["scores"] = score_run(
                run, rows, s.device, s.threads, row.is_naive, unlabelled_of(s.task))
            found |= found["scores"]
        return found

    @property
    def _labelling(self) -> dict[str, Any]:
        """Options of fine-tuning that say how the task's labels are meant."""
        value = unlabelled_of(self.settings.task)
        return {} if value is None else {"unlabelled": value}

    def _before(
        self, row: Row, seed: int, rate: float, steps: int, place: Path
    ) -> tuple[Path | None, float]:
        """What fine-tuning starts from, and the seconds that took: see `Row`."""
        runs, s = [], self.settings
        if row.pretraining:
            count = max(1, round(steps * row.pretraining))
            options = s.options(
                self.cohort, row.levels, seed, rate, count, place / "pretrained", validations=1)
            shared = {key: value for key, value in row.options.items()
                      if key in SHARED}
            runs.append(finish_run(api.pretrain, {**options, **shared, **row.before}, row.is_naive))
        if row.coarse_first:
            count = max(1, round(steps * row.coarse_first))
            options = s.options(
                self.cohort, row.levels, seed, rate, count, place / "coarse", validations=1)
            options |= {**self._labelling, **row.options}
            options |= {"level_supervision": 1.0, "ce_weight": 0.0, "dice_weight": 0.0}
            if runs:
                options |= {"pretrained": str(runs[-1]), "encoder_rate": 1.0}
            runs.append(finish_run(api.finetune, options, row.is_naive))
        return (runs[-1] if runs else None), sum(map(seconds_of, runs))

    def _train_baseline(
        self, row: Row, seed: int, rate: float, steps: int, place: Path, is_tested: bool,
    ) -> dict[str, Any]:
        s = self.settings
        options = s.options(self.cohort, row.levels, seed, rate, steps, place / "run")
        config = FinetuneConfig(**{**options, **row.options})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = BASELINES[row.network](1, 3)
        training = PlainTraining(model, config, place / "run")
        training.run()
        found: dict[str, Any] = {
            "val": training.progress.best, "seconds": training.progress.seconds,
            "curve": training.progress.curve,
        }
        if is_tested:
            rows = rows_of(self.cohort, "test")
            found["scores"] = scores_of([training.predict(test) for test in rows], rows)
            found |= found["scores"]
        return found


def curve_table(folder: Path, rows: Sequence[Row]) -> str:
    """Markdown of how validation went on, and of the test at the end."""
    columns = [Column(f"val_{share}", f"{share} %") for share in SHARES]
    columns += [Column("mdsc", "test mDSC"), Column("samples", "samples", 0)]
    named = [(row.key, row.title) for row in rows]
    return markdown(folder, named, columns, "validation mDSC after")


def share_scores(curve: Sequence[tuple[int, float]], steps: int) -> dict[str, float]:
    """Validation mDSC near each of `SHARES` of the steps, as ``val_25``.

    Left out where the nearest validation is more than half of the usual distance away, as it is
    before the finest level is supervised.
    """
    found = {}
    ends = [step for step, _ in curve]
    near = median([b - a for a, b in pairwise(ends)] or [steps]) / 2
    for share in SHARES:
        wanted = steps * share / 100
        step, value = min(curve, key=lambda point: abs(point[0] - wanted))
        if abs(step - wanted) <= near:
            found[f"val_{share}"] = value
    return found
