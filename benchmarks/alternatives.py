"""MuViT against what a user would take instead: same images, labels and seconds of training.

    python benchmarks/alternatives.py [--preset cpu|full] [--rows KEY...] [--donors 3]
        [--seconds 600] [--seeds 0] [--output alternatives] [--table] [--tiny]

Layers of the human cortex (`cortex_layers.py`): trained on two donors, tested on whole sections
of the third, by default donor 3; with ``--donors 1 2 3`` each is tested once. Contenders: MuViT
from scratch by the public interface; U-Net, SegFormer and Swin UNETR on tiles, from scratch; a
random forest on a filter bank. A library that is missing is said in the contender's row.

Each has the same seconds of training, for networks as the number of steps that fit by their
measured speed; validation comes on top. Before, six trials of a tenth of the seconds choose tile
and learning rate (or the forest's options) on sections of the training donors that are not
trained on; the same sections choose among the states of the final training. Test sections are
read once, by the final model. Speed and memory are those of processes that do nothing else.
``experiments/measures.py`` says what the measures are. What is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cortex_layers import default_data
from experiments.apart import DONE, peak_memory, run_apart
from experiments.contenders import Budget, Job, do_job, prediction_path
from experiments.experiment import SEARCH_SEED
from experiments.measures import NAMES, Section, intervals, measure_section, pool_seeds
from experiments.networks import NETWORKS, missing_libraries
from experiments.sections import DONORS, UNLABELLED, read_labels, write_fold
from experiments.sets import rows_of
from experiments.table import NOT_RUN, load_result, load_results, place_of, save_result, write_json

PRESETS = {
    "cpu": Budget(),
    "full": Budget(
        seconds=3600.0, step_pixels=1 << 20, val_pixels=1 << 22, preset="base", is_large=True,
        device="cuda", precision="bf16", workers=8),
}
TINY: dict[str, Any] = {
    "seconds": 2.0, "search_share": 0.5, "trials": 1, "step_pixels": 1 << 13,
    "val_pixels": 1 << 13, "validations": 1, "sections": 2, "speed_steps": 2, "preset": "tiny",
}
"""To try the command: everything but the rows."""

RATES = (6e-4, 2e-4, 2e-3)


def tile_choices(*tiles: int) -> tuple[dict[str, Any], ...]:
    """Every tile with every rate."""
    return tuple({"tile": tile, "rate": rate} for tile, rate in product(tiles, RATES))


FOREST_CHOICES = tuple(
    {"min_samples_leaf": leaf, "class_weight": weight}
    for leaf, weight in product((16, 4, 64), (None, "balanced")))


@dataclass(frozen=True)
class Row:
    """A contender, what its search chooses from, and the modules it needs."""

    key: str
    title: str
    choices: tuple[dict[str, Any], ...]
    needs: dict[str, str]


def rows() -> tuple[Row, ...]:
    """The contenders."""
    titles = {"unet": "U-Net", "segformer": "SegFormer", "swin_unetr": "Swin UNETR"}
    networks = (Row(key, title, tile_choices(128, 256), {n: n for n in NETWORKS[key].needs})
                for key, title in titles.items())
    forest = {"sklearn": "scikit-learn", "joblib": "joblib"}
    return (Row("muvit", "MuViT, all levels", tile_choices(64, 128), {}), *networks,
            Row("forest", "random forest on filters", FOREST_CHOICES, forest))


class Comparison:
    """A table's folder and the rows that are measured into it.

    Parameters
    ----------
    folder
        Where trainings and results are kept; one that holds other sizes is refused.
    """

    def __init__(self, folder: Path, data: Path, budget: Budget) -> None:
        self.folder, self.data, self.budget = folder.absolute(), data, budget
        torch.set_num_threads(budget.threads)
        self.folder.mkdir(parents=True, exist_ok=True)
        path, given = self.folder / "settings.json", json.loads(json.dumps(asdict(budget)))
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            other = [key for key in given if found.get(key) != given[key]]
            if other:
                raise SystemExit(
                    f"{self.folder} holds a table with {other[0]} {found.get(other[0])}, not "
                    f"{given[other[0]]}. Take another --output.")
        write_json(path, given)

    def measure(self, row: Row, donor: int, seed: int) -> None:
        """Train without one donor and test on it, unless that was done."""
        key = fold_key(row, donor)
        if load_result(self.folder, key, seed) is not None:
            return
        cohort = write_fold(self.folder / "folds", self.data, donor, self.budget.sections)
        choice, per_step = self.search(row, donor, cohort)
        place = place_of(self.folder, key, seed)
        steps = count_steps(self.budget.seconds, per_step)
        job = Job("train", row.key, str(cohort), str(place), choice, seed, steps,
                  self.budget.seconds, self.budget.validations, self.budget)
        trained = self._run(job, place)
        predicted = self._run(replace(job, verb="predict"), place / "test")
        sections = self._judge(cohort, place, tuple(predicted["values"]))
        values = {
            "row": row.title, "choice": choice, "trained": trained, "predicted": predicted,
            "sections": [section.to_dict() for section in sections],
        }
        save_result(self.folder, key, seed, values, self.budget.device)
        for test in rows_of(cohort, "test"):
            prediction_path(place, test.image).unlink()
        print(f"{row.title}, donor {donor}, seed {seed}: {pool_seeds([sections])}", flush=True)

    def _run(self, job: Job, place: Path) -> dict[str, Any]:
        return run_apart(Path(__file__), asdict(job), place)

    def _judge(self, cohort: Path, place: Path, values: tuple[int, ...]) -> list[Section]:
        return [
            measure_section(
                Path(test.image).stem, str(test.group),
                np.load(prediction_path(place, test.image)), values, read_labels(test),
                UNLABELLED)
            for test in rows_of(cohort, "test")
        ]

    def search(self, row: Row, donor: int, cohort: Path) -> tuple[dict[str, Any], float | None]:
        """The choice with the best mDSC on validation sections, and its seconds per step.

        The forest, which counts no steps, has None. What was tried is not tried again.
        """
        b, place = self.budget, self.folder / "search" / fold_key(row, donor)
        choices = row.choices[:b.trials]
        found: list[tuple[float, dict[str, Any], float | None]] = []
        for number, choice in enumerate(choices):
            seconds = b.seconds * b.search_share
            trial = Job("train", row.key, str(cohort), str(place / f"trial{number}"), choice,
                        SEARCH_SEED, 0, seconds, 1, b)
            per_step = self._speed(trial, place)
            steps = count_steps(seconds, per_step)
            if len(choices) == 1:
                return choice, per_step
            one = self._run(
                replace(trial, steps=steps, validations=min(2, b.validations)), Path(trial.place))
            print(f"{row.title}, {choice}: validation mDSC {one['val']:.3f}", flush=True)
            exact = None if per_step is None else one["seconds"] / one["steps"]
            found.append((one["val"], choice, exact))
        _, choice, per_step = max(found, key=lambda trial: trial[0])
        return choice, per_step

    def _speed(self, trial: Job, place: Path) -> float | None:
        """Seconds of a step with the trial's tile, from a few steps."""
        if "tile" not in trial.choice:
            return None
        place /= f"speed_{trial.choice['tile']}"
        found = self._run(
            replace(trial, steps=self.budget.speed_steps, place=str(place)), place)
        return float(found["seconds"] / found["steps"])


