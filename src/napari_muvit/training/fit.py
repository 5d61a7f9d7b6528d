"""``MAE.fit``: the official project's way to train, on the same engine as every other run."""

from __future__ import annotations

import logging
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from napari_muvit import __version__
from napari_muvit.errors import CheckpointError, InputError
from napari_muvit.models.devices import choose_device
from napari_muvit.models.mae import MAE
from napari_muvit.models.official_folder import save_official
from napari_muvit.training.control import Control
from napari_muvit.training.device import Numerics, check_precision, move_modules
from napari_muvit.training.engine import Engine, Watcher
from napari_muvit.training.events import FinishedEvent, ValidationEvent, WarningEvent
from napari_muvit.training.folder import FIT, MODEL, STATE, RunFolder, check_output, create_run
from napari_muvit.training.loader import Batch
from napari_muvit.training.mae_task import MAETask
from napari_muvit.training.numerics import choose_numerics, numerics_again
from napari_muvit.training.parallel import Parallel
from napari_muvit.training.run import Run
from napari_muvit.training.schedule import pretrain_rate
from napari_muvit.training.settings import Settings
from napari_muvit.training.state import load_state
from napari_muvit.training.tensorboard import TensorBoardWatcher, check_tensorboard

log = logging.getLogger(__name__)

EPOCH_SEED = 42
"""The official code seeds `generator` with this number plus the epoch."""


