"""Every option, once: type, default, bound, title, description and unit.

Forms, ``--help`` and the reference page derive from these classes, so the three cannot
disagree. A config is frozen and refuses unknown keys. YAML files are flat: one key for each
field, the same names as the command line's flags; a recipe holds one such part for each verb.

This file is long because every option stands here, and nowhere else.

Sources: MuViT (CVPR 2026), sections 3 and 4 and supplement A.2, A.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from napari_muvit.errors import ConfigError, InputError, nearest_name
from napari_muvit.geometry import parse_levels

SCHEMA_VERSION = 1


def option(
    title: str, description: str, *, group: str, unit: str | None = None,
    advanced: bool = False, **bounds: Any,
) -> Any:
    """One field's title, help text, unit, form group and bounds."""
    text = f"{description} [{unit}]" if unit else description
    extra: dict[str, JsonValue] = {"group": group, "advanced": advanced, "unit": unit}
    return Field(title=title, description=text, json_schema_extra=extra, **bounds)


def _check_levels(value: Any) -> Any:
    try:
        return parse_levels(value)
    except InputError as error:
        raise ValueError(str(error)) from None


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, (str, Path, int, float)) else value


def _as_channels(value: Any) -> Any:
    """Channel numbers arrive from the command line as text; names stay text."""
    values = _as_tuple(value)
    if not isinstance(values, (tuple, list)):
        return values
    return tuple(int(v) if isinstance(v, str) and v.isdecimal() else v for v in values)


Channels = Annotated[tuple[int | str, ...], BeforeValidator(_as_channels)]
Levels = Annotated[tuple[int | float, ...], BeforeValidator(_check_levels)]
Paths = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
Sizes = Annotated[tuple[int, ...], BeforeValidator(_as_tuple)]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
Precision = Literal["fp32", "bf16"]


class Options(BaseModel):
    """Base of all option groups: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class SourceOptions(Options):
    images: Annotated[Paths, option(
        "Images", "Images to learn from: OME-Zarr, TIFF, slide or ordinary image files, or one "
        "CSV with the columns image, labels, split, group.", group="Images", min_length=1)]
    channels: Annotated[Channels | None, option(
        "Channels", "Channels to use, by number or name; all by default.", group="Images")] = None
    t: Annotated[int | None, option(
        "Time point", "Index along t for images with several time points.", group="Images",
        advanced=True, ge=0)] = None
    z: Annotated[int | None, option(
        "Plane", "Index along z, to use one plane of a volume as a 2D image.", group="Images",
        advanced=True, ge=0)] = None
    normalization: Annotated[Literal["percentile", "constant", "none"], option(
        "Normalization", "percentile: per image and channel, see percentiles; constant: divide "
        "by normalization_constant; none.", group="Images", advanced=True)] = "percentile"
    percentiles: Annotated[tuple[float, float], option(
        "Percentiles", "Percentiles mapped to 0 and 1.", group="Images", unit="%",
        advanced=True)] = (1.0, 99.8)
    normalization_constant: Annotated[float, option(
        "Constant", "Divisor of the constant rule, for example 255.", group="Images",
        advanced=True, gt=0)] = 255.0


class CropOptions(Options):
    levels: Annotated[Levels, option(
        "Levels", "Downsampling factors that the model reads together, ascending.",
        group="Crops")] = (1, 4, 16)
    crop_size: Annotated[Sizes, option(
        "Crop size", "Side of each level's crop; one number, or one for each spatial axis.",
        group="Crops", unit="px of the level")] = (256,)
    scaled_axes: Annotated[tuple[Literal["z", "y", "x"], ...], option(
        "Scaled axes", "Axes that a level downsamples.", group="Crops", advanced=True)] = ("y", "x")
    image_weighting: Annotated[Literal["area", "equal"], option(
        "Image weighting", "Draw crops from several images by area, or equally often.",
        group="Crops", advanced=True)] = "area"
    tissue: Annotated[str, option(
        "Tissue mask", "Where crops are drawn: auto finds tissue on a coarse level, none takes "
        "everything, or the path of a mask image.", group="Crops", advanced=True)] = "auto"
    flip: Annotated[bool, option(
        "Flips", "Mirror crops at random along y and x.", group="Augmentation",
        advanced=True)] = True
    rotate: Annotated[bool, option(
        "Quarter turns", "Turn crops at random by multiples of 90 degrees.",
        group="Augmentation", advanced=True)] = True
    intensity_jitter: Annotated[float, option(
        "Intensity jitter", "Largest random relative change of contrast and offset.",
        group="Augmentation", advanced=True, ge=0, le=1)] = 0.1
    stain_jitter: Annotated[float, option(
        "Stain jitter", "Largest random relative change of each HED stain; RGB histology only.",
        group="Augmentation", advanced=True, ge=0, le=1)] = 0.0
    box_shift: Annotated[float, option(
        "Box shift", "Standard deviation of a random shift of each level's box.",
        group="Augmentation", unit="px of the level", advanced=True, ge=0)] = 0.0
    box_scale: Annotated[float, option(
        "Box scale", "Standard deviation of a random relative scaling of each level's box.",
        group="Augmentation", advanced=True, ge=0, le=0.5)] = 0.0


PRESETS: dict[str, dict[str, int]] = {
    "base": {
        "dim": 512, "num_layers": 12, "heads": 8, "patch_size": 8,
        "dim_decoder": 256, "num_layers_decoder": 2, "head_dim": 256,
    },
    "small": {
        "dim": 256, "num_layers": 6, "heads": 4, "patch_size": 8,
        "dim_decoder": 128, "num_layers_decoder": 2, "head_dim": 96,
    },
    "tiny": {
        "dim": 128, "num_layers": 4, "heads": 4, "patch_size": 8,
        "dim_decoder": 128, "num_layers_decoder": 1, "head_dim": 32,
    },
}
"""Sizes of the presets; ``base`` is the paper's. `head_dim` is the width of segmentation heads."""