def count_steps(seconds: float, per_step: float | None) -> int:
    """Steps that fit, at least one; 0 where none are counted."""
    return 0 if per_step is None else max(1, round(seconds / per_step))


def fold_key(row: Row, donor: int) -> str:
    """Name of the folders in which a row is tested on a donor."""
    return f"{row.key}_donor{donor}"


TITLES = {"mdsc": "mDSC", "ece": "ECE", "boundary_mean": "boundary distance, px, mean",
          "boundary_95": "95 %"}
MORE = ("boundaries missing", "trained, s", "s per megapixel", "memory to train, MB",
        "to predict, MB", "donors", "seeds")


def table(folder: Path) -> str:
    """Markdown of what is there: pooled over sections and donors, 95 % intervals in brackets."""
    titles = ["contender", *TITLES.values(), *MORE]
    lines, stamps = [titles, ["---"] * len(titles)], dict[str, None]()
    for row in rows():
        results = {donor: load_results(folder, fold_key(row, donor))
                   for donor in range(1, len(DONORS) + 1)}
        results = {donor: found for donor, found in results.items() if found}
        every = [one for found in results.values() for one in found]
        stamps |= dict.fromkeys(f"{one['date']}, {one['hardware']}" for one in every)
        lines.append([row.title, *(cells_of(results) if results else lack_of(row))])
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", *stamps])


