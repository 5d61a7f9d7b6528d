"""The official project's names, with its arguments, defaults and behaviour (muvit 0.1.0).

Each class is a thin layer over the one n-dimensional implementation in `models`; ``save``
writes the official folder and ``from_folder`` reads it, safely. Scripts written for the
official package run with only their import lines changed.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from napari_muvit.data.dataset import MuViTDataset
from napari_muvit.errors import CheckpointError, InputError, MuvitError
from napari_muvit.models.checkpoint import ModelMeta, load_model, save_model
from napari_muvit.models.decoder import Decoder
from napari_muvit.models.encoder import Encoder
from napari_muvit.models.mae import MAE
from napari_muvit.models.masking import consistent_order
from napari_muvit.models.model_files import load_state
from napari_muvit.models.official_folder import check_exportable, read_official, save_official
from napari_muvit.models.segmenter import Segmenter

__all__ = [
    "MuViTDataset",
    "MuViTDecoder2d", "MuViTDecoder3d", "MuViTDecoder4d",
    "MuViTEncoder2d", "MuViTEncoder3d", "MuViTEncoder4d",
    "MuViTMAE2d", "MuViTMAE3d", "MuViTMAE4d",
    "MuViTSegmenter2d", "MuViTSegmenter3d",
]


class SaveableModel(nn.Module):
    """Saves to and loads from the official project's folders."""

    ndim: int

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write the official folder: ``config.yaml`` and ``model.pth``.

        Parameters
        ----------
        path
            Folder to write.
        overwrite
            Whether it may exist.

        Raises
        ------
        CheckpointError
            If the folder exists and `overwrite` is not set, or the official project has no
            such model (``attention_mode="coarse_to_fine"``, ``token_coordinates="centre"``,
            ``decoder_context="visible"``).
        """
        save_official(path, self, overwrite)

    @classmethod
    def from_folder(cls, path: str | Path, device: str | torch.device = "cpu") -> Self:
        """The model in an official folder; nothing in it is executed.

        Parameters
        ----------
        path
            Folder that `save`, or the official project's ``save``, wrote.
        device
            Where to put the model.

        Raises
        ------
        CheckpointError
            If the folder cannot be read, or holds another kind of model.
        """
        config, state = read_official(path)
        ndim = config.pop("ndim", cls.ndim)
        if ndim != cls.ndim:
            raise CheckpointError(
                f"{str(path)!r} holds a model of {ndim} spatial axes; {cls.__name__} has "
                f"{cls.ndim}. Use the class for {ndim}D."
            )
        try:
            model = cls(**config)
        except (TypeError, MuvitError) as error:
            raise CheckpointError(
                f"{str(path)!r} holds no {cls.__name__}: {error}. Use the class that saved it."
            ) from None
        load_state(model, state, Path(path))
        return model.to(device)


class MuViTEncoder(SaveableModel, Encoder):
    """Encoder of nested crops (MuViT, sections 3.1 and 3.2).

    ``encoder(x, bbox)`` takes pixels (B, L, C, *S) and boxes (B, L, 2, A), world px, and gives
    features (B, N, D), world coordinates (B, N, A) and level positions (B, N). Arguments are
    those of `models.encoder.Encoder`.

    Raises
    ------
    InputError
        If arguments, or shapes of what it is called with, do not fit.
    """

    def consistent_level_mask_sampling(
        self, B: int, N: int, N_per_level: int, masking_ratio: float, device: torch.device,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """All N tokens of each sample, (B, N), kept ones of every level first."""
        levels = self.levels[: N // N_per_level]
        return consistent_order(B, levels, N_per_level, masking_ratio, generator).to(device)


class MuViTEncoder2d(MuViTEncoder):
    """Encoder of images (B, L, C, Y, X)."""

    ndim = 2


class MuViTEncoder3d(MuViTEncoder):
    """Encoder of volumes (B, L, C, Z, Y, X)."""

    ndim = 3


class MuViTEncoder4d(MuViTEncoder):
    """Encoder of volumes over time (B, L, C, T, Z, Y, X)."""

    ndim = 4


class MuViTDecoder(SaveableModel, Decoder):
    """Reconstruction decoder (MuViT, section 3.3).

    ``decoder(x, coords, context, context_coords)`` takes tokens (B, N, in_channels) and their
    places (B, N, A), world px, and gives tokens (B, N, D). Arguments are those of
    `models.decoder.Decoder`.

    Raises
    ------
    InputError
        If arguments do not fit.
    """


class MuViTDecoder2d(MuViTDecoder):
    """Decoder with positions along two axes."""

    ndim = 2


class MuViTDecoder3d(MuViTDecoder):
    """Decoder with positions along three axes."""

    ndim = 3


class MuViTDecoder4d(MuViTDecoder):
    """Decoder with positions along four axes."""

    ndim = 4


class MuViTMAE(SaveableModel, MAE):
    """Masked autoencoder with the official ``fit`` (MuViT, sections 3.3 and A.2).

    ``mae(x, bbox)`` takes pixels (B, L, C, *S) and boxes (B, L, 2, A), world px, and gives a
    dict with ``loss``, and ``input`` and ``output`` (B, N, P). Arguments are those of
    `models.mae.MAE`.

    Raises
    ------
    InputError
        If arguments, or shapes of what it is called with, do not fit.
    """

    def fit(
        self, train_dataloader: Any, val_dataloader: Any, output: str | Path | None,
        num_epochs: int = 500, lr: float | None = None, nobox: bool = False,
        warmup_epochs: int = 2, logger: str | None = None, run_name: str | None = None,
        wandb_project: str | None = "muvit", ckpt_path: str | Path | None = None,
        accelerator: str | None = "auto", num_nodes: int | None = 1,
        precision: str | int | None = "bf16-mixed", strategy: str | None = "auto",
        data_gen: torch.Generator | None = None, dry: bool | None = False,
        gradient_clip_val: float | None = 0.5, fast_dev_run: bool | int = False,
        args_namespace: Any = None,
    ) -> None:
        """Train on the batches of a loader and write the official folder after every epoch.

        Parameters
        ----------
        train_dataloader, val_dataloader
            Loaders of dicts with ``img`` and ``bbox``, pairs (img, bbox), or images alone.
        output
            Folder for the model; None writes nothing.
        num_epochs, warmup_epochs
            Passes over the loader, and those in which the learning rate rises.
        lr
            Highest learning rate; by default 1e-4 sqrt(batch size / 128).
        nobox
            Leave the boxes out: concentric crops are assumed.
        logger
            None, or ``tensorboard`` (writes to `output`, under `run_name`).
        ckpt_path
            Training state to go on from.
        accelerator
            ``auto``, ``cpu``, ``gpu``, ``cuda`` or ``mps``.
        precision
            ``bf16-mixed``, or 32 in any official spelling.
        data_gen
            Generator that is seeded with 42 + epoch at the start of every epoch.
        dry, fast_dev_run
            Write nothing; train and validate on one batch (or that many) only.
        gradient_clip_val
            Largest norm of the gradient; None does not clip.
        num_nodes, strategy, wandb_project, args_namespace
            Only their defaults: use a torch launcher with `napari_muvit.pretrain` instead.

        Raises
        ------
        InputError
            Naming the keyword that asks for something else.
        """
        from napari_muvit.training.fit import fit_mae

        _refuse_keywords(num_nodes, strategy, wandb_project, args_namespace, logger)
        folder = None if output is None or dry else Path(output)
        if folder is not None:
            check_exportable(self)
        batch_size = getattr(train_dataloader, "batch_size", None) or 1
        fit_mae(
            self, train_dataloader, val_dataloader, output=folder, num_epochs=num_epochs,
            learning_rate=1e-4 * math.sqrt(batch_size / 128) if lr is None else lr,
            warmup_epochs=warmup_epochs, use_boxes=not nobox,
            tensorboard=logger is not None and not dry, run_name=run_name,
            resume_from=None if ckpt_path is None else Path(ckpt_path),
            device=_parse_accelerator(accelerator), precision=_parse_precision(precision),
            generator=data_gen, clip=gradient_clip_val, max_batches=int(fast_dev_run) or None,
        )


def _refuse_keywords(
    num_nodes: int | None, strategy: str | None, wandb_project: str | None,
    args_namespace: Any, logger: str | None,
) -> None:
    """Refuse keywords of ``fit`` that mean nothing here, by name.

    Raises
    ------
    InputError
        Naming the keyword, what it may be, and what to do instead.
    """
    if num_nodes is not None and num_nodes < 1:
        raise InputError("The number of nodes should be at least 1.")
    launcher = "Start several processes with torchrun and `python -m napari_muvit.train`."
    if num_nodes not in (None, 1):
        raise InputError(f"num_nodes is {num_nodes}; fit trains in one process. {launcher}")
    if strategy not in (None, "auto"):
        raise InputError(f"strategy is {strategy!r}; fit trains in one process. {launcher}")
    if logger not in (None, "tensorboard", "tb"):
        raise InputError(f"Invalid logger: {logger!r}. Pass None or 'tensorboard'.")
    if wandb_project not in (None, "muvit") or args_namespace is not None:
        raise InputError(
            "wandb_project and args_namespace describe a wandb run; wandb is not used here. "
            "Leave them out, or log with logger='tensorboard'."
        )


def _parse_accelerator(accelerator: str | None) -> str:
    """Our name of the device.

    Raises
    ------
    InputError
        If there is none.
    """
    names = {None: "auto", "auto": "auto", "cpu": "cpu", "gpu": "cuda", "cuda": "cuda",
             "mps": "mps"}
    if accelerator not in names:
        raise InputError(
            f"accelerator is {accelerator!r}; it must be 'auto', 'cpu', 'gpu', 'cuda' or 'mps'."
        )
    return names[accelerator]


def _parse_precision(precision: str | int | None) -> str:
    """Our name of the precision.

    Raises
    ------
    InputError
        If it is neither bf16 autocast nor float32.
    """
    if precision in ("bf16-mixed", "bf16"):
        return "bf16"
    if precision in (None, 32, "32", "32-true"):
        return "fp32"
    raise InputError(f"precision is {precision!r}; it must be 'bf16-mixed' or '32-true'.")


class MuViTMAE2d(MuViTMAE):
    """Masked autoencoder of images (B, L, C, Y, X)."""

    ndim = 2
    encoder_class = MuViTEncoder2d
    decoder_class = MuViTDecoder2d


class MuViTMAE3d(MuViTMAE):
    """Masked autoencoder of volumes (B, L, C, Z, Y, X)."""

    ndim = 3
    encoder_class = MuViTEncoder3d
    decoder_class = MuViTDecoder3d


class MuViTMAE4d(MuViTMAE):
    """Masked autoencoder of volumes over time (B, L, C, T, Z, Y, X)."""

    ndim = 4
    encoder_class = MuViTEncoder4d
    decoder_class = MuViTDecoder4d


class MuViTSegmenter(Segmenter):
    """Segmentation of the finest level (MuViT, section 3.4).

    ``segmenter(x, bbox)`` takes pixels (B, L, C, *S) and boxes (B, L, 2, A), world px, and gives
    logits (B, K, *S). Arguments are those of `models.segmenter.Segmenter`. The official project
    has none, so it is saved in our own format.

    Raises
    ------
    InputError
        If the encoder has another number of axes, or arguments do not fit.
    """

    axes: int

    def __init__(self, encoder: Encoder, num_classes: int, *args: Any, **kwargs: Any) -> None:
        if encoder.ndim != self.axes:
            raise InputError(
                f"the encoder has {encoder.ndim} spatial axes; {type(self).__name__} needs "
                f"{self.axes}. Pass such an encoder, or use the class for {encoder.ndim}D."
            )
        super().__init__(encoder, num_classes, *args, **kwargs)

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write ``config.yaml`` and ``model.safetensors``.

        Raises
        ------
        CheckpointError
            If the folder exists and `overwrite` is not set.
        """
        if Path(path).exists() and not overwrite:
            raise CheckpointError(
                f"Path already exists: {path}. Pass overwrite=True, or another folder."
            )
        save_model(path, self, ModelMeta("segmenter", crop_size=self.encoder.crop_size))

    @classmethod
    def from_folder(cls, path: str | Path, device: str | torch.device = "cpu") -> Self:
        """The segmenter that `save` wrote.

        Raises
        ------
        CheckpointError
            If the folder cannot be read, or holds another kind of model.
        """
        loaded = load_model(path)
        if not isinstance(loaded, Segmenter) or loaded.ndim != cls.axes:
            raise CheckpointError(
                f"{str(path)!r} holds no {cls.axes}D segmenter. Use load_model, which finds out."
            )
        model = cls(loaded.encoder, **loaded._config)
        model.load_state_dict(loaded.state_dict())
        return model.to(device)


class MuViTSegmenter2d(MuViTSegmenter):
    """Segmentation of images (B, L, C, Y, X)."""

    axes = 2


class MuViTSegmenter3d(MuViTSegmenter):
    """Segmentation of volumes (B, L, C, Z, Y, X)."""

    axes = 3