class ModelOptions(Options):
    preset: Annotated[Literal["base", "small", "tiny"], option(
        "Model size", "base is the paper's (25 M parameters); small and tiny fit a laptop CPU.",
        group="Model")] = "small"
    dim: Annotated[int | None, option(
        "Width", "Embedding width of the encoder; the preset's by default.", group="Model",
        advanced=True, gt=0)] = None
    num_layers: Annotated[int | None, option(
        "Layers", "Transformer layers of the encoder; the preset's by default.", group="Model",
        advanced=True, gt=0)] = None
    heads: Annotated[int | None, option(
        "Heads", "Attention heads; the preset's by default.", group="Model", advanced=True,
        gt=0)] = None
    patch_size: Annotated[Sizes | None, option(
        "Patch size", "Side of a patch; one number, or one for each spatial axis; the preset's "
        "by default.", group="Model", unit="px of the level", advanced=True)] = None
    token_coordinates: Annotated[Literal["centre", "span"], option(
        "Token coordinates", "centre: each patch's true centre; span: the paper's formula.",
        group="Model", advanced=True)] = "centre"
    rope_frequencies: Annotated[Literal["scales", "base"], option(
        "RoPE frequencies", "scales: wavelengths from two patches to twice the widest view; "
        "base: the official powers of 10000.", group="Model", advanced=True)] = "scales"
    rotary_mode: Annotated[Literal["per_layer", "shared", "fixed", "none"], option(
        "Rotary mode", "Trainable RoPE frequencies per layer, shared by all, fixed, or no RoPE.",
        group="Model", advanced=True)] = "per_layer"
    attention_mode: Annotated[Literal["all", "coarse_to_fine"], option(
        "Attention", "all: every patch sees every patch; coarse_to_fine: a patch sees its own "
        "and coarser levels, so that prediction encodes coarse crops once.", group="Model",
        advanced=True)] = "all"

    def model_sizes(self) -> dict[str, Any]:
        """Sizes of the preset with this config's own values in their place."""
        sizes: dict[str, Any] = dict(PRESETS[self.preset])
        for name in ("dim", "num_layers", "heads", "patch_size", "dim_decoder",
                     "num_layers_decoder"):
            value = getattr(self, name, None)
            if value is not None:
                sizes[name] = value
        return sizes