class LoaderSource:
    """Batches of a script's own loader, pass after pass.

    Parameters
    ----------
    per_epoch
        Batches of one pass that are used.
    generator
        Seeded anew at the start of every pass, so that a loader that shuffles with it gives
        the same order whether or not the run was interrupted.
    """

    def __init__(
        self, loader: Any, per_epoch: int, *, use_boxes: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        self.loader, self.per_epoch = loader, per_epoch
        self.use_boxes, self.generator = use_boxes, generator

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """Batches of the steps from `first_step` to before `last_step`.

        Raises
        ------
        InputError
            If a pass ends before the step that is due.
        """
        step = first_step
        while step < last_step:
            before, number = step, -1
            epoch, skipped = divmod(step, self.per_epoch)
            if self.generator is not None:
                self.generator.manual_seed(EPOCH_SEED + epoch)
            for number, given in enumerate(self.loader):
                if number >= self.per_epoch or step >= last_step:
                    break
                if number >= skipped:
                    yield parse_batch(given, self.use_boxes)
                    step += 1
            if step == before:
                raise InputError(
                    f"the loader gave {number + 1} batches in one pass, after its length had "
                    f"promised {self.per_epoch}. Make its length the number of batches that each "
                    "pass gives."
                )


def parse_batch(given: Any, use_boxes: bool) -> Batch:
    """A batch as the official code takes it: a dict, a pair (img, bbox), or images alone.

    Raises
    ------
    InputError
        If it is something else.
    """
    if isinstance(given, Tensor):
        given = {"img": given}
    elif isinstance(given, (list, tuple)) and len(given) == 2 and isinstance(given[0], Tensor):
        given = {"img": given[0], "bbox": given[1]}
    if not isinstance(given, dict) or not isinstance(given.get("img"), Tensor):
        raise InputError(
            f"the loader gave a batch of type {type(given).__name__}; it must be a dict with img "
            "and bbox, a pair (img, bbox), or a tensor of images (B, L, C, *S)."
        )
    names = ("img", "bbox", "valid") if use_boxes else ("img", "valid")
    return {name: given[name] for name in names if isinstance(given.get(name), Tensor)}


@dataclass(frozen=True)
class _Place:
    """Where a run writes and how it computes."""

    folder: RunFolder
    settings: Settings
    numerics: Numerics
    warnings: list[str]


@dataclass(frozen=True)
class FitOptions:
    """How a script's model is trained.

    Attributes
    ----------
    num_epochs, warmup_epochs
        Passes over the loader, and those in which the learning rate rises.
    learning_rate
        Highest rate; by default from the loader's batch size.
    use_boxes
        Whether the model gets the batches' boxes.
    tensorboard, run_name
        Whether to write TensorBoard records, and under which name.
    resume_from
        Run folder, or its ``checkpoint/state.pt``, to go on from; the output may be that folder.
    device, precision
        As in a config.
    generator
        Seeded with 42 + epoch at the start of every pass; for a loader that shuffles with it.
    clip
        Largest norm of the gradient; None does not clip.
    max_batches
        Train one epoch of so many batches, and write nothing.
    """

    num_epochs: int = 500
    warmup_epochs: int = 2
    learning_rate: float | None = None
    use_boxes: bool = True
    tensorboard: bool = False
    run_name: str | None = None
    resume_from: Path | None = None
    device: str = "auto"
    precision: str = "bf16"
    generator: torch.Generator | None = None
    clip: float | None = 0.5
    max_batches: int | None = None


def fit_mae(
    model: MAE, train_loader: Any, val_loader: Any = None, *, output: Path | None, **options: Any
) -> FinishedEvent:
    """Train `model` on the batches of a script's loader, in place.

    After every epoch `output` holds the official project's folder of the model, and the
    records and checkpoint of a run beside it.

    Parameters
    ----------
    train_loader, val_loader
        Iterables of batches with a length; `val_loader` may be None.
    output
        A new folder; None writes nothing.
    **options
        See `FitOptions`.

    Raises
    ------
    InputError, CheckpointError, RunExistsError, RunError
        Before training, if an argument cannot be used.
    """
    given = FitOptions(**options)
    use = _plan_passes(train_loader, val_loader, given)
    settings = _settings(train_loader, use, given)
    training = LoaderSource(
        train_loader, use.train, use_boxes=given.use_boxes, generator=given.generator)
    validation = None
    if use.val:
        validation = LoaderSource(val_loader, use.val, use_boxes=given.use_boxes)
    state = _state_path(given.resume_from)
    with _output_folder(None if given.max_batches is not None else output) as (path, is_kept):
        watchers = _watchers(given, path) if is_kept else ()
        place = _open_folder(path, state, model, settings, given)
        task = MAETask(model, settings.batch_size, _saver(path) if is_kept else _save_nothing)
        return _train(place, task, training, validation, use.val, state, watchers)


@contextmanager
def _output_folder(output: Path | None) -> Iterator[tuple[Path, bool]]:
    """Where the run is written, and whether that stays."""
    if output is not None:
        yield Path(output).absolute(), True
        return
    with tempfile.TemporaryDirectory(prefix="muvit-") as unkept:
        yield Path(unkept) / "run", False


def _watchers(given: FitOptions, path: Path) -> tuple[Watcher, ...]:
    if not given.tensorboard:
        return ()
    check_tensorboard()
    return (TensorBoardWatcher(path / (given.run_name or "tensorboard")),)


@dataclass(frozen=True)
class _Passes:
    """How often a script's loaders are gone through, and how many batches of each pass count."""

    epochs: int
    train: int
    val: int


def _plan_passes(train_loader: Any, val_loader: Any, given: FitOptions) -> _Passes:
    per_epoch = count_batches(train_loader, "train_dataloader")
    per_val = 0 if val_loader is None else count_batches(val_loader, "val_dataloader")
    most = given.max_batches
    if most is None:
        return _Passes(given.num_epochs, per_epoch, per_val)
    return _Passes(1, min(per_epoch, most), min(per_val, most))


def _settings(train_loader: Any, use: _Passes, given: FitOptions) -> Settings:
    """The loop's numbers; an epoch is one pass, after which everything is done and written."""
    batch_size = int(getattr(train_loader, "batch_size", None) or 1)
    return Settings(
        steps=use.epochs * use.train, batch_size=batch_size,
        learning_rate=given.learning_rate or pretrain_rate(batch_size),
        warmup=min(0.99, given.warmup_epochs / max(1, use.epochs)),
        clip=float("inf") if given.clip is None else given.clip,
        epoch_size=use.train * batch_size, seed=int(torch.randint(2**31 - 1, ()).item()),
        validate_every=use.train, checkpoint_every=use.train, preview_every=use.train,
    )


def _train(
    place: _Place, task: MAETask, training: LoaderSource, validation: LoaderSource | None,
    per_val: int, state: Path | None, watchers: tuple[Watcher, ...],
) -> FinishedEvent:
    control = Control(place.folder.control_path)
    engine = Engine(
        task, place.settings, place.folder, training, validation, per_val, place.numerics,
        Parallel(), control, tuple(place.warnings), watchers,
    )
    if state is not None:
        engine.take(load_state(state))
    last = _follow(Run(engine.events(), place.folder.path, control))
    task.model.eval()
    return last


def _follow(run: Run) -> FinishedEvent:
    for event in run:
        if isinstance(event, ValidationEvent):
            log.info("step %d: validation %s", event.step, event.metrics)
        elif isinstance(event, WarningEvent):
            log.warning(event.message)
    return run.wait()


def count_batches(loader: Any, name: str) -> int:
    """Number of batches in one pass.

    Raises
    ------
    InputError
        If the loader has no length, or is empty.
    """
    try:
        count = len(loader)
    except TypeError:
        raise InputError(
            f"{name} has no length; an epoch is one pass over it. Pass a DataLoader of a dataset "
            "with __len__."
        ) from None
    if count == 0:
        raise InputError(f"{name} is empty; it must give at least one batch.")
    return count


def _state_path(resume_from: Path | None) -> Path | None:
    if resume_from is None:
        return None
    path = resume_from / STATE if resume_from.is_dir() else resume_from
    if not path.is_file():
        raise CheckpointError(
            f"ckpt_path is {str(resume_from)!r}, which holds no training state. Pass the folder "
            "that an earlier fit wrote as its output."
        )
    return path.absolute()


def _open_folder(
    path: Path, state: Path | None, model: MAE, settings: Settings, given: FitOptions
) -> _Place:
    """The run folder, and the settings and numerics that an earlier start fixed."""
    place, precision = choose_device(given.device), given.precision
    check_precision(place, precision)
    move_modules(model, place)  # while nothing is written yet: it may not fit
    if state is not None and state == path / STATE:
        folder = RunFolder(path)
        facts = folder.facts()
        numerics, warnings = numerics_again(facts, model.encoder, place, precision)
        seeded = replace(settings, seed=facts["seed"])
        return _Place(folder, seeded, numerics, warnings)
    numerics, warnings = choose_numerics(model.encoder, place, precision)
    facts = {
        "kind": FIT, "steps": settings.steps, "napari_muvit": __version__,
        "python": platform.python_version(), "torch": torch.__version__, "seed": settings.seed,
        "device": str(place), "kernels": numerics.kernels.to_dict(),
        "precision": numerics.precision, "name": given.run_name,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    folder = create_run(check_output(path), None, facts)
    return _Place(folder, settings, numerics, warnings)


def _saver(path: Path) -> Any:
    def save(folder: Path, model: nn.Module, facts: dict[str, Any]) -> None:
        """The last model goes where the official code puts it: into the output folder itself."""
        save_official(path if folder.name == MODEL else folder, model, overwrite=True)

    return save


def _save_nothing(folder: Path, model: nn.Module, facts: dict[str, Any]) -> None:
    """A run without an output leaves no model behind."""
