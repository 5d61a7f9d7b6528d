"""The options that verbs share: type, default, bound, title, description and unit of each.

Sources: MuViT (CVPR 2026), sections 3 and 4 and supplement A.2, A.3.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from napari_muvit.errors import InputError
from napari_muvit.geometry import parse_levels


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


def _as_planes(value: Any) -> Any:
    """One plane or several, by number (text from the command line), or the word all."""
    values = _as_channels(value)
    return "all" if isinstance(values, (tuple, list)) and list(values) == ["all"] else values


Channels = Annotated[tuple[int | str, ...], BeforeValidator(_as_channels)]
Levels = Annotated[tuple[int | float, ...], BeforeValidator(_check_levels)]
Paths = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
Sizes = Annotated[
    Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)],
    BeforeValidator(_as_tuple),
]
Planes = Annotated[
    Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | Literal["all"],
    BeforeValidator(_as_planes),
]


class Options(BaseModel):
    """Base of all option groups: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class SourceOptions(Options):
    """Which images, and how their values are scaled."""

    images: Annotated[Paths, option(
        "Images", "Images to learn from: OME-Zarr, TIFF, slide or ordinary image files, or one "
        "CSV with the columns image, labels, split, group.", group="Images", min_length=1)]
    channels: Annotated[Channels | None, option(
        "Channels", "Channels to use, by number or name; all by default.", group="Images")] = None
    t: Annotated[int | None, option(
        "Time point", "Index along t for images with several time points.", group="Images",
        advanced=True, ge=0)] = None
    z: Annotated[Planes | None, option(
        "Planes", "Planes of a volume to use as 2D images: indices along z, or all, of which "
        "fine-tuning takes those with labels. By default the volume is used as a whole.",
        group="Images", advanced=True)] = None
    normalization: Annotated[Literal["percentile", "constant", "none"], option(
        "Normalization", "percentile: per image and channel, see percentiles; constant: divide "
        "by normalization_constant; none.", group="Images", advanced=True)] = "percentile"
    percentiles: Annotated[tuple[float, float], option(
        "Percentiles", "Percentiles mapped to 0 and 1.", group="Images", unit="%",
        advanced=True)] = (1.0, 99.8)
    normalization_constant: Annotated[float, option(
        "Constant", "Divisor of the constant rule, for example 255.", group="Images",
        advanced=True, gt=0)] = 255.0

    @model_validator(mode="after")
    def _check_percentiles(self) -> Self:
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(
                f"percentiles are {self.percentiles}; they must ascend between 0 and 100. Pass "
                "for example 1 99.8."
            )
        return self


class CropOptions(Options):
    """What is read at a place, where, and how it is varied."""

    levels: Annotated[Levels, option(
        "Levels", "Downsampling factors that the model reads together, ascending.",
        group="Crops")] = (1, 4, 16)
    crop_size: Annotated[Sizes, option(
        "Crop size", "Side of each level's crop; one number, or one for each spatial axis.",
        group="Crops", unit="px of the level")] = (256,)
    scaled_axes: Annotated[tuple[Literal["z", "y", "x"], ...], option(
        "Scaled axes", "Axes that a level downsamples.", group="Crops", advanced=True,
        min_length=1)] = ("y", "x")
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
    """Sizes of the network, and how it knows places."""

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
        "Attention", "coarse_to_fine: a patch sees its own and coarser levels, so that "
        "prediction encodes coarse crops once; all: every patch sees every patch, as in the "
        "paper.", group="Model", advanced=True)] = "coarse_to_fine"

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
    """How long and how fast is learnt."""

    steps: Annotated[int, option(
        "Steps", "Optimizer steps of the whole run.", group="Training", ge=1)] = 1000
    batch_size: Annotated[int, option(
        "Batch size", "Nested crops for each optimizer step.", group="Training", ge=1)] = 8
    learning_rate: Annotated[float | None, option(
        "Learning rate", "Highest learning rate; by default the paper's, scaled to the batch "
        "size and to the width of the model, in pretraining to its square.", group="Training",
        advanced=True, gt=0)] = None
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


Device = Annotated[
    Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")],
    option("Device", "auto, cpu, mps, cuda or cuda:1.", group="Computer"),
]
Precision = Annotated[Literal["fp32", "bf16"], option(
    "Precision", "fp32, or bf16 where the device is faster with it.", group="Computer",
    advanced=True)]
Threads = Annotated[int | None, option(
    "Threads", "CPU threads of the model; all cores by default.", group="Computer",
    advanced=True, ge=1)]
Kernels = Annotated[Literal["auto", "torch"], option(
    "Kernels", "auto measures which matrix kernels are fastest on this CPU, and records them; "
    "torch takes torch's own, the same on every machine.", group="Computer", advanced=True)]


class ComputeOptions(Options):
    """Where it is computed."""

    device: Device = "auto"
    precision: Precision = "fp32"
    workers: Annotated[int, option(
        "Loader processes", "Processes that read crops; 0 reads in the training process.",
        group="Computer", advanced=True, ge=0)] = 0
    threads: Threads = None
    kernels: Kernels = "auto"


class ValidationOptions(Options):
    """What is kept apart, and how often it is looked at."""

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
    """What is written, and how often."""

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