class OptimizerOptions(Options):
    steps: Annotated[int, option(
        "Steps", "Optimizer steps of the whole run.", group="Training", ge=1)] = 1000
    batch_size: Annotated[int, option(
        "Batch size", "Nested crops for each optimizer step.", group="Training", ge=1)] = 8
    learning_rate: Annotated[float | None, option(
        "Learning rate", "Highest learning rate; by default scaled to the batch size from the "
        "paper's.", group="Training", advanced=True, gt=0)] = None
    weight_decay: Annotated[float, option(
        "Weight decay", "AdamW's weight decay.", group="Training", advanced=True, ge=0)] = 0.01
    warmup: Annotated[float, option(
        "Warm-up", "Share of the steps in which the learning rate rises.", group="Training",
        advanced=True, ge=0, lt=1)] = 0.05
    clip: Annotated[float, option(
        "Gradient clip", "Largest norm of the gradient.", group="Training", advanced=True,
        gt=0)] = 0.5
    accumulate: Annotated[int, option(
        "Accumulation", "Parts into which a batch is split to save memory.", group="Training",
        advanced=True, ge=1)] = 1
    activation_checkpointing: Annotated[bool, option(
        "Activation checkpointing", "Recompute activations to save memory.", group="Training",
        advanced=True)] = False
    ema: Annotated[float, option(
        "Weight averaging", "Decay of an exponential moving average of the weights; 0 is off.",
        group="Training", advanced=True, ge=0, lt=1)] = 0.0
    epoch_size: Annotated[int, option(
        "Epoch", "Training samples that count as one epoch.", group="Training", advanced=True,
        ge=1)] = 10_000
    seed: Annotated[int, option(
        "Seed", "Everything random derives from this number.", group="Training", ge=0)] = 0
    deterministic: Annotated[bool, option(
        "Deterministic", "Use deterministic kernels only.", group="Training",
        advanced=True)] = False


class ComputeOptions(Options):
    device: Annotated[Device, option(
        "Device", "auto, cpu, mps, cuda or cuda:1.", group="Computer")] = "auto"
    precision: Annotated[Precision, option(
        "Precision", "fp32, or bf16 where the device is faster with it.", group="Computer",
        advanced=True)] = "fp32"
    workers: Annotated[int, option(
        "Loader processes", "Processes that read crops; 0 reads in the training process.",
        group="Computer", advanced=True, ge=0)] = 0
    threads: Annotated[int | None, option(
        "Threads", "CPU threads of the model; all cores by default.", group="Computer",
        advanced=True, ge=1)] = None
    kernels: Annotated[Literal["auto", "torch"], option(
        "Kernels", "auto measures which matrix kernels are fastest on this CPU, and records them; "
        "torch takes torch's own, the same on every machine.", group="Computer",
        advanced=True)] = "auto"


class ValidationOptions(Options):
    val: Annotated[Paths | None, option(
        "Validation images", "Images to validate on; without any, val_fraction says what part of "
        "each training image is.", group="Validation")] = None
    val_fraction: Annotated[float, option(
        "Validation share", "Share of each training image kept for validation where no "
        "validation images are given; 0 is off.", group="Validation", ge=0, lt=1)] = 0.0
    validate_every: Annotated[int, option(
        "Validate every", "Steps between validations.", group="Validation", unit="steps",
        advanced=True, ge=1)] = 200
    val_samples: Annotated[int, option(
        "Validation crops", "Nested crops of one validation.", group="Validation", advanced=True,
        ge=1)] = 64
    early_stopping: Annotated[int | None, option(
        "Early stopping", "Validations without improvement after which the run ends.",
        group="Validation", advanced=True, ge=1)] = None


class OutputOptions(Options):
    output: Annotated[str, option(
        "Run folder", "Folder to create for this run; nothing is overwritten.", group="Output")]
    checkpoint_every: Annotated[int, option(
        "Checkpoint every", "Steps between checkpoints.", group="Output", unit="steps",
        advanced=True, ge=1)] = 200
    preview_every: Annotated[int, option(
        "Preview every", "Steps between preview pictures.", group="Output", unit="steps",
        advanced=True, ge=1)] = 200
    tensorboard: Annotated[bool, option(
        "TensorBoard", "Write TensorBoard records beside metrics.csv.", group="Output",
        advanced=True)] = False


