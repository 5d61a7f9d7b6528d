"""Which samples a step sees, and how they reach it.

Sample ``g = step * batch_size + i`` is the same whichever process reads it, however many
loader processes there are, and whether or not the run was interrupted before.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import closing, contextmanager, suppress
from functools import partial
from itertools import pairwise
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from napari_muvit.errors import MuvitError, RunError
from napari_muvit.models.devices import copy_to, widest_float
from napari_muvit.training.parallel import Parallel

Batch = dict[str, Tensor]
Made = TypeVar("Made")

POLL_SECONDS = 0.25
"""How often a run that waits for a batch looks whether it should stop."""

NOTICE_SECONDS = 1.0
"""How long torch may take to tell the main thread that a loader process died."""

FROM_PROCESS = "DataLoader worker process"
"""What torch writes into the exceptions that a living loader process sends."""


class BatchSource(Protocol):
    """Gives the local part of the global batch of every step."""

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """Batches of the steps from `first_step` to before `last_step`."""
        ...


class StepSampler:
    """Sample numbers of this process for each step, as a torch batch sampler."""

    def __init__(
        self, first_step: int, last_step: int, batch_size: int, parallel: Parallel,
        limit: int | None = None,
    ) -> None:
        self.steps = range(first_step, last_step)
        self.batch_size = batch_size
        self.part = parallel.share(batch_size)
        self.limit = limit

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            first = step * self.batch_size
            numbers = range(first + self.part.start, first + self.part.stop)
            kept = [n for n in numbers if self.limit is None or n < self.limit]
            if kept:
                yield kept


class SampleLoader:
    """Batches of a map-style dataset whose sample depends on its number alone.

    Parameters
    ----------
    dataset
        ``dataset[i]`` is a dict of tensors, for any i from 0 on.
    batch_size
        Samples of all processes together.
    workers
        Loader processes; with 0 one thread reads a batch ahead while the model works.
    limit
        Samples with this number or a higher one are left out.
    check
        Looks at every batch before it is used, and raises where something is wrong with it.
    interrupt
        Called now and then while a batch is awaited; raises to give up waiting.
    """

    def __init__(
        self, dataset: Dataset[Any], batch_size: int, workers: int, parallel: Parallel,
        limit: int | None = None, check: Callable[[Batch], None] | None = None,
        interrupt: Callable[[], None] | None = None,
    ) -> None:
        self.interrupt = interrupt
        self.dataset, self.batch_size, self.workers = dataset, batch_size, workers
        self.parallel, self.limit, self.check = parallel, limit, check

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """The local batches of the steps from `first_step` to before `last_step`."""
        sampler = StepSampler(first_step, last_step, self.batch_size, self.parallel, self.limit)
        read = self._from_processes if self.workers else self._from_thread
        with closing(read(sampler)) as batches:
            for batch in batches:
                if self.check is not None:
                    self.check(batch)
                yield batch

    def _from_processes(self, sampler: StepSampler) -> Generator[Batch]:
        loader: DataLoader[Any] = DataLoader(
            self.dataset, batch_sampler=sampler, num_workers=self.workers,
            # fork hangs zarr's threads; spawn works everywhere alike
            multiprocessing_context="spawn", persistent_workers=True,
            generator=torch.Generator(), collate_fn=default_collate,
        )
        batches = iter(loader)
        with closing(Reader()) as reader:
            while True:
                with _worker_errors():
                    batch = self._await(reader.submit(partial(next_batch, batches)))
                if batch is None:
                    return
                yield batch

    def _from_thread(self, sampler: StepSampler) -> Generator[Batch]:
        pending: Future[Batch] | None = None
        with closing(Reader()) as reader:
            for numbers in sampler:
                upcoming = reader.submit(partial(read_batch, self.dataset, numbers))
                if pending is not None:
                    yield self._await(pending)
                pending = upcoming
            if pending is not None:
                yield self._await(pending)

    def _await(self, pending: Future[Made]) -> Made:
        while self.interrupt is not None and not wait([pending], POLL_SECONDS).done:
            self.interrupt()
        return pending.result()


class Reader:
    """One thread that does what it is given in turn.

    A read that hangs on a network holds up neither a stop nor the end of the process, which
    waits for the threads of an executor, but not for this one.
    """

    def __init__(self) -> None:
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        threading.Thread(target=self._run, name="muvit-reader", daemon=True).start()

    def submit(self, make: Callable[[], Made]) -> Future[Made]:
        """What `make` will return or raise."""
        future: Future[Made] = Future()
        self._work.put((future, make))
        return future

    def close(self) -> None:
        """End the thread after what it is doing now; what is waiting is left undone."""
        with suppress(Empty):
            while (item := self._work.get_nowait()) is not None:
                item[0].cancel()
        self._work.put(None)

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            future, make = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(make())
            except Exception as error:  # noqa: BLE001 - it belongs to whoever waits
                future.set_exception(error)


def read_batch(dataset: Any, numbers: Sequence[int]) -> Batch:
    """The samples of the given numbers as one batch."""
    batch: Batch = default_collate([dataset[number] for number in numbers])
    return batch


def next_batch(batches: Iterator[Batch]) -> Batch | None:
    """The next of `batches`, which processes make, or None at their end.

    A process that dies while a batch is handed over breaks the connection, sometimes before
    torch finds it dead. torch's own notice, in the main thread, goes first.
    """
    try:
        return next(batches, None)
    except (ConnectionError, EOFError, FileNotFoundError) as error:
        if FROM_PROCESS in str(error):
            raise
        time.sleep(NOTICE_SECONDS)
        raise _died(str(error) or type(error).__name__) from error


@contextmanager
def _worker_errors() -> Iterator[None]:
    """torch rebuilds a loader process's exception with its traceback as text; undo that."""
    try:
        yield
    except MuvitError as error:
        if FROM_PROCESS not in str(error):
            raise
        lines = [line for line in str(error).strip().splitlines() if line]
        raise type(error)(lines[-1].split(": ", 1)[-1]) from error


