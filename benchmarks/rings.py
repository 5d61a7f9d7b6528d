"""Are the rings decidable from the wide view, and only from it? And with which boxes?

    python benchmarks/rings.py [--size 512] [--images 200] [--steps 1600] [--only NAME...]
        [--device auto] [--output rings.json]

Four models of the preset tiny (or --preset) learn the same number of samples each:

    fine    the finest crop alone: has to stay near chance
    wide    the coarse crop alone, judged at its own resolution: decidable?
    both    both crops with true boxes, supervised at both levels
    naive   both crops with the same concentric boxes everywhere

Sizes scale together: 2048 px with --crop 256 is the paper's own set, 512 px with crops of 64 the
same task for one CPU core. Scores are Dice of the cells of unseen images, pooled over crops.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from napari_muvit.config import FinetuneConfig
from napari_muvit.data.dataset import PyramidDataset, make_loader
from napari_muvit.data.drawn_sets import split_seed
from napari_muvit.data.pyramid import Pyramid, pyramid_from_arrays
from napari_muvit.data.rings import CLASSES, rings_image
from napari_muvit.models.factory import build_segmenter
from napari_muvit.models.level_supervision import LevelSupervision

WAYS: dict[str, tuple[int, ...]] = {"fine": (1,), "wide": (4,), "both": (1, 4), "naive": (1, 4)}


def make_images(split: str, count: int, size: int) -> tuple[list[Pyramid], list[Pyramid]]:
    """Images and labels in memory, with the array of level 4."""
    images, labels = [], []
    for number in range(count):
        image, truth = rings_image(split_seed(0, split, number), size)
        coarse = image.reshape(size // 4, 4, size // 4, 4).mean((1, 3)).round().astype(np.uint8)
        images.append(pyramid_from_arrays([image, coarse], axes="yx", is_rgb=False))
        labels.append(pyramid_from_arrays([truth, truth[2::4, 2::4]], axes="yx", is_labels=True))
    return images, labels


def learn(way: str, sets: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Train one model and score it as it goes."""
    torch.manual_seed(args.seed)
    levels = WAYS[way]
    config = FinetuneConfig(
        images=("memory",), labels=("memory",), output="none", levels=levels, crop_size=args.crop,
        preset=args.preset, tissue="none", normalization="constant", seed=args.seed,
        attention_mode="all",
    )
    dataset = PyramidDataset(*sets["train"], config=config, class_table=CLASSES)
    judged = PyramidDataset(*sets["test"], config=config, class_table=CLASSES, split="val")
    model = build_segmenter(config, 1, 2, len(CLASSES)).to(args.device)
    coarse = LevelSupervision(model.encoder.dim, len(levels), len(CLASSES)).to(args.device)
    weights = [*model.parameters(), *coarse.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=args.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.rate, total_steps=args.steps)
    loader = make_loader(dataset, args.batch, args.workers, stop=args.steps * args.batch)
    rows, began = [], time.perf_counter()
    for step, batch in enumerate(loader, 1):
        batch = {key: value.to(args.device) for key, value in batch.items()}
        boxes = None if way == "naive" else batch["bbox"]
        logits, tokens = model.forward_with_tokens(batch["img"], boxes)
        loss = functional.cross_entropy(logits, batch["target"], ignore_index=-1)
        if len(levels) > 1:
            loss = loss + coarse.loss(tokens, batch["fractions"], batch["fraction_valid"])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 0.5)
        optimizer.step()
        schedule.step()
        if step % max(1, args.steps // 8) == 0:
            scores = score(model, judged, way, args)
            rows.append({"samples": step * args.batch, "loss": round(loss.item(), 4), **scores})
            print(f"{way:6s} {rows[-1]} {time.perf_counter() - began:.0f} s", flush=True)
    return {"way": way, "levels": levels, "rows": rows}


@torch.no_grad()
def score(
    model: torch.nn.Module, dataset: PyramidDataset, way: str, args: argparse.Namespace
) -> dict[str, float]:
    """Dice of both kinds of cell over 256 crops of unseen images."""
    model.eval()
    counts = np.zeros((3, 3), dtype=np.int64)
    for batch in make_loader(dataset, args.batch, stop=256):
        boxes = None if way == "naive" else batch["bbox"].to(args.device)
        found = model(batch["img"].to(args.device), boxes).argmax(1).cpu().numpy()
        truth = batch["target"].numpy()
        for pair in np.ndindex(3, 3):
            counts[pair] += np.count_nonzero((truth == pair[0]) & (found == pair[1]))
    model.train()
    dice = 2 * counts.diagonal() / np.maximum(counts.sum(0) + counts.sum(1), 1)
    return {"outer": round(float(dice[1]), 3), "inner": round(float(dice[2]), 3),
            "mdsc": round(float(dice[1:].mean()), 3)}


def main() -> None:
    """Run the ways that are asked for and print one line for each eighth of the training."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("size", 512), ("crop", 64), ("images", 200), ("steps", 1600),
                          ("batch", 24), ("workers", 0), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rate", type=float, default=6e-4)
    parser.add_argument("--preset", default="tiny", choices=("tiny", "small", "base"))
    parser.add_argument("--only", nargs="+", choices=tuple(WAYS), default=tuple(WAYS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, default=None)
    args = parser.parse_args()
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    sets = {split: make_images(split, count, args.size)
            for split, count in (("train", args.images), ("test", 20))}
    results = [learn(way, sets, args) for way in args.only]
    if args.output is not None:
        args.output.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