class RunConfig(
    OutputOptions, ValidationOptions, ComputeOptions, OptimizerOptions, ModelOptions, CropOptions,
    SourceOptions,
):
    """What pretraining and fine-tuning have in common."""

    @model_validator(mode="after")
    def _check_patches(self) -> Self:
        patch = self.model_sizes()["patch_size"]
        patches = (patch,) if isinstance(patch, int) else patch
        sizes = self.crop_size
        length = max(len(patches), len(sizes))
        if len(patches) not in {1, length} or len(sizes) not in {1, length}:
            raise ValueError(
                f"crop_size {sizes} and patch_size {patches} differ in their number of axes; "
                "give one number each, or one for every spatial axis."
            )
        pairs = zip(sizes * (length // len(sizes)), patches * (length // len(patches)), strict=True)
        for size, step in pairs:
            if size % step:
                lower = max(step, size // step * step)
                raise ValueError(
                    f"crop_size {size} is not a multiple of patch_size {step}; the patch must "
                    f"divide the crop. Take {lower} or {lower + step}."
                )
        return self


class PretrainConfig(RunConfig):
    """Multi-resolution masked-autoencoder pretraining (MuViT, sections 3.3 and A.2)."""

    masking_ratio: Annotated[float, option(
        "Masking ratio", "Share of patches hidden from the encoder.", group="Model",
        advanced=True, gt=0, lt=1)] = 0.75
    masking_mode: Annotated[Literal["dirichlet", "random"], option(
        "Masking", "dirichlet draws another share for each level; random treats all patches "
        "alike.", group="Model", advanced=True)] = "dirichlet"
    loss: Annotated[Literal["mse", "norm_mse"], option(
        "Loss", "Mean squared error of pixels, or of pixels normalised within each patch.",
        group="Model", advanced=True)] = "mse"
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
    foreground_fraction: Annotated[float, option(
        "Foreground share", "Least share of training crops that hold a foreground class.",
        group="Crops", advanced=True, ge=0, le=1)] = 0.0
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
    channels: Annotated[tuple[int | str, ...] | None, option(
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
        "Batch size", "Tiles in one call of the model; 1 on CPUs and 8 elsewhere by default.",
        group="Tiles", advanced=True, ge=1)] = None
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
        pattern=r"^((local|slurm)(:\d+)?|tcp://.+|tls://.+)$")] = None
    device: Annotated[Device, option(
        "Device", "auto, cpu, mps, cuda or cuda:1.", group="Computer")] = "auto"
    precision: Annotated[Precision, option(
        "Precision", "fp32, or bf16 where the device is faster with it.", group="Computer",
        advanced=True)] = "fp32"
    threads: Annotated[int | None, option(
        "Threads", "CPU threads of the model; all cores by default.", group="Computer",
        advanced=True, ge=1)] = None
    kernels: Annotated[Literal["auto", "torch"], option(
        "Kernels", "auto measures which matrix kernels are fastest on this CPU; torch takes "
        "torch's own.", group="Computer", advanced=True)] = "auto"

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


ConfigT = TypeVar("ConfigT", bound=Options)

SECTIONS = {"PretrainConfig": "pretrain", "FinetuneConfig": "finetune", "PredictConfig": "predict"}
"""Section of a recipe file for each kind of config."""


def parse_config(kind: type[ConfigT], given: ConfigT | Mapping[str, Any] | str | Path) -> ConfigT:
    """A checked config from a config, a dict or the path of a YAML file.

    Raises
    ------
    ConfigError
        Naming the field, what was given, and the rule; unknown keys name the nearest known.
    """
    if isinstance(given, kind):
        return given
    if not isinstance(given, (str, Path, Mapping)):
        raise ConfigError(
            f"the config is a {type(given).__name__}; it must be a dict of options, the path of a "
            f"YAML file, or a {kind.__name__}."
        )
    values = read_options(kind, given) if isinstance(given, (str, Path)) else dict(given)
    check_schema(values)
    check_keys(kind, values)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise config_error(error, kind) from None


def read_options(kind: type[Options], path: str | Path) -> dict[str, Any]:
    """The options of `kind` in a YAML file, their names checked, their values not yet.

    A recipe holds a whole job: sections ``pretrain``, ``finetune`` and ``predict``, and
    ``common`` for what they share as far as the section's kind knows it.
    """
    values = read_yaml(path)
    check_schema(values)
    if values.keys() & {"common", *SECTIONS.values()}:
        section = SECTIONS.get(kind.__name__, "")
        check_sections(values, section, path)
        common = values.get("common") or {}
        shared = {key: value for key, value in common.items() if key in kind.model_fields}
        values = shared | (values.get(section) or {})
    check_keys(kind, values)
    return values


def check_sections(values: Mapping[str, Any], section: str, path: str | Path) -> None:
    """Refuse a recipe without `section`, or with something that is no section."""
    known = ["common", *SECTIONS.values()]
    for key, value in values.items():
        if key not in known or not isinstance(value, dict | None):
            raise ConfigError(
                f"{key!r} in {str(path)!r} is no section of a recipe. Known sections are "
                f"{', '.join(known)}, each with 'name: value' lines.", field=str(key),
            )
    if section not in values:
        raise ConfigError(f"recipe {str(path)!r} has no section {section!r}. Add '{section}:'.")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises
    ------
    ConfigError
        If the file is missing, is no YAML, or holds something else than a mapping.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"config file {str(path)!r} cannot be read: {error.strerror}. Check the path."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        first = getattr(error, "problem", None) or str(error).splitlines()[0]
        place = "" if mark is None else f" in line {mark.line + 1}"
        raise ConfigError(
            f"config file {str(path)!r} is not valid YAML{place}: {first}. Correct the file."
        ) from None
    if not isinstance(values, dict):
        what = "nothing" if values is None else f"a {type(values).__name__}"
        raise ConfigError(
            f"config file {str(path)!r} holds {what}; it must hold one "
            "'name: value' line for each option."
        )
    return values


def check_schema(values: dict[str, Any]) -> None:
    """Take the schema version out of `values`; refuse one that is newer than ours."""
    version = values.pop("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"the config has schema_version {version!r}; this version reads {SCHEMA_VERSION}. "
            "Use the napari-muvit version that wrote it.", field="schema_version",
        )


def check_keys(kind: type[Options], values: Mapping[str, Any]) -> None:
    """Refuse keys that `kind` does not know, naming the nearest that it does."""
    known = kind.model_fields
    for key in values:
        if key in known:
            continue
        near = nearest_name(str(key), known)
        hint = f"Did you mean {near!r}?" if near else f"Known are {', '.join(known)}."
        verb = SECTIONS.get(kind.__name__, "")
        others = [SECTIONS[other.__name__] for other in (PretrainConfig, FinetuneConfig,
                  PredictConfig) if other is not kind and key in other.model_fields]
        if others:
            hint = (f"It belongs to {others[0]}; leave it out of {verb}, or call {others[0]} with "
                    "this config.")
        raise ConfigError(f"unknown option {key!r}. {hint}", field=str(key))


def config_error(error: ValidationError, kind: type[Options]) -> ConfigError:
    """pydantic's first complaint as one sentence: field, given value, rule."""
    first = error.errors()[0]
    field = str(first["loc"][0]) if first["loc"] else None
    rule = first["msg"].removeprefix("Value error, ")
    if field is None:
        return ConfigError(rule)
    if first["type"] == "missing":
        return ConfigError(f"{field} is missing; it has no default. Pass {field}.", field)
    if first["type"] == "value_error" and rule.startswith(f"{field} "):
        return ConfigError(rule, field)  # a rule of ours, which says what was given
    if first["type"] == "string_pattern_mismatch":
        what = kind.model_fields[field].description or ""
        return ConfigError(f"{field} is {first['input']!r}; allowed is: {what}", field)
    if first["type"] == "too_short":
        rule = f"it must hold at least {first['ctx']['min_length']}"
    rule = rule.replace("Input should", "it must", 1)
    return ConfigError(f"{field} is {first['input']!r}; {rule}.", field)


def write_config(config: Options, path: Path, **facts: Any) -> None:
    """Write the complete config as YAML, with `facts` (versions, device) as comments above."""
    lines = [f"# {key}: {value}" for key, value in facts.items()]
    values = {"schema_version": SCHEMA_VERSION, **config.model_dump(mode="json")}
    text = "\n".join([*lines, yaml.safe_dump(values, sort_keys=False, allow_unicode=True)])
    path.write_text(text, encoding="utf-8")
