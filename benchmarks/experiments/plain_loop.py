"""The one loop that trains every baseline: the samples, loss, optimizer and schedule of ours.

What a MuViT run of the same options would see, a baseline sees too: the same random crops (of
its one level), augmentations, number of samples, validation crops and choice of the best model.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from napari_muvit.config import FinetuneConfig
from napari_muvit.data.cohort import CohortRow
from napari_muvit.data.dataset import PyramidDataset, make_loader
from napari_muvit.data.normalize import NormalizationRule, measure
from napari_muvit.data.pyramid import open_pyramid
from napari_muvit.training.images import open_images
from napari_muvit.training.losses import (
    IGNORE,
    cross_entropy_sum,
    dice_sum,
    judged_weight,
    present_classes,
)
from napari_muvit.training.schedule import rate_at

STATE = "state.pt"


@dataclass
class _Progress:
    step: int = 0
    seconds: float = 0.0
    best: float = -1.0
    curve: list[tuple[int, float]] = field(default_factory=list)


class PlainTraining:
    """One training of a baseline in a folder; it goes on from its last validation.

    Parameters
    ----------
    model
        Images (B, C, H, W) to logits.
    config
        The options of the same run of ours, with one level.
    folder
        Where its state is kept.
    """

    def __init__(self, model: nn.Module, config: FinetuneConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.device = config.device
        self.model = model.to(self.device)
        self.images = open_images(config)
        table = self.images.training.class_table
        outside = None if table is None else table.background
        self.background = None if table is None or outside is None else table.values.index(outside)
        self.num_classes = self.images.training.num_classes
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate or 1e-3, weight_decay=config.weight_decay)
        self.progress = _Progress()
        self.best = {name: value.clone() for name, value in model.state_dict().items()}

    def run(self) -> None:
        """Train to the last step, then take the weights of the best validation."""
        self._load()
        config, progress = self.config, self.progress
        loader = make_loader(
            self.images.training, config.batch_size, config.workers,
            start=progress.step * config.batch_size, stop=config.steps * config.batch_size)
        began = time.perf_counter()
        for batch in loader if progress.step < config.steps else ():
            self._step(batch)
            progress.step += 1
            if progress.step % config.validate_every == 0 or progress.step == config.steps:
                progress.seconds += time.perf_counter() - began
                self._validate()
                began = time.perf_counter()
        self.model.load_state_dict(self.best)

    def _step(self, batch: dict[str, Any]) -> None:
        config = self.config
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(
                self.progress.step, config.steps, config.learning_rate or 1e-3, config.warmup)
        self.optimizer.zero_grad()
        self._loss(batch).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        self.optimizer.step()

    def _loss(self, batch: dict[str, Any]) -> Tensor:
        image, target = batch["img"][:, 0].to(self.device), batch["target"].to(self.device)
        logits = self.model(image)
        present = present_classes(target, self.num_classes, self.background)
        cross = cross_entropy_sum(logits, target) / judged_weight(target).clamp(min=1)
        dice = dice_sum(logits, target, present) / present.sum().clamp(min=1)
        total: Tensor = self.config.ce_weight * cross + self.config.dice_weight * dice
        return total

    def _validate(self) -> None:
        """Pooled mDSC over the validation crops; keeps the best weights, writes the state."""
        value = self.validation_score(self.images.validation)
        self.progress.curve.append((self.progress.step, value))
        if value > self.progress.best:
            self.progress.best = value
            self.best = {name: v.clone() for name, v in self.model.state_dict().items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = self.folder / f".{STATE}.new"
        torch.save({"model": self.model.state_dict(), "best": self.best,
                    "optimizer": self.optimizer.state_dict(), "progress": vars(self.progress)},
                   beside)
        beside.replace(self.folder / STATE)

    def _load(self) -> None:
        path = self.folder / STATE
        if not path.is_file():
            return
        state = torch.load(path, weights_only=True, map_location=self.device)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = state["best"]
        self.progress = _Progress(**state["progress"])

    @torch.no_grad()
    def validation_score(self, crops: PyramidDataset | None) -> float:
        """Pooled mDSC over the crops of `crops`."""
        if crops is None:
            return 0.0
        self.model.eval()
        counts = torch.zeros(3, self.num_classes, dtype=torch.float64)
        for batch in make_loader(crops, self.config.batch_size, stop=self.config.val_samples):
            guess = self.model(batch["img"][:, 0].to(self.device)).argmax(1).cpu()
            judged = batch["target"] != IGNORE
            guess, truth = guess[judged], batch["target"][judged]
            for row, part in enumerate((truth[guess == truth], guess, truth)):
                counts[row] += torch.bincount(part, minlength=self.num_classes)
        dice = 2 * counts[0] / (counts[1] + counts[2])
        kept = [float(d) for i, d in enumerate(dice) if i != self.background and d == d]
        return sum(kept) / len(kept) if kept else 0.0

    def predict(self, row: CohortRow, overlap: float = 0.25) -> NDArray[np.uint8]:
        """Labels (H, W) of a whole image, tiles of the training's crop size blended."""
        table = self.images.training.class_table
        pyramid = open_pyramid(row.image)
        image = pyramid.read(0, (0, 0), pyramid.spatial_shape)
        rule = NormalizationRule.from_config(self.config)
        scaled = torch.from_numpy(measure(rule, pyramid).apply(image))
        index = predict_tiles(
            self.model.eval(), scaled.to(self.device), self.config.crop_size[0], overlap,
            self.num_classes).argmax(0)
        assert table is not None
        labels: NDArray[np.uint8] = np.asarray(table.to_values(index.cpu().numpy()))
        return labels


@torch.no_grad()
def predict_tiles(
    model: nn.Module, image: Tensor, size: int, overlap: float, num_classes: int
) -> Tensor:
    """Sum of tile probabilities (K, H, W) of an image (C, H, W), weighted towards tile centres.

    An image smaller than a tile is filled up with 0, as crops are beyond an image's edge.
    """
    height, width = image.shape[1:]
    image = functional.pad(image, (0, max(0, size - width), 0, max(0, size - height)))
    sides = image.shape[1:]
    ramp = 1 - (torch.arange(size) + 0.5 - size / 2).abs() / (size / 2)
    weight = (ramp[:, None] * ramp[None, :]).clamp(min=1e-3).to(image.device)
    total = torch.zeros(num_classes, *sides, device=image.device)
    rows, columns = (tile_starts(side, size, round(size * (1 - overlap))) for side in sides)
    for y in rows:
        tiles = torch.stack([image[:, y:y + size, x:x + size] for x in columns])
        for x, tile in zip(columns, model(tiles).softmax(1), strict=True):
            total[:, y:y + size, x:x + size] += tile * weight
    return total[:, :height, :width]


def tile_starts(side: int, size: int, step: int) -> list[int]:
    """First pixels of tiles that cover a side; the last one ends with it."""
    return [*range(0, max(0, side - size), step), max(0, side - size)]
