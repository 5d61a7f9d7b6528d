"""What pretraining, several levels and true boxes are worth on sections of human cortex.

``python benchmarks/cortex_layers.py``. Layers of the human cortex (spatialLIBD sections 151507
to 151676, three donors): trained on two donors, tested on the third by predicting whole
sections. Every contender gets the same number of fine-tuning steps; the table has mean and
standard deviation over seeds of the pooled mDSC. Runs that are there already are not repeated,
so an interrupted table can be gone on with.
Options: ``--help``.
"""

from __future__ import annotations

import argparse
import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.muvit_runs import finish_run
from experiments.naive import naive_boxes

from napari_muvit import api

DONORS = (
    ("151507", "151508", "151509", "151510"), ("151669", "151670", "151671", "151672"),
    ("151673", "151674", "151675", "151676"),
)
TRAINING = (*DONORS[0], *DONORS[1])
TEST = DONORS[2]
UNLABELLED = 0


@dataclass(frozen=True)
class Contender:
    """One row of the table."""

    name: str
    levels: tuple[int, ...]
    is_pretrained: bool = False
    is_naive: bool = False


def contenders(levels: tuple[int, ...]) -> tuple[Contender, ...]:
    """The rows of the table for the given levels."""
    return (
        Contender("all levels, pretrained", levels, is_pretrained=True),
        Contender("all levels, from scratch", levels),
        Contender("finest level only, from scratch", levels[:1]),
        Contender("all levels, from scratch, naive boxes", levels, is_naive=True),
    )


def score(run: Path, folder: Path, device: str) -> float:
    """Pooled mDSC of whole test sections."""
    outputs = []
    for section in TEST:
        output = run / "test" / f"{section}.ome.zarr"
        for _ in api.predict_to_zarr(
            str(folder / "images" / f"{section}.png"), str(run), output, device=device,
        ):
            pass
        outputs.append(str(output))
    truths = [str(folder / "labels" / f"{section}.png") for section in TEST]
    return float(api.evaluate(outputs, truths, UNLABELLED).mdsc)


def sources(folder: Path, kind: str) -> list[str]:
    return [str(folder / kind / f"{section}.png") for section in TRAINING]


def measure(row: Contender, seed: int, given: argparse.Namespace) -> float:
    """Train one contender with one seed and score it."""
    folder: Path = given.data
    place = given.output / f"{row.name.replace(',', '').replace(' ', '_')}_{seed}"
    common = {
        "images": sources(folder, "images"), "levels": row.levels, "crop_size": given.crop_size,
        "preset": given.preset, "batch_size": given.batch_size, "device": given.device,
        "seed": seed, "attention_mode": "all",
    }
    finetune: dict[str, Any] = {
        **common, "labels": sources(folder, "labels"), "unlabelled": UNLABELLED,
        "steps": given.steps, "learning_rate": given.learning_rate, "output": str(place),
    }
    if row.is_pretrained:
        pretrained = finish_run(api.pretrain, {
            **common, "steps": given.pretrain_steps, "learning_rate": given.learning_rate,
            "output": str(given.output / f"pretrained_{seed}"),
        })
        finetune |= {"pretrained": str(pretrained), "encoder_rate": given.encoder_rate}
    with naive_boxes(row.is_naive):
        return score(finish_run(api.finetune, finetune), folder, given.device)


def table(given: argparse.Namespace) -> str:
    """The table as Markdown."""
    lines = ["| trained with | mDSC | seeds |", "| --- | --- | --- |"]
    for row in contenders(tuple(given.levels)):
        found = [measure(row, seed, given) for seed in range(given.seeds)]
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        each = ", ".join(f"{value:.3f}" for value in found)
        lines.append(f"| {row.name} | {statistics.mean(found):.3f} +- {spread:.3f} | {each} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def default_data() -> Path:
    """Where the sections are: below MUVIT_TEST_DATA, else beside the working copy."""
    here = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("MUVIT_TEST_DATA", here)) / "segmentation" / "human_cortex_layers"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=default_data())
    parser.add_argument("--output", type=Path, default=Path("cortex_layers"))
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--crop-size", type=int, default=64)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--pretrain-steps", type=int, default=1000)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--encoder-rate", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


if __name__ == "__main__":
    print(table(parse()))
