"""Masked-autoencoder pretraining as a task of the engine. MuViT, section 3.3 and A.2.

Axis letters: B batch, L levels, C channels, S spatial extent, n patches of a level,
N = L * n tokens, Nm masked ones, P values of a patch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from napari_muvit.models.devices import widest_float
from napari_muvit.models.layers import take
from napari_muvit.models.mae import MAE
from napari_muvit.models.masking import MaskRule, draw_mask, mask_from_visible
from napari_muvit.models.tokens import patch_grid
from napari_muvit.training.loader import Batch
from napari_muvit.training.places import describe_place
from napari_muvit.training.png import Contrast, Picture, tile_pictures, to_picture
from napari_muvit.training.schedule import pretrain_rate
from napari_muvit.training.task import StepSeed

MASK = 2
"""Purpose number of the seed for masks."""

EPS = 1e-2
"""Added to a patch's deviation when patches are normalised (official value)."""

SaveModel = Callable[[Path, nn.Module, dict[str, Any]], None]


class MAETask:
    """Trains a `MAE`: mean squared error of masked pixels, padding left out.

    Parameters
    ----------
    save_model
        ``(folder, model, facts)``: how the model is written.
    names
        Names of the images, for messages.
    contrast
        How previews show the images.
    mask_per_sample
        Draw the levels' shares for each sample, not once for each batch.
    """

    kind = "pretrain"
    metric = "loss"
    higher_is_better = False
    betas = (0.9, 0.95)  # official

    def __init__(
        self, model: MAE, batch_size: int, save_model: SaveModel, names: tuple[str, ...] = (),
        contrast: Contrast | None = None, *, mask_per_sample: bool = False,
    ) -> None:
        self.mask_per_sample = mask_per_sample
        self.modules: nn.Module = model
        self.model = model
        self.base_rate = pretrain_rate(batch_size, model.encoder.dim)
        self.save_model, self.names = save_model, names
        self.contrast = contrast or Contrast()
        levels = model.encoder.levels
        self.metric_names = ("loss", *(f"loss_level_{level}" for level in levels))
        self.num_scores = 2 * len(levels)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All parameters at one rate."""
        return [{"params": [p for p in self.model.parameters() if p.requires_grad]}]

    def train(self) -> None:
        """Training mode."""
        self.model.train()

    def prepare(self, batch: Batch, seed: StepSeed, whole: int, part: slice) -> Batch:
        """Draw the masks of the global batch on the CPU; keep those of this part.

        ``valid`` stays only where something is not: known here, it costs a GPU no waiting.
        """
        rule = MaskRule(self.model.masking_ratio, self.model.masking_mode,
                        per_sample=self.mask_per_sample)
        last = part.start + len(batch["img"])  # a script's loader may give larger batches
        levels = self.model.encoder.levels
        mask = draw_mask(rule, max(whole, last), levels, self._num_patches(batch),
                         seed.generator(MASK))
        kept = dict(batch)
        if "valid" in kept and bool(kept["valid"].all()):
            del kept["valid"]
        return {**kept, "visible": mask.visible[part.start:last]}

    def totals(self, batch: Batch) -> Tensor:
        """(1,) number of valid values in masked patches."""
        if "valid" not in batch:
            return torch.tensor([self._num_masked(batch)], dtype=torch.float64)
        _, weights = self._masked_weights(batch)
        return weights.sum(dtype=widest_float(weights.device))[None].cpu().double()

    def _num_patches(self, batch: Batch) -> int:
        """Patches of one level."""
        return math.prod(patch_grid(batch["img"].shape[3:], self.model.patch_size))

    def _num_masked(self, batch: Batch) -> int:
        """Number of values in masked patches."""
        samples, levels, channels, *size = batch["img"].shape
        area = math.prod(self.model.patch_size)
        masked = levels * math.prod(size) // area - batch["visible"].shape[1]
        return samples * masked * area * channels

    def _masked_weights(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Positions of masked tokens (B, Nm), and their values' validity (B, Nm, P)."""
        image, visible = batch["img"], batch["visible"].to(batch["img"].device)
        masked = mask_from_visible(visible, self._num_patches(batch) * image.shape[1]).masked
        if "valid" not in batch:
            size = math.prod(self.model.patch_size) * image.shape[2]
            return masked, image.new_ones(*masked.shape, size)
        valid = batch["valid"][:, :, None].to(image.dtype).expand_as(image)
        patches = self.model.encoder.patchify(valid).flatten(1, 2)
        return masked, take(patches, masked)

    def loss(self, batch: Batch, totals: Tensor) -> Tensor:
        """Squared errors of valid masked values over their number in the whole batch."""
        if "valid" not in batch:
            out = self.model(
                batch["img"], batch.get("bbox"), visible_idx=batch["visible"], only_loss=True)
            return out["loss"] * self._num_masked(batch) / totals[0]  # type: ignore[no-any-return]
        errors, weights, _ = self._errors(batch)
        return (errors * weights).sum() / totals[0].clamp(min=1)

    def _errors(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Squared errors (B, Nm, P), their weights, and positions of the tokens (B, Nm)."""
        out = self.model(batch["img"], batch.get("bbox"), visible_idx=batch["visible"])
        masked, weights = self._masked_weights(batch)
        wanted = take(out["input"], masked)
        if self.model.loss_fn == "norm_mse":
            wanted = normalise_patches(wanted, weights)
        errors = (take(out["output"], masked).to(wanted.dtype) - wanted).square()
        return errors, weights, masked

    def scores(self, batch: Batch) -> Tensor:
        """Sums of errors and of weights for each level, (2 L,)."""
        errors, weights, masked = self._errors(batch)
        levels = len(self.model.encoder.levels)
        level = masked // self._num_patches(batch)
        sums = (errors * weights).sum(-1).cpu().double()
        counts = weights.sum(-1).cpu().double()
        is_level = nn.functional.one_hot(level.cpu(), levels).double()
        per_level = [(part[..., None] * is_level).sum((0, 1)) for part in (sums, counts)]
        return torch.cat(per_level)

    def metrics(self, scores: Tensor) -> dict[str, float]:
        """The loss pooled over all masked values, and that of each level."""
        sums, counts = scores.chunk(2)
        values = [float(sums.sum() / counts.sum()), *(sums / counts).tolist()]
        return dict(zip(self.metric_names, values, strict=True))

    def preview(self, batch: Batch) -> Picture:
        """Input, masked input and reconstruction, one row for each level (paper, Figure 2).

        The reconstruction is clipped to the values of the input.
        """
        out = self.model(
            batch["img"], batch.get("bbox"), visible_idx=batch["visible"], return_all=True)
        image = batch["img"][0].float().cpu().numpy()
        hidden = out["mask"][0].cpu().numpy()
        others = (0, *range(2, image.ndim))  # all axes but the channels
        reco = np.clip(out["reco"][0].float().cpu().numpy(), image.min(others, keepdims=True),
                       image.max(others, keepdims=True))
        low, high = self.contrast.of_first(batch)
        grey = ((low + high) / 2).reshape(-1, *(1,) * (image.ndim - 2))
        masked = np.where(hidden, grey, image)
        return tile_pictures([
            [to_picture(part[level], low, high) for part in (image, masked, reco)]
            for level in range(len(image))
        ])

    def place(self, batch: Batch, index: int) -> str:
        """Where sample `index` comes from."""
        return describe_place(batch, index, self.names)

    def save(self, folder: Path, facts: dict[str, Any]) -> None:
        """Write the whole autoencoder."""
        self.save_model(folder, self.model, facts)


def normalise_patches(patches: Tensor, weights: Tensor) -> Tensor:
    """Patches (B, Nm, P) less their mean, over their deviation, both of valid values only."""
    count = weights.sum(-1, keepdim=True).clamp(min=2)
    mean = (patches * weights).sum(-1, keepdim=True) / count
    variance = ((patches - mean).square() * weights).sum(-1, keepdim=True) / (count - 1)
    return (patches - mean) / (variance.sqrt() + EPS)
