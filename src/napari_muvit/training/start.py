"""From a configuration to a run: everything is checked before anything is written."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from napari_muvit import __version__
from napari_muvit.config import FinetuneConfig, PretrainConfig, RunConfig, parse_config
from napari_muvit.data.normalize import NormalizationRule
from napari_muvit.data.training_image import reference_pixel_size
from napari_muvit.errors import ConfigError, MuvitError, RunError
from napari_muvit.models.checkpoint import ModelMeta, load_model, save_model
from napari_muvit.models.encoder import Encoder
from napari_muvit.models.factory import build_mae, build_segmenter
from napari_muvit.training.control import Control
from napari_muvit.training.device import Numerics, check_precision, choose_device
from napari_muvit.training.engine import Engine, Watcher
from napari_muvit.training.fetch import fetch_model, is_address
from napari_muvit.training.folder import RunFolder, check_output, create_run, find_model
from napari_muvit.training.images import RunImages, absolute_paths, open_images
from napari_muvit.training.loader import SampleLoader
from napari_muvit.training.mae_task import MAETask
from napari_muvit.training.numerics import choose_numerics, numerics_again
from napari_muvit.training.parallel import Parallel
from napari_muvit.training.png import Contrast
from napari_muvit.training.run import Run
from napari_muvit.training.segment_task import SegmentTask
from napari_muvit.training.settings import Settings
from napari_muvit.training.tensorboard import TensorBoardWatcher, check_tensorboard
from napari_muvit.training.whole_images import WholeImages

ADOPTED = (
    "dim", "num_layers", "heads", "patch_size", "token_coordinates", "rope_frequencies",
    "rotary_mode", "attention_mode",
)
"""Options that a pretrained encoder brings along."""


def start_pretrain(config: PretrainConfig | Mapping[str, Any] | str | Path) -> Run:
    """A checked pretraining run with its new folder; iterate to train.

    Raises
    ------
    ConfigError, SourceError, RunExistsError, RunError
        Before anything is written.
    """
    return _start(parse_config(PretrainConfig, config), "pretrain")


def start_finetune(config: FinetuneConfig | Mapping[str, Any] | str | Path) -> Run:
    """A checked fine-tuning run with its new folder; iterate to train. See `start_pretrain`."""
    return _start(parse_config(FinetuneConfig, config), "finetune")


def resume_run(folder: str | os.PathLike[str], **changes: Any) -> Run:
    """The run in `folder`, going on from its last checkpoint.

    Parameters
    ----------
    changes
        Options that may differ from the first start: device, workers, threads.

    Raises
    ------
    RunError
        If there is no run, or `changes` names an option that would change the result.
    """
    place = RunFolder(folder)
    unknown = set(changes) - {"device", "workers", "threads"}
    if unknown:
        raise ConfigError(
            f"{sorted(unknown)[0]} cannot change when a run is resumed; device, workers and "
            "threads can. Start a new run instead.", field=sorted(unknown)[0],
        )
    given = {name: value for name, value in changes.items() if value is not None}
    config = place.config()
    config = parse_config(type(config), {**config.model_dump(), **given})
    ready = _prepare(config, place.kind, place.facts())
    return _run(ready, place)


def _start(config: RunConfig, kind: str) -> Run:
    path = check_output(config.output)
    config = absolute_paths(config.model_copy(update={"output": str(path)}))
    ready = _prepare(config, kind, None)
    return _run(ready, _make_folder(ready, path))


@dataclass
class _Ready:
    """Everything that a run needs but its folder."""

    config: RunConfig
    kind: str
    parallel: Parallel
    numerics: Numerics
    images: RunImages
    task: MAETask | SegmentTask
    warnings: list[str]

    def watchers(self, folder: RunFolder) -> tuple[Watcher, ...]:
        """Who else is told of events."""
        if not (self.config.tensorboard and self.parallel.is_main):
            return ()
        return (TensorBoardWatcher(folder.path / "tensorboard"),)

    def last_check(self) -> WholeImages | None:
        """Validation on whole images, where the config asks for it."""
        config, table = self.config, self.images.training.class_table
        if not isinstance(config, FinetuneConfig) or not config.validate_whole or table is None:
            return None
        return WholeImages(
            self.images.val_pyramids, self.images.val_labels, table,
            device=str(self.numerics.device), precision=self.numerics.precision,
            threads=config.threads,
        )

    def facts(self) -> dict[str, Any]:
        """What the run folder records beside the config."""
        return {
            "kind": self.kind, "steps": self.config.steps, "napari_muvit": __version__,
            "python": platform.python_version(), "torch": torch.__version__,
            "numpy": version("numpy"), "zarr": version("zarr"), "seed": self.config.seed,
            "device": str(self.numerics.device), "processes": self.parallel.world,
            "threads": self.config.threads or torch.get_num_threads(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "kernels": self.numerics.kernels.to_dict(), "precision": self.numerics.precision,
            "fingerprints": self.images.fingerprints(),
        }


def _prepare(config: RunConfig, kind: str, before: dict[str, Any] | None) -> _Ready:
    parallel = Parallel.from_environment(cpu=config.device == "cpu")
    if config.batch_size < parallel.world:
        raise ConfigError(
            f"batch_size is {config.batch_size}; {parallel.world} processes need at least one "
            "sample each. Take a larger batch_size or fewer processes.", field="batch_size",
        )
    device = choose_device(config.device, parallel.local_rank)
    check_precision(device, config.precision)
    if config.tensorboard:
        check_tensorboard()
    encoder = _pretrained_encoder(config)
    if encoder is not None:
        config = adopt_encoder(config, encoder)
    images = open_images(config)
    warnings = images.warnings()
    if parallel.world > 1 and getattr(config, "norm", "group") == "batch":
        warnings.append(
            f"the head's norm is batch: each of the {parallel.world} processes takes statistics of "
            "its own part of a batch. Take norm group for the numbers of one process."
        )
    if before is not None:
        warnings += _changed(before.get("fingerprints", {}), images.fingerprints())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        task = _build_task(config, images, encoder)
    is_fixed = config.deterministic or config.kernels == "torch"
    if before is None:
        numerics, notes = choose_numerics(
            task.model.encoder, device, config.precision, is_fixed=is_fixed)
    else:
        numerics, notes = numerics_again(
            before, task.model.encoder, device, config.precision, is_fixed=is_fixed)
    warnings += notes
    return _Ready(config, kind, parallel, numerics, images, task, warnings)


def _pretrained_encoder(config: RunConfig) -> Encoder | None:
    if not isinstance(config, FinetuneConfig) or config.pretrained is None:
        return None
    given = config.pretrained
    model = load_model(find_model(fetch_model(given) if is_address(given) else given))
    encoder = getattr(model, "encoder", model)
    if not isinstance(encoder, Encoder):
        raise ConfigError(
            f"pretrained is {given!r}, which holds no encoder. Pass the folder of a "
            "pretraining run.", field="pretrained",
        )
    return encoder


def adopt_encoder(config: RunConfig, encoder: Encoder) -> RunConfig:
    """`config` with the sizes of a pretrained encoder, so that the run's config is complete.

    Raises
    ------
    ConfigError
        If the config asks for another size itself.
    """
    own = {**encoder.config(), "patch_size": tuple(encoder.patch_size)}
    found: dict[str, Any] = {}
    for name in ADOPTED:
        asked = getattr(config, name)
        value = own[name]
        same = _alike(asked, value)
        if name in config.model_fields_set and asked is not None and not same:
            raise ConfigError(
                f"{name} is {asked!r}; the pretrained model has {value!r}. Leave {name} out, or "
                "choose another pretrained model.", field=name,
            )
        found[name] = value
    return parse_config(type(config), {**config.model_dump(), **found})


def _alike(asked: Any, value: Any) -> bool:
    if isinstance(asked, tuple) and isinstance(value, tuple):
        return asked in (value, value[:1]) and len(set(value)) in {1, len(asked)}
    return bool(asked == value)


def _build_task(
    config: RunConfig, images: RunImages, encoder: Encoder | None
) -> MAETask | SegmentTask:
    dataset = images.training
    channels, ndim = dataset.n_channels, dataset.ndim
    contrast = Contrast.of_images(images.pictures().samples.images)

    def save(folder: Path, model: nn.Module, facts: dict[str, Any]) -> None:
        save_model(folder, model, _meta(config, images, facts))

    if isinstance(config, PretrainConfig):
        mae = build_mae(config, channels, ndim)
        mae.encoder.checkpoint_activations = config.activation_checkpointing
        return MAETask(mae, config.batch_size, save, images.names, contrast)
    table = dataset.class_table
    if table is None or not isinstance(config, FinetuneConfig):
        raise RunError("fine-tuning needs labels. Pass one label image for each image.")
    model = build_segmenter(config, channels, ndim, len(table), encoder)
    model.encoder.checkpoint_activations = config.activation_checkpointing
    weight = 1.0 if config.level_supervision is None else config.level_supervision
    # A frozen encoder cannot learn from it, and one level has no coarser one.
    is_on = dataset.fractions and not config.freeze_encoder and len(config.levels) > 1
    supervision = weight if is_on else 0.0
    return SegmentTask(model, table, config, save, images.names, supervision, contrast)


def _meta(config: RunConfig, images: RunImages, facts: dict[str, Any]) -> ModelMeta:
    """What the model must know about images."""
    first = images.pyramids[0]
    table = images.training.class_table
    return ModelMeta(
        kind="mae" if isinstance(config, PretrainConfig) else "segmenter",
        crop_size=images.training.samples.size, scaled_axes=config.scaled_axes,
        pixel_size=reference_pixel_size(images.pyramids),
        normalization=NormalizationRule.from_config(config).to_dict(),
        classes=None if table is None else table.to_dict(),
        channel_names=tuple(first.channel_names) if first.channel_names else None,
        provenance={"napari_muvit": __version__, "seed": config.seed, **facts},
    )


def _changed(before: dict[str, str], now: dict[str, str]) -> list[str]:
    return [
        f"image {name!r} is not the same as when the run began; the rest of the run will learn "
        "from what is there now." for name, digest in now.items()
        if before.get(name, digest) != digest
    ]


def _make_folder(ready: _Ready, path: Path) -> RunFolder:
    """The new run folder; one process makes it, and all learn whether that worked."""
    problem: MuvitError | None = None
    if ready.parallel.is_main:
        try:
            create_run(path, ready.config, ready.facts())
        except MuvitError as error:
            problem = error
    place = ready.numerics.device if ready.numerics.device.type == "cuda" else torch.device("cpu")
    if ready.parallel.highest(int(problem is not None), place):
        raise problem or RunError("the main process could not make the run folder; it says why.")
    return RunFolder(path)


def _run(ready: _Ready, folder: RunFolder) -> Run:
    config, parallel, control = ready.config, ready.parallel, Control(folder.control_path)
    folder.control_path.unlink(missing_ok=True)  # asked of an earlier process
    settings = Settings.from_config(config, ready.task.base_rate)
    loader = SampleLoader(
        ready.images.training, config.batch_size, config.workers, parallel,
        check=ready.images.check, interrupt=control.check if parallel.world == 1 else None,
    )
    validation, count = None, 0
    if ready.images.validation is not None:
        validation = SampleLoader(
            ready.images.validation, config.batch_size, 0, parallel, limit=config.val_samples)
        count = -(-config.val_samples // config.batch_size)
    pictures = SampleLoader(ready.images.pictures(), config.batch_size, 0, parallel)
    engine = Engine(
        ready.task, settings, folder, loader, validation, count, ready.numerics, parallel,
        control, tuple(ready.warnings), ready.watchers(folder), ready.last_check(),
        pictures,
    )
    engine.load()
    return Run(engine.events(), folder.path, control)
