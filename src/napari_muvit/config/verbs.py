"""The options of each verb: pretraining, fine-tuning, prediction."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import field_validator, model_validator

from napari_muvit.config.options import (
    Channels,
    Device,
    Kernels,
    Options,
    Paths,
    Precision,
    RunConfig,
    Threads,
    option,
)


class PretrainConfig(RunConfig):
    """Multi-resolution masked-autoencoder pretraining (MuViT, sections 3.3 and A.2)."""

    masking_ratio: Annotated[float, option(
        "Masking ratio", "Share of patches hidden from the encoder.", group="Model",
        advanced=True, gt=0, lt=1)] = 0.75
    masking_mode: Annotated[Literal["dirichlet", "random"], option(
        "Masking", "dirichlet draws another share for each level; random treats all patches "
        "alike.", group="Model", advanced=True)] = "dirichlet"
    mask_per_sample: Annotated[bool, option(
        "Masks per sample", "Draw the shares of the levels for each sample, not once for each "
        "batch as the paper does.", group="Model", advanced=True)] = False
    loss: Annotated[Literal["mse", "norm_mse"], option(
        "Loss", "Mean squared error of pixels, or of pixels normalised within each patch.",
        group="Model", advanced=True)] = "mse"
    decoder_context: Annotated[Literal["all", "visible"], option(
        "Decoder context", "What the reconstruction decoders look at: visible patches alone, or "
        "all, masked ones included, as in the official code.", group="Model",
        advanced=True)] = "visible"
    dim_decoder: Annotated[int | None, option(
        "Decoder width", "Width of the reconstruction decoders; the preset's by default.",
        group="Model", advanced=True, gt=0)] = None
    num_layers_decoder: Annotated[int | None, option(
        "Decoder layers", "Layers of the reconstruction decoders; the preset's by default.",
        group="Model", advanced=True, gt=0)] = None


class FinetuneConfig(RunConfig):
    """Segmentation fine-tuning (MuViT, sections 3.4 and A.3)."""

    labels: Annotated[Paths | None, option(
        "Labels", "One label image for each image; not needed where a CSV names them.",
        group="Images")] = None
    val_labels: Annotated[Paths | None, option(
        "Validation labels", "One label image for each validation image.",
        group="Validation")] = None
    validate_whole: Annotated[bool, option(
        "Whole images", "At the end, predict the whole validation images into the run folder as "
        "a user would, and score them.", group="Validation", advanced=True)] = False
    unlabelled: Annotated[int | None, option(
        "Unlabelled value", "Label value that means not judged: never trained on, never scored.",
        group="Images")] = None
    background: Annotated[int | None, option(
        "Background value", "Label value that means none of the classes; by default what the "
        "label store says, else 0 unless 0 is unlabelled.", group="Images", advanced=True)] = None
    pretrained: Annotated[str | None, option(
        "Pretrained model", "What to start from: a run or model folder, hf://owner/name"
        "[/subfolder][@revision], or the URL of a .zip or .tar of one; #sha256=... checks it.",
        group="Model")] = None
    decoder: Annotated[Literal["unetr", "mask2former"], option(
        "Decoder", "Segmentation head.", group="Model")] = "unetr"
    norm: Annotated[Literal["batch", "group"], option(
        "Head norm", "Normalization in the head: batch (the paper's) or group.", group="Model",
        advanced=True)] = "group"
    freeze_encoder: Annotated[bool, option(
        "Freeze encoder", "Train the head alone.", group="Training", advanced=True)] = False
    encoder_rate: Annotated[float, option(
        "Encoder rate", "Encoder's learning rate relative to the head's, when pretrained.",
        group="Training", advanced=True, gt=0)] = 0.1
    ce_weight: Annotated[float, option(
        "Cross-entropy weight", "Weight of the cross-entropy in the loss.", group="Training",
        advanced=True, ge=0)] = 1.0
    dice_weight: Annotated[float, option(
        "Dice weight", "Weight of the Dice loss.", group="Training", advanced=True, ge=0)] = 1.0
    class_weights: Annotated[tuple[float, ...] | None, option(
        "Class weights", "Weight of each class in the cross-entropy, in class-table order.",
        group="Training", advanced=True)] = None
    level_supervision: Annotated[float | None, option(
        "Level supervision", "Weight of the loss on class fractions at coarser levels; by "
        "default 1 where labels cover enough, else 0.", group="Training", advanced=True,
        ge=0)] = None
    foreground_fraction: Annotated[float | None, option(
        "Foreground share", "Least share of training crops that hold a foreground class; by "
        "default a half where little is labelled, else 0.",
        group="Crops", advanced=True, ge=0, le=1)] = None
    epoch_size: Annotated[int, option(
        "Epoch", "Training samples that count as one epoch.", group="Training", advanced=True,
        ge=1)] = 4096

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        self._check_pairs("images", self.images, "labels", self.labels)
        if self.val is not None:
            self._check_pairs("val", self.val, "val_labels", self.val_labels)
        return self

    @staticmethod
    def _check_pairs(
        name: str, images: tuple[str, ...], labels_name: str, labels: tuple[str, ...] | None
    ) -> None:
        if labels is None and all(image.lower().endswith(".csv") for image in images):
            return
        given = 0 if labels is None else len(labels)
        if given != len(images):
            raise ValueError(
                f"{labels_name} has {given} entries and {name} has {len(images)}; each image "
                f"needs its label image. Pass as many {labels_name} as {name}, in the same order."
            )


class PredictConfig(Options):
    """Prediction of one or many images to OME-Zarr labels."""

    images: Annotated[Paths, option(
        "Images", "Images to predict, or one CSV with a column image.", group="Images",
        min_length=1)]
    model: Annotated[str, option(
        "Model", "Run folder of a fine-tuning, or model folder.", group="Model")]
    output: Annotated[str, option(
        "Output", "OME-Zarr to write; for several images a folder of them. What is there "
        "already is continued.", group="Output")]
    channels: Annotated[Channels | None, option(
        "Channels", "Channels to use, by number or name, in the model's order; all by default.",
        group="Images")] = None
    t: Annotated[int | None, option(
        "Time point", "Index along t; every time point by default.", group="Images",
        advanced=True, ge=0)] = None
    z: Annotated[int | None, option(
        "Plane", "Index along z for a 2D model; every plane by default.", group="Images",
        advanced=True, ge=0)] = None
    overlap: Annotated[float, option(
        "Overlap", "Share of a tile that neighbouring tiles have in common.", group="Tiles",
        ge=0, lt=0.9)] = 0.25
    tissue: Annotated[str, option(
        "Tissue mask", "Where to predict: auto leaves empty places out, none predicts everything, "
        "or the path of a mask image.", group="Tiles")] = "auto"
    roi: Annotated[tuple[float, ...] | None, option(
        "Region", "Predict only around this box: its lower corner, then its upper one, (z) y x "
        "each.", group="Tiles", unit="px of full resolution", advanced=True)] = None
    average: Annotated[Literal[1, 2, 4, 8], option(
        "Average", "Average over this many flips, and quarter turns if 8; takes as many times "
        "longer.", group="Tiles", advanced=True)] = 1
    batch_size: Annotated[int | None, option(
        "Batch size", "Tiles in one call of the model; 8 by default, on a CPU 1, or 4 if the "
        "model is small.", group="Tiles", advanced=True, ge=1)] = None
    probabilities: Annotated[bool, option(
        "Probabilities", "Write the probability of every class too.", group="Output")] = False
    confidence: Annotated[bool, option(
        "Confidence", "Write the probability of the predicted class too.", group="Output")] = False
    geojson: Annotated[bool, option(
        "GeoJSON", "Write outlines of the labels for QuPath too.", group="Output")] = False
    fmt: Annotated[Literal["0.4", "0.5"], option(
        "OME-Zarr version", "Version of the NGFF format.", group="Output", advanced=True)] = "0.5"
    shard: Annotated[bool, option(
        "Shards", "Put the chunks of a block into one file; 0.5 only.", group="Output",
        advanced=True)] = False
    part: Annotated[str | None, option(
        "Part", "i/n: this is the i-th of n processes that share the work, for job arrays.",
        group="Computer", pattern=r"^\d+/\d+$")] = None
    cluster: Annotated[str | None, option(
        "Cluster", "local for one worker per GPU, local:4 for so many processes, slurm:8 for "
        "jobs, or the address of a dask scheduler, tcp://...", group="Computer",
        pattern=r"^((local|slurm)(:[1-9]\d*)?|tcp://.+|tls://.+)$")] = None
    device: Device = "auto"
    precision: Precision = "fp32"
    threads: Threads = None
    kernels: Kernels = "auto"

    @field_validator("average", mode="before")
    @classmethod
    def _read_average(cls, value: Any) -> Any:
        """Command lines and forms give the number as text."""
        return int(value) if isinstance(value, str) and value.isdecimal() else value

    @model_validator(mode="after")
    def _check_roi(self) -> Self:
        if self.roi is not None and len(self.roi) not in {4, 6}:
            raise ValueError(
                f"roi has {len(self.roi)} numbers; it must have 4 for an image and 6 for a volume: "
                "the lower corner, then the upper one. Pass for example 0 0 512 512."
            )
        return self

    @model_validator(mode="after")
    def _check_shard(self) -> Self:
        if self.shard and self.fmt == "0.4":
            raise ValueError("shard needs OME-Zarr 0.5; leave out fmt 0.4 or shard.")
        return self
