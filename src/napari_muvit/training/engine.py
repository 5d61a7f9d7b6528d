"""The loop: steps, validations, previews, checkpoints, as a stream of events.

Every event is a safe place to stop or pause. Everything that the next step depends on is in
the weights, the optimizer and `Progress`; randomness derives from (seed, step). So a run that
was killed and resumed goes through the same numbers as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext, suppress
from dataclasses import dataclass
from typing import Protocol

from napari_muvit.errors import MuvitError, RunError, SourceError
from napari_muvit.training.average import WeightAverage
from napari_muvit.training.clock import RunClock
from napari_muvit.training.control import Control, StoppedError
from napari_muvit.training.device import Numerics, move_modules, torch_settings
from napari_muvit.training.evaluation import Evaluation
from napari_muvit.training.events import (
    CheckpointEvent,
    EpochEvent,
    Event,
    FinishedEvent,
    PreviewEvent,
    Reason,
    StepEvent,
    StoppingEvent,
    ValidationEvent,
    WarningEvent,
)
from napari_muvit.training.files import disk_error, write_whole
from napari_muvit.training.folder import BEST, MODEL, PATIENCE, PREVIEWS, RunFolder
from napari_muvit.training.gate import Gate
from napari_muvit.training.loader import Batch, BatchSource, more_parts
from napari_muvit.training.parallel import Parallel, meeting_place
from napari_muvit.training.png import encode_png
from napari_muvit.training.problems import explain
from napari_muvit.training.records import Recorder
from napari_muvit.training.schedule import epoch_of
from napari_muvit.training.settings import Settings
from napari_muvit.training.state import Progress, TrainingState, load_state, save_state
from napari_muvit.training.stepper import Outcome, Stepper
from napari_muvit.training.task import StepSeed, Task


class Watcher(Protocol):
    """Told of every event in the training process, for example to write TensorBoard records."""

    def __call__(self, event: Event) -> None: ...

    def close(self) -> None:
        """The run is over or was left; calling it again does nothing."""
        ...


class LastCheck(Protocol):
    """Further metrics, by name, of a run that is complete."""

    @property
    def names(self) -> Sequence[str]: ...

    def __call__(self, folder: RunFolder, control: Control) -> dict[str, float]: ...


@dataclass
class Engine:
    """One run in this process.

    Parameters
    ----------
    training, validation
        Where batches come from; `validation` gives the same ones each time, or is None.
    num_validation
        Number of validation batches.
    warnings
        What was noticed before the first step.
    pictures
        Where previews come from; by default `validation`, else `training`.
    """

    task: Task
    settings: Settings
    folder: RunFolder
    training: BatchSource
    validation: BatchSource | None
    num_validation: int
    numerics: Numerics
    parallel: Parallel
    control: Control
    warnings: tuple[str, ...] = ()
    watchers: tuple[Watcher, ...] = ()
    last_check: LastCheck | None = None
    pictures: BatchSource | None = None

    def __post_init__(self) -> None:
        s = self.settings
        self.device = self.numerics.device
        move_modules(self.task.modules, self.device)
        self.stepper = Stepper(self.task, s, self.numerics, self.parallel, self.control)
        self.clock = RunClock()
        self.gate = Gate(self.control, self.parallel, meeting_place(self.device))
        self.evaluation = Evaluation(
            self.task, s, self.numerics, self.stepper, self.gate, self.validation,
            self.num_validation, self.pictures or self.validation or self.training, self.clock,
        )
        self.average = WeightAverage(self.task.modules, s.ema) if s.ema else None
        self.progress = Progress(accumulate=s.accumulate)
        more = () if self.last_check is None else self.last_check.names
        self.recorder = Recorder(
            self.folder.path, (*self.task.metric_names, *more), samples_per_step=s.batch_size,
            epoch_size=s.epoch_size,
        )
        self._saved_step = -1
        self._is_warned = False

    def load(self) -> None:
        """Take up the last checkpoint, if one was written."""
        if not self.folder.state_path.exists():
            return
        self.take(load_state(self.folder.state_path))

    def take(self, state: TrainingState) -> None:
        """Go on from `state`."""
        self.task.modules.load_state_dict(state.weights)
        self.stepper.load_optimizer(state.optimizer)
        if self.average is not None and state.average is not None:
            self.average.load(state.average)
        self.progress = state.progress
        self._saved_step = -1

    def events(self) -> Iterator[Event]:
        """Train, yielding events; the last one is a `FinishedEvent`.

        Raises
        ------
        MuvitError
            After a `FinishedEvent` with reason "failed", whose message it carries.
        """
        settings = torch_settings(
            threads=self.settings.threads, deterministic=self.settings.deterministic)
        with ExitStack() as stack:
            stack.enter_context(settings)
            for watch in self.watchers:  # also where the loop over the events is left
                stack.callback(watch.close)
            if self.parallel.is_main:
                stack.enter_context(self.folder.lock(PATIENCE))
            error: Exception | None = None
            reason: Reason = "completed"
            try:
                self._open_records()
                yield from self._train()
                reason = "completed" if self.progress.step >= self.settings.steps else "early"
            except StoppedError:
                reason = "stopped"
            except (MuvitError, OSError, RuntimeError, MemoryError) as problem:
                reason, error = "failed", explain(problem, self.folder.path, self.device)
            yield from self._finish(reason, error)
            if error is not None:
                raise error

    def _open_records(self) -> None:
        if self.parallel.is_main:
            self.recorder.open(self.progress.step)

    def _emit(self, event: Event) -> Iterator[Event]:
        """Tell of `event`, then hold or end here if that was asked for."""
        yield from self._tell(event)
        self.gate.at_event()

    def _tell(self, event: Event) -> Iterator[Event]:
        if self.parallel.is_main:
            self.recorder.write(event)
        for watch in self.watchers:
            watch(event)
        yield event

    def _train(self) -> Iterator[Event]:
        for message in self.warnings:
            yield from self._emit(WarningEvent(self.progress.step, message))
        self.gate.at_event()
        source = self.training.batches(self.progress.step, self.settings.steps)
        with closing(source) as batches:  # type: ignore[type-var]
            yield from self._epoch()  # here too: a stop may have come right after a step
            yield from self._duties()
            while self.progress.step < self.settings.steps and not self._is_stale():
                self.gate.together()
                yield from self._step(batches)
                yield from self._epoch()
                yield from self._duties()
        yield from self._checkpoint()
        if self.last_check is not None and self.parallel.is_main:
            more = self.last_check(self.folder, self.control)
            self.progress.metrics = {**self.progress.metrics, **more}
            yield from self._emit(ValidationEvent(self.progress.step, more))

    def _is_stale(self) -> bool:
        limit = self.settings.early_stopping
        return limit is not None and self.progress.stale >= limit

    def _step(self, batches: Iterator[Batch]) -> Iterator[Event]:
        s, progress = self.settings, self.progress
        with self.clock.measure("step"):
            batch = self._next(batches)
            self.task.train()
            seed = StepSeed(s.seed, progress.step)
            batch = self.task.prepare(batch, seed, s.batch_size, self.parallel.share(s.batch_size))
            while True:
                loss, outcome = self.stepper.step(batch, progress.step, progress.accumulate)
                if outcome is Outcome.DONE:
                    break
                yield from self._emit(self._halve(batch))
            rate = self.stepper.rate(progress.step)
            progress.step += 1
            progress.epoch_loss += loss
            progress.epoch_steps += 1
            if self.average is not None:
                self.average.update(self.task.modules, progress.step)
        seconds = self.clock.last("step")
        yield from self._emit(
            StepEvent(progress.step, s.steps, loss, rate, seconds, self._remaining()))

    def _next(self, batches: Iterator[Batch]) -> Batch:
        batch = self.gate.fetch(batches)
        if batch is None:
            raise RunError("the training images gave no more samples before the last step.")
        return batch

    def _halve(self, batch: Batch) -> WarningEvent:
        """Split the batch further after memory ran out, keeping its effective size."""
        size = -(-self.settings.batch_size // self.parallel.world)
        part = -(-size // self.progress.accumulate)
        self.progress.accumulate = more_parts(size, self.progress.accumulate)
        return WarningEvent(self.progress.step, (
            f"memory ran out with {part} samples at a time; from here each batch of {size} is "
            f"computed in {self.progress.accumulate} parts. The step is the same, except where "
            "the head norm is batch: its statistics come from smaller parts now."
        ))

    def _epoch(self) -> Iterator[Event]:
        progress, s = self.progress, self.settings
        epoch = epoch_of(progress.step, s.batch_size, s.epoch_size)
        if epoch > progress.epoch and progress.epoch_steps:
            mean = progress.epoch_loss / progress.epoch_steps
            progress.epoch, progress.epoch_loss, progress.epoch_steps = epoch, 0.0, 0
            yield from self._emit(EpochEvent(progress.step, epoch, mean))

    def _duties(self) -> Iterator[Event]:
        """What is due at this step and was not done before a stop or kill."""
        s, step = self.settings, self.progress.step
        is_last = step == s.steps
        if step and self.progress.validated_step != step and (
            step % s.validate_every == 0 or is_last
        ):
            yield from self._validate()
        if self.progress.preview_step != step and (step % s.preview_every == 0 or is_last):
            yield from self._preview()
        if step and step % s.checkpoint_every == 0 and not is_last:
            yield from self._checkpoint()

    def _validate(self) -> Iterator[Event]:
        progress = self.progress
        if self.validation is None:
            return
        with self._averaged():
            metrics = self.evaluation.metrics(self.progress.accumulate)
            value = metrics[self.task.metric]
            progress.metrics = metrics
            is_best = self._is_better(value)
            if is_best:
                with self.clock.measure("best model"):
                    self._save_model(BEST)
        progress.validated_step = progress.step
        if is_best:
            progress.best, progress.best_step, progress.stale = value, progress.step, 0
        elif math.isfinite(value):
            progress.stale += 1
        yield from self._emit(ValidationEvent(progress.step, metrics, is_best))
        if not (math.isfinite(value) or self._is_warned):
            self._is_warned = True
            yield from self._emit(WarningEvent(progress.step, (
                f"the validation gives no {self.task.metric}: its crops hold nothing that can be "
                "scored. The best model and early stopping wait until one does; take more "
                "val_samples or other validation images.")))

    def _is_better(self, value: float) -> bool:
        best = self.progress.best
        if not math.isfinite(value):
            return False
        if best is None:
            return True
        return value > best if self.task.higher_is_better else value < best

    def _averaged(self) -> AbstractContextManager[None]:
        if self.average is None:
            return nullcontext()
        return self.average.applied(self.task.modules)

    def _preview(self) -> Iterator[Event]:
        progress = self.progress
        if not self.parallel.is_main:
            progress.preview_step = progress.step
            return
        with self.clock.measure("preview"), self._averaged():
            path = self.folder.path / PREVIEWS / f"step-{progress.step:08d}.png"
            path.parent.mkdir(exist_ok=True)
            write_whole(path, encode_png(self.evaluation.picture()))
        progress.preview_step = progress.step
        yield from self._emit(PreviewEvent(progress.step, path))

    def _checkpoint(self) -> Iterator[Event]:
        """Write the state, then the model; a kill in between leaves both whole."""
        progress = self.progress
        if self._saved_step == progress.step:
            return
        with self.clock.measure("checkpoint"):
            if self.parallel.is_main:
                average = None if self.average is None else self.average.values
                save_state(self.folder.state_path, TrainingState(
                    progress, self.task.modules.state_dict(), self.stepper.optimizer.state_dict(),
                    average,
                ))
                with self._averaged():
                    self._save_model(MODEL)
        self._saved_step = progress.step
        is_best = progress.best is not None and progress.best_step == progress.step
        yield from self._emit(CheckpointEvent(progress.step, self.folder.state_path, is_best))

    def _save_model(self, name: str) -> None:
        if self.parallel.is_main:
            self.task.save(self.folder.path / name, {
                "step": self.progress.step, "metrics": dict(self.progress.metrics),
            })

    def _finish(self, reason: Reason, error: Exception | None) -> Iterator[Event]:
        """The last event; a run that was stopped, or whose image failed, is saved first."""
        progress = self.progress
        self.control.close()
        problem: OSError | None = None
        try:
            if reason == "stopped":
                yield from self._tell(StoppingEvent(progress.step))
            if reason == "stopped" or isinstance(error, SourceError):
                yield from self._checkpoint()
        except OSError as full:
            problem = full
        message = str(error or "")
        event = FinishedEvent(
            progress.step, self.folder.path, reason, dict(progress.metrics), message)
        if self.parallel.is_main:
            with suppress(OSError) if error is not None else nullcontext():
                self.recorder.write(event)
                for watch in self.watchers:
                    watch(event)
        yield event
        if problem is not None:
            raise disk_error(problem, self.folder.path) from problem

    def _remaining(self) -> float:
        """Seconds that the rest of the run will take."""
        s, clock, step = self.settings, self.clock, self.progress.step
        validations = 0 if self.validation is None else self._left(s.validate_every)
        seconds = clock.estimate("step")
        # A validation batch is a forward pass, about a third of a step, until some were measured.
        guesses = {"validation batch": seconds / 3, "preview": seconds}
        best = self.num_validation * clock.share("best model", "validation batch")
        return validations * best + clock.remaining({
            "step": s.steps - step, "validation batch": validations * self.num_validation,
            "preview": self._left(s.preview_every), "checkpoint": self._left(s.checkpoint_every),
        }, guesses)

    def _left(self, every: int) -> int:
        """How often what is done each `every` steps, and at the end, is due from this step on."""
        s, step = self.settings, self.progress.step
        return s.steps // every - (step - 1) // every + (s.steps % every > 0)