def dead_loader(error: Exception) -> RunError | None:
    """What to say where `error` is torch's notice that a loader process died, else None.

    torch raises it from a signal handler, wherever the main thread happens to be.
    """
    text = str(error)
    if not isinstance(error, RuntimeError) or "DataLoader worker" not in text:
        return None
    return _died(text)


def _died(told: str) -> RunError:
    return RunError(
        f"a loader process died ({told.splitlines()[0][:200]}). The last checkpoint is whole; "
        "resume, with fewer workers if memory was short."
    )


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """`batch` in at most `parts` pieces of nearly equal numbers of samples, none empty."""
    size = len(next(iter(batch.values())))
    edges = [size * part // parts for part in range(parts + 1)]
    return [{k: v[a:b] for k, v in batch.items()} for a, b in pairwise(edges) if b > a]


def more_parts(size: int, parts: int) -> int:
    """Pieces to split `size` samples into after memory ran out with `parts` of them.

    Raises
    ------
    RunError
        If a piece was one sample already.
    """
    if parts >= size:
        raise RunError(
            "memory ran out with one sample at a time. Take a smaller crop_size, fewer levels, a "
            "smaller preset or activation_checkpointing, and start again."
        )
    return min(size, 2 * parts)


def move_batch(batch: Batch, device: torch.device) -> Batch:
    """`batch` on `device`, boxes in float64 wherever they are."""
    if device.type == "cpu":
        return batch
    # Where there is no float64, boxes must keep their precision until they are centred.
    stay = None if widest_float(device) is torch.float64 else torch.float64
    # Only from pinned memory is a copy to a GPU not waited for.
    is_pinned = device.type == "cuda"
    return {k: v if v.dtype == stay else copy_to(
                v.pin_memory() if is_pinned and v.device.type == "cpu" else v, device)
            for k, v in batch.items()}
