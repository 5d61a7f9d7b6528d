"""Segmentation fine-tuning as a task of the engine. MuViT, section 3.4 and A.3.

Axis letters: B batch, L levels, C channels, K classes, S spatial extent, G patch grid.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from napari_muvit.config import FinetuneConfig
from napari_muvit.data.labels import ClassTable
from napari_muvit.errors import ConfigError
from napari_muvit.models.level_supervision import LevelSupervision
from napari_muvit.models.segmenter import Segmenter
from napari_muvit.training.calibration import TEMPERATURES, best_temperature, entropies
from napari_muvit.training.loader import Batch
from napari_muvit.training.losses import (
    IGNORE,
    cross_entropy_sum,
    dice_sum,
    judged_weight,
    present_classes,
)
from napari_muvit.training.mae_task import SaveModel
from napari_muvit.training.places import describe_place
from napari_muvit.training.png import (
    Contrast,
    Picture,
    paint_classes,
    paint_grey,
    tile_pictures,
    to_picture,
)
from napari_muvit.training.schedule import finetune_rate
from napari_muvit.training.task import StepSeed

TEMPERATURE = "temperature"


class SegmentTask:
    """Trains a `Segmenter` with cross-entropy and Dice, and class shares at coarser levels.

    Parameters
    ----------
    supervision
        Weight of the loss at coarser levels; 0 is off.
    contrast
        How previews show the images.
    """

    kind = "finetune"
    metric = "mdsc"
    higher_is_better = True
    betas = (0.9, 0.999)

    def __init__(
        self, model: Segmenter, table: ClassTable, config: FinetuneConfig,
        save_model: SaveModel, names: tuple[str, ...] = (), supervision: float = 0.0,
        contrast: Contrast | None = None,
    ) -> None:
        self.contrast = contrast or Contrast()
        self.model, self.table, self.config = model, table, config
        self.save_model, self.names, self.supervision = save_model, names, supervision
        parts: dict[str, nn.Module] = {"model": model}
        if supervision:
            parts["levels"] = LevelSupervision(
                model.encoder.dim, len(model.levels), model.num_classes)
        self.modules: nn.Module = nn.ModuleDict(parts)
        self.base_rate = finetune_rate(config.batch_size, model.encoder.dim)
        background = table.background
        self.background = None if background is None else table.values.index(background)
        self.class_weights = parse_weights(config.class_weights, table)
        self._weights: dict[torch.device, Tensor] = {}
        dice = (f"dice_{name}" for name in _unique(table.names))
        self.metric_names = ("mdsc", "loss", *dice, TEMPERATURE)
        self.num_scores = 4 + 3 * model.num_classes + len(TEMPERATURES)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The encoder at its own rate if it is pretrained, everything else at the full one."""
        encoder = [p for p in self.model.encoder.parameters() if p.requires_grad]
        known = {id(p) for p in self.model.encoder.parameters()}
        rest = [p for p in self.modules.parameters() if p.requires_grad and id(p) not in known]
        rate = self.config.encoder_rate if self.config.pretrained else 1.0
        groups = [{"params": rest, "rate": 1.0}, {"params": encoder, "rate": rate}]
        return [group for group in groups if group["params"]]

    def train(self) -> None:
        """Training mode; a frozen encoder stays in evaluation mode."""
        self.modules.train()

    def prepare(self, batch: Batch, seed: StepSeed, whole: int, part: slice) -> Batch:
        """Nothing is drawn: samples are augmented by the dataset."""
        return batch

    def totals(self, batch: Batch) -> Tensor:
        """(3,) weight of judged pixels, number of Dice terms, weight of coarse patches."""
        target = batch["target"]
        present = present_classes(target, self.model.num_classes, self.background)
        coarse = batch["fraction_valid"][:, 1:].sum() if self.supervision else torch.zeros(())
        weights = self._weights_on(target.device)
        parts = (judged_weight(target, weights), present.sum(), coarse)
        return torch.stack([part.cpu().double() for part in parts])

    def loss(self, batch: Batch, totals: Tensor) -> Tensor:
        """Weighted sum of cross-entropy, Dice and coarse class shares."""
        logits, tokens = self.model.forward_with_tokens(batch["img"], batch["bbox"])
        c, target = self.config, batch["target"]
        weights = self._weights_on(logits.device)
        total = c.ce_weight * cross_entropy_sum(logits, target, weights) / totals[0].clamp(min=1)
        present = present_classes(target, logits.shape[1], self.background)
        total = total + c.dice_weight * dice_sum(logits, target, present) / totals[1].clamp(min=1)
        if self.supervision:
            coarse, _ = self.levels.loss_sum(tokens, batch["fractions"], batch["fraction_valid"])
            total = total + self.supervision * coarse / totals[2].clamp(min=1)
        return total

    def _weights_on(self, device: torch.device) -> Tensor | None:
        """The class weights; copied to a device once, as each copy would be waited for."""
        if self.class_weights is None:
            return None
        if device not in self._weights:
            self._weights[device] = self.class_weights.to(device)
        return self._weights[device]

    @property
    def levels(self) -> LevelSupervision:
        """The heads on coarser levels."""
        heads = self.modules["levels"]  # type: ignore[index]
        return heads  # type: ignore[no-any-return]

    def scores(self, batch: Batch) -> Tensor:
        """Sums, to be added up over crops.

        Both losses and their divisors; overlap, predicted and true pixels per class; the
        cross-entropy under each temperature.
        """
        logits, target = self.model(batch["img"], batch["bbox"]), batch["target"]
        weights = self._weights_on(logits.device)
        present = present_classes(target, logits.shape[1], self.background)
        losses = torch.stack([
            cross_entropy_sum(logits, target, weights).cpu().double(),
            judged_weight(target, weights).cpu().double(),
            dice_sum(logits, target, present).cpu().double(), present.sum().cpu().double(),
        ])
        judged = target != IGNORE
        guess, truth = logits.argmax(1)[judged], target[judged]
        num = self.model.num_classes
        counts = [torch.bincount(part, minlength=num)
                  for part in (truth[guess == truth], guess, truth)]
        return torch.cat(
            [losses, *(part.cpu().double() for part in counts), entropies(logits, target)])

    def metrics(self, scores: Tensor) -> dict[str, float]:
        """Mean Dice (mDSC), the loss, Dice per class, and the best temperature of the logits.

        mDSC is that of `inference.scores`: the mean over the classes that are not background;
        a class that is neither there nor predicted has no Dice and is not counted. With
        nothing but background it is NaN, and no model is the best one by it.
        """
        cross, weight, dice, pairs = scores[:4].tolist()
        overlap, guessed, true = scores[4 : -len(TEMPERATURES)].chunk(3)
        per_class = (2 * overlap / (guessed + true)).tolist()
        judged = [value for i, value in enumerate(per_class)
                  if i != self.background and value == value]
        c = self.config
        loss = c.ce_weight * cross / max(weight, 1) + c.dice_weight * dice / max(pairs, 1)
        mean = sum(judged) / len(judged) if judged else float("nan")
        values = [mean, loss, *per_class, best_temperature(scores[-len(TEMPERATURES):])]
        return dict(zip(self.metric_names, values, strict=True))

    def preview(self, batch: Batch) -> Picture:
        """Image, truth, prediction and confidence; below them the coarser views."""
        logits = self.model(batch["img"], batch["bbox"])[0].float()
        confidence, guess = logits.softmax(0).max(0)
        colors = [item.color for item in self.table.classes]
        low, high = self.contrast.of_first(batch)
        views = [to_picture(view, low, high) for view in batch["img"][0].float().cpu().numpy()]
        row = [
            views[0], paint_classes(batch["target"][0].cpu().numpy(), colors),
            paint_classes(guess.cpu().numpy(), colors), paint_grey(confidence.cpu().numpy()),
        ]
        return tile_pictures([row, views[1:]] if len(views) > 1 else [row])

    def place(self, batch: Batch, index: int) -> str:
        """Where sample `index` comes from."""
        return describe_place(batch, index, self.names)

    def save(self, folder: Path, facts: dict[str, Any]) -> None:
        """Write the segmenter without the heads on coarser levels.

        It has the temperature of the last validation, which no training step sees.
        """
        self.model.temperature = facts["metrics"].get(TEMPERATURE, 1.0)
        try:
            self.save_model(folder, self.model, facts)
        finally:
            self.model.temperature = 1.0


def parse_weights(weights: tuple[float, ...] | None, table: ClassTable) -> Tensor | None:
    """Class weights as a tensor (K,).

    Raises
    ------
    ConfigError
        If there is not one for every class, or one is negative.
    """
    if weights is None:
        return None
    if len(weights) != len(table) or min(weights) < 0:
        raise ConfigError(
            f"class_weights are {weights}; there must be one number of at least 0 for each of the "
            f"{len(table)} classes: {', '.join(table.names)}.", field="class_weights",
        )
    return torch.tensor(weights, dtype=torch.float32)


def _unique(names: tuple[str, ...]) -> list[str]:
    """Names made different, for columns of a table."""
    return [name if names.count(name) == 1 else f"{name}_{i}" for i, name in enumerate(names)]