def lack_of(row: Row) -> list[str]:
    """The cells of a row without results: not yet run, or what it lacks."""
    missing = missing_libraries(tuple(row.needs))
    packages = " ".join(row.needs[name] for name in missing)
    reason = f"not installed: pip install {packages}" if missing else NOT_RUN
    return [reason, *[""] * (len(NAMES) + len(MORE) - 1)]


def cells_of(results: dict[int, list[dict[str, Any]]]) -> list[str]:
    """The cells of a row, from its results by donor."""
    shared = set.intersection(*({one["seed"] for one in found} for found in results.values()))
    if not shared:
        return [NOT_RUN, *[""] * (len(NAMES) + len(MORE) - 1)]
    kept = [one for found in results.values() for one in found if one["seed"] in shared]
    seeds = [[Section.from_dict(section) for one in kept if one["seed"] == seed
              for section in one["sections"]] for seed in sorted(shared)]
    means, bounds = pool_seeds(seeds), intervals(seeds)
    digits = {"mdsc": 3, "ece": 3, "boundary_mean": 1, "boundary_95": 1}
    cells = [f"{means[name]:.{n}f} [{bounds[name][0]:.{n}f}, {bounds[name][1]:.{n}f}]"
             for name, n in digits.items()]
    return [
        *cells, f"{100 * means['missing']:.0f} %",
        *(_mean(kept, part, name, digits) for part, name, digits in (
            ("trained", "seconds", 0), ("predicted", "seconds_per_mp", 2))),
        *(_memory(kept, part) for part in ("trained", "predicted")),
        " ".join(map(str, sorted(results))), str(len(shared)),
    ]


def _mean(results: Sequence[dict[str, Any]], part: str, name: str, digits: int) -> str:
    return f"{np.mean([one[part][name] for one in results]):.{digits}f}"


def _memory(results: Sequence[dict[str, Any]], part: str) -> str:
    """The largest of all results; what a GPU holds beside it."""
    host = max(one[part]["memory"] for one in results)
    gpu = [one[part]["gpu_memory"] for one in results if one[part].get("gpu_memory")]
    return f"{host:.0f}" + (f" + {max(gpu):.0f} of the GPU" if gpu else "")


def work(path: Path) -> None:
    """Do the job in a file, and write what came out beside it."""
    job = Job.from_dict(json.loads(path.read_text(encoding="utf-8")))
    write_json(path.parent / DONE, {**do_job(job), **peak_memory()})


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    keys = [row.key for row in rows()]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=tuple(PRESETS), default="cpu")
    parser.add_argument("--data", type=Path, default=default_data())
    parser.add_argument("--rows", nargs="+", choices=keys, default=keys)
    parser.add_argument("--donors", type=int, nargs="+", choices=range(1, len(DONORS) + 1),
                        default=[3], help="the donors that are tested, one after the other")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--seconds", type=float, help="of training, for each contender")
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output", type=Path, default=Path("alternatives"))
    parser.add_argument("--table", action="store_true", help="only write what is there")
    parser.add_argument("--tiny", action="store_true", help="a few steps, to try the command")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def budget_of(given: argparse.Namespace) -> Budget:
    """The preset with what the command line changes."""
    budget = replace(PRESETS[given.preset], **(TINY if given.tiny else {}))
    changes = {name: getattr(given, name) for name in ("seconds", "device", "threads")
               if getattr(given, name) is not None}
    return replace(budget, **changes)


def main(argv: list[str] | None = None) -> str:
    """Measure what is asked for and missing; write and return the table."""
    given = parse(argv)
    if given.job:
        work(given.job)
        return ""
    if not given.table:
        comparison = Comparison(given.output, given.data, budget_of(given))
        ready = [row for row in rows() if not missing_libraries(tuple(row.needs))]
        for seed, donor, row in product(given.seeds, given.donors, ready):
            if row.key in given.rows:
                comparison.measure(row, donor, seed)
    text = table(given.output)
    if given.output.is_dir():
        (given.output / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    return text


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that its job ends with it
    main()
