"""How exact must boxes be? Dice against Gaussian noise on the boxes (MuViT, Figure S3).

    python benchmarks/robustness.py --run synthetic/muvit_seed0/run \\
        --cohort synthetic/sets/rings_512/rings.csv [--sigmas 0 1 2 ...] [--crops 256]

Each level's box of every test crop is moved along each axis by noise of standard deviation
sigma, in pixels of full resolution; the pixels stay. The model was trained with exact boxes.
Dice of all crops together; mean and spread over repetitions of the noise.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments.sets import rows_of

from napari_muvit import api
from napari_muvit.data.dataset import PyramidDataset, make_loader
from napari_muvit.data.labels import ClassTable

SIGMAS = (0, 1, 2, 4, 8, 16, 32, 64, 128)


def crops_of(cohort: Path, model: Any, config: Any, count: int) -> list[dict[str, Any]]:
    """Batches of random nested crops of the test images, the same in every call."""
    rows = rows_of(cohort, "test")
    table = ClassTable.from_dict(model.meta.classes)
    dataset = PyramidDataset(
        [api.open_pyramid(row.image) for row in rows],
        [api.open_pyramid(row.labels).as_labels() for row in rows],
        config=config, class_table=table, augment=False, stream=2, length=count, fractions=False)
    return list(make_loader(dataset, 16, stop=count))


@torch.no_grad()
def score(
    model: torch.nn.Module, batches: list[dict[str, Any]], sigma: float, seed: int, device: str
) -> float:
    """Pooled mDSC, class 0 being background, with moved boxes."""
    generator = torch.Generator().manual_seed(seed)
    counts: np.ndarray = np.zeros(1)
    for batch in batches:
        boxes = batch["bbox"]
        noise = torch.randn(
            (*boxes.shape[:2], 1, boxes.shape[-1]), generator=generator, dtype=boxes.dtype)
        logits = model(batch["img"].to(device), (boxes + sigma * noise).to(device))
        classes = logits.shape[1]
        pairs = batch["target"] * classes + logits.argmax(1).cpu()
        counts = counts + np.bincount(
            pairs[batch["target"] >= 0].numpy(), minlength=classes**2).reshape(classes, classes)
    dice = 2 * counts.diagonal() / np.maximum(counts.sum(0) + counts.sum(1), 1)
    return float(dice[1:].mean())


def table(found: dict[float, list[float]]) -> str:
    """Markdown: one column for each sigma."""
    cells = []
    for values in found.values():
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.3f}{spread}")
    heads = [f"{sigma:g}" for sigma in found]
    lines = [["sigma, px", *heads], ["---"] * (len(heads) + 1), ["mDSC", *cells]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv: list[str] | None = None) -> str:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--cohort", type=Path, required=True)
    parser.add_argument("--sigmas", type=float, nargs="+", default=SIGMAS)
    parser.add_argument("--crops", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="also write all numbers here")
    given = parser.parse_args(argv)
    model = api.load_model(given.run, device=given.device).eval()
    batches = crops_of(given.cohort, model, api.RunFolder(given.run).config(), given.crops)
    found = {}
    for sigma in given.sigmas:
        repeats = given.repeats if sigma else 1
        found[sigma] = [score(model, batches, sigma, seed, given.device) for seed in range(repeats)]
    if given.json:
        given.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    text = table(found)
    print(text)
    return text


if __name__ == "__main__":
    main()
