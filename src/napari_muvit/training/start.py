"""From a configuration to a run: everything is checked before anything is written."""

from __future__ import annotations

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
from napari_muvit.models.checkpoint import ModelMeta, save_model
from napari_muvit.models.devices import choose_device
from napari_muvit.models.factory import build_mae, build_segmenter
from napari_muvit.training.control import Control
from napari_muvit.training.device import Numerics, check_precision, move_modules
from napari_muvit.training.engine import Engine, Watcher
from napari_muvit.training.folder import RunFolder, check_output, create_run
from napari_muvit.training.images import RunImages, absolute_paths, open_images
from napari_muvit.training.loader import SampleLoader
from napari_muvit.training.mae_task import MAETask
from napari_muvit.training.numerics import choose_numerics, numerics_again
from napari_muvit.training.parallel import Parallel, meeting_place
from napari_muvit.training.png import Contrast
from napari_muvit.training.pretrained import (
    Pretrained,
    adopt_encoder,
    differences,
    load_pretrained,
)
from napari_muvit.training.run import Run
from napari_muvit.training.segment_task import SegmentTask
from napari_muvit.training.settings import Settings
from napari_muvit.training.tensorboard import TensorBoardWatcher, check_tensorboard
from napari_muvit.training.whole_images import WholeImages


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


def _start(config: RunConfig, kind: str) -> Run:
    path = check_output(config.output)
    config = absolute_paths(config.model_copy(update={"output": str(path)}))
    ready = prepare_run(config, kind)
    folder = _make_folder(ready, path)
    engine = build_engine(ready, folder)
    return Run(engine.events(), folder.path, engine.control)


@dataclass
class Ready:
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


def prepare_run(config: RunConfig, kind: str, place: RunFolder | None = None) -> Ready:
    """Open, check and build what `config` names; nothing is written.

    Parameters
    ----------
    place
        The run folder, where an earlier process began the run.
    """
    before = None if place is None else place.facts()
    parallel = Parallel.from_environment(cpu=choose_device(config.device).type != "cuda")
    if config.batch_size < parallel.world:
        raise ConfigError(
            f"batch_size is {config.batch_size}; {parallel.world} processes need at least one "
            "sample each. Take a larger batch_size or fewer processes.", field="batch_size",
        )
    device = choose_device(config.device, parallel.local_rank)
    check_precision(device, config.precision)
    if config.tensorboard:
        check_tensorboard()
    pretrained = load_pretrained(config, place)
    if pretrained is not None:
        config = adopt_encoder(config, pretrained)
    images = open_images(config)
    warnings = images.warnings() + _norm_warnings(config, parallel)
    if pretrained is not None:
        warnings += differences(config, pretrained, reference_pixel_size(images.pyramids))
    if before is not None:
        warnings += _changed(before.get("fingerprints", {}), images.fingerprints())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        task = _build_task(config, images, pretrained)
    is_fixed = config.deterministic or config.kernels == "torch"
    if before is None:
        numerics, notes = choose_numerics(
            task.model.encoder, device, config.precision, is_fixed=is_fixed)
    else:
        numerics, notes = numerics_again(
            before, task.model.encoder, device, config.precision, is_fixed=is_fixed)
    warnings += notes
    move_modules(task.modules, device)  # while nothing is written yet: it may not fit
    return Ready(config, kind, parallel, numerics, images, task, warnings)


def _norm_warnings(config: RunConfig, parallel: Parallel) -> list[str]:
    if parallel.world == 1 or getattr(config, "norm", "group") != "batch":
        return []
    return [
        f"the head's norm is batch: each of the {parallel.world} processes takes statistics of "
        "its own part of a batch. Take norm group for the numbers of one process."
    ]


def _build_task(
    config: RunConfig, images: RunImages, pretrained: Pretrained | None
) -> MAETask | SegmentTask:
    dataset = images.training
    channels, ndim = dataset.n_channels, dataset.ndim
    contrast = Contrast.of_images(images.pictures().samples.images)

    def save(folder: Path, model: nn.Module, facts: dict[str, Any]) -> None:
        save_model(folder, model, _meta(config, images, facts))

    if isinstance(config, PretrainConfig):
        mae = build_mae(config, channels, ndim)
        mae.encoder.checkpoint_activations = config.activation_checkpointing
        return MAETask(mae, config.batch_size, save, images.names, contrast,
                       mask_per_sample=config.mask_per_sample)
    table = dataset.class_table
    if table is None or not isinstance(config, FinetuneConfig):
        raise RunError("fine-tuning needs labels. Pass one label image for each image.")
    encoder = None if pretrained is None else pretrained.encoder
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


def _make_folder(ready: Ready, path: Path) -> RunFolder:
    """The new run folder; one process makes it, and all learn whether that worked."""
    problem: MuvitError | None = None
    place = meeting_place(ready.numerics.device)
    ready.parallel.highest(0, place)  # until now the others may still see that there is no folder
    if ready.parallel.is_main:
        try:
            create_run(path, ready.config, ready.facts())
        except MuvitError as error:
            problem = error
    if ready.parallel.highest(int(problem is not None), place):
        raise problem or RunError("the main process could not make the run folder; it says why.")
    return RunFolder(path)


def build_engine(ready: Ready, folder: RunFolder) -> Engine:
    """The engine of a run, at its last checkpoint if it wrote one."""
    config, parallel, images = ready.config, ready.parallel, ready.images
    control = Control(folder.control_path, is_owner=parallel.is_main)
    folder.control_path.unlink(missing_ok=True)  # asked of an earlier process
    settings = Settings.from_config(config, ready.task.base_rate)
    loader = SampleLoader(
        images.training, config.batch_size, config.workers, parallel, check=images.check,
        interrupt=control.check,
    )
    validation, count = None, 0
    if images.validation is not None:
        validation = SampleLoader(
            images.validation, config.batch_size, 0, parallel, limit=config.val_samples,
            interrupt=control.check)
        count = -(-config.val_samples // config.batch_size)
    # One sample, read by the first process alone, while others may wait for it.
    pictures = SampleLoader(
        images.pictures(), 1, 0, Parallel(),
        interrupt=control.check if parallel.world == 1 else None)
    engine = Engine(
        ready.task, settings, folder, loader, validation, count, ready.numerics, parallel,
        control, tuple(ready.warnings), ready.watchers(folder), ready.last_check(),
        pictures,
    )
    engine.load()
    return engine
