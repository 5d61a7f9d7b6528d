"""Stage 7 of 7 on several processes: dask.distributed computes blocks, this process keeps book.

Each worker gets the writer once, loads the model from its folder once, and writes its own
blocks; only records come back. A block's bytes do not depend on who computed it as long as
device, threads and kernels are the same, so the result is that of a single process. A killed
worker costs the blocks it was computing: they are given to another.
"""

from __future__ import annotations

import importlib
import logging
import os
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from napari_muvit.errors import InputError, require_extra
from napari_muvit.inference.blocks import BlockRecord, BlockWriter, Unit
from napari_muvit.inference.events import PredictionEvent, WarningEvent
from napari_muvit.inference.model_source import ModelSource
from napari_muvit.inference.predictor import Predictor
from napari_muvit.inference.store_run import StoreRun
from napari_muvit.inference.tiles import BoolArray

AHEAD = 2
"""Blocks per worker that are under way or waiting; more would only fill the scheduler."""

PATIENCE_S = 20
"""How long the first worker may take before it is said that it is waited for."""

LOCAL_HOST = "127.0.0.1"

MOST_WRITERS = 16
"""Runs whose writers a worker remembers at a time."""

_WRITERS: dict[str, BlockWriter] = {}
"""Writers by run, in a worker's process."""


def run_on_cluster(run: StoreRun, cluster: str) -> Iterator[PredictionEvent]:
    """The events of a run whose blocks are computed by a cluster.

    Parameters
    ----------
    cluster
        ``local`` or ``local:4`` (one worker for each GPU, or that many processes), ``slurm`` or
        ``slurm:8`` (jobs, by dask-jobqueue's own configuration), or a scheduler's address.

    Raises
    ------
    MissingExtraError
        If distributed (or dask-jobqueue) is not installed.
    InputError
        If the model was given as an object: workers load it from its folder.
    """
    try:
        import distributed  # noqa: F401
    except ImportError:
        raise require_extra("distributed", "cluster", "prediction on a cluster") from None
    if not isinstance(run.writer.jobs[0].model, ModelSource):
        raise InputError(
            "the model is an object in memory; workers of a cluster load it from its folder. Pass "
            "the model's folder."
        )
    return _events(run, cluster)


def _events(run: StoreRun, cluster: str) -> Iterator[PredictionEvent]:
    begin = time.monotonic()
    if not run.is_complete:
        yield from run.warn_empty()
        units = run.own_units()
        if units:
            client, closers = connect(cluster, run.writer.jobs[0].model)
            try:
                yield from _compute(run, client, units, begin)
            finally:
                for closer in closers:
                    closer.close()
        yield from run.finish()
    yield run.finished(time.monotonic() - begin)


def connect(cluster: str, model: ModelSource | Predictor) -> tuple[Any, list[Any]]:
    """A client, and what to close after it: the client, then a cluster that was made for it."""
    from distributed import Client

    kind, _, count = cluster.partition(":")
    if kind == "local":
        made = make_local_cluster(int(count) if count else None, model)
    elif kind == "slurm":
        made = _make_slurm_cluster(int(count) if count else 1)
    else:
        try:
            client = Client(cluster, set_as_default=False)
        except OSError as error:
            raise InputError(
                f"there is no dask scheduler at {cluster} ({error}). Start one with `dask "
                "scheduler` and pass the address that it prints, or use --cluster local."
            ) from error
        return client, [client]
    client = Client(made, set_as_default=False)
    return client, [client, made]


def make_local_cluster(count: int | None, model: ModelSource | Predictor) -> Any:
    """Worker processes on this machine: one for each GPU, or sharing the cores evenly."""
    from distributed import Nanny, Scheduler, SpecCluster

    num_gpus = _num_gpus(model)
    number = count or max(1, num_gpus)
    threads = getattr(model, "threads", None) or max(1, (os.cpu_count() or 1) // number)
    workers, gpus = {}, _gpu_names(num_gpus)
    for i in range(number):
        env = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        if num_gpus:
            env["CUDA_VISIBLE_DEVICES"] = gpus[i % num_gpus]
        options = {"nthreads": 1, "env": env, "memory_limit": 0, "host": LOCAL_HOST,
                   "silence_logs": logging.ERROR}
        workers[i] = {"cls": Nanny, "options": options}
    scheduler = {"cls": Scheduler, "options": {
        "host": LOCAL_HOST, "port": 0, "dashboard": False, "dashboard_address": ":0"}}
    return SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.ERROR)


def _num_gpus(model: ModelSource | Predictor) -> int:
    import torch

    device = getattr(model, "device", "cpu")
    return torch.cuda.device_count() if device in {"auto", "cuda"} else 0


def _gpu_names(count: int) -> list[str]:
    """What this process's GPUs are called in CUDA_VISIBLE_DEVICES: by number, UUID or MIG name."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(i) for i in range(count)]
    return [name.strip() for name in visible.split(",")][:count]


def _make_slurm_cluster(jobs: int) -> Any:
    try:
        jobqueue = importlib.import_module("dask_jobqueue")
    except ImportError:
        raise require_extra("dask_jobqueue", "slurm", "cluster slurm") from None
    cluster = jobqueue.SLURMCluster()
    cluster.scale(jobs=jobs)
    return cluster


class Stretches:
    """Hands out blocks so that each worker gets neighbours, whose tiles it then shares.

    A worker goes along its own stretch; one without takes the far half of the one with most work.

    Parameters
    ----------
    units
        Blocks, in the order of computation.
    weights
        Their work, in any unit; alike by default.
    """

    def __init__(self, units: Sequence[Unit], weights: Sequence[int] | None = None) -> None:
        self._runs: dict[str, deque[Unit]] = {"": deque(units)}
        self._weights = dict(zip(units, weights or [1] * len(units), strict=True))

    def __bool__(self) -> bool:
        return any(self._runs.values())

    def take(self, worker: str) -> Unit | None:
        """The next block of `worker`, None when all are handed out."""
        if not self._runs.get(worker):
            self._runs[worker] = self._runs.pop("", deque()) or self._split()
        run = self._runs[worker]
        return run.popleft() if run else None

    def _split(self) -> deque[Unit]:
        longest = max(self._runs.values(), key=self._weigh, default=deque())
        half: deque[Unit] = deque()
        taken, wanted = 0, self._weigh(longest) / 2
        while longest and taken < wanted:
            half.appendleft(longest.pop())
            taken += self._weights[half[0]]
        return half

    def _weigh(self, run: deque[Unit]) -> int:
        return sum(self._weights[unit] for unit in run)


class Workload:
    """Blocks under way on a cluster: a few for each worker, wherever it joins or leaves."""

    def __init__(self, run: StoreRun, client: Any, units: Sequence[Unit]) -> None:
        from distributed import as_completed

        self._run, self._client, self._key = run, client, uuid.uuid4().hex
        client.register_plugin(make_plugin(self._key, run.writer), name=f"muvit-{self._key}")
        self._stretches = Stretches(units, [run.weight(unit) for unit in units])
        self._futures = as_completed(loop=client.loop)
        self._owners: dict[Any, tuple[Unit, str]] = {}

    def __iter__(self) -> Iterator[tuple[Unit, Any]]:
        """Blocks and their finished futures, until all are done."""
        while self._stretches:
            self._client.wait_for_workers(1)
            self._submit()
            for future in self._futures:
                unit, _ = self._owners.pop(future)
                self._submit()
                yield unit, future

    def _submit(self) -> None:
        load = Counter(worker for _, worker in self._owners.values())
        workers = list(self._client.scheduler_info(n_workers=-1)["workers"])
        for _ in range(AHEAD):
            for worker in workers:
                unit = self._stretches.take(worker) if load[worker] < AHEAD else None
                if unit is None:
                    continue
                load[worker] += 1
                # another worker may have it if this one dies
                future = self._client.submit(
                    compute_unit, self._key, unit, self._run.before(unit), pure=False,
                    workers=[worker], allow_other_workers=True,
                )
                self._owners[future] = unit, worker
                self._futures.add(future)

    def close(self) -> None:
        """Let go of what is still under way, and of the writer on every worker."""
        with suppress(OSError, RuntimeError, TimeoutError):  # a cluster that is gone has let go
            self._client.cancel(list(self._owners), force=True)
            self._client.unregister_worker_plugin(f"muvit-{self._key}")


def _compute(
    run: StoreRun, client: Any, units: list[Unit], begin: float
) -> Iterator[PredictionEvent]:
    total, computed = run.count_tiles(units), 0
    yield run.progress(0, total, None)
    if not _has_worker(client):
        yield WarningEvent(
            "no worker of the cluster has started yet; waiting for the first. Its job may be in "
            "a queue; stopping now loses nothing."
        )
    work = Workload(run, client, units)
    try:
        for unit, future in work:
            if future.status == "error":
                yield WarningEvent(_lost(unit, future.exception()), run.image)
                run.failed += 1
                continue
            record = BlockRecord.from_line(future.result())
            yield from run.settle(record)
            computed = min(total, computed + len(record.entropies))
            pace = (time.monotonic() - begin) / max(1, computed)
            yield run.progress(computed, total, pace * (total - computed))
    finally:
        work.close()
    yield run.progress(total, total, 0.0)


def _has_worker(client: Any) -> bool:
    """Whether a worker comes before patience ends."""
    try:
        client.wait_for_workers(1, timeout=PATIENCE_S)
    except TimeoutError:
        return False
    return True


def _lost(unit: Unit, error: BaseException | None) -> str:
    return f"block {unit[1]} is left unfinished: {error}"


def make_plugin(key: str, writer: BlockWriter) -> Any:
    """A worker plugin that brings the writer to every worker, late ones and restarted ones too."""
    from distributed import WorkerPlugin

    class BringWriter(WorkerPlugin):  # type: ignore[misc]
        def setup(self, worker: Any) -> None:
            """Keep the writer in the worker's process."""
            from napari_muvit.inference.cluster import keep_writer

            keep_writer(key, writer)

        def teardown(self, worker: Any) -> None:
            """Let go of it when the run has ended; its model and tiles take memory."""
            from napari_muvit.inference.cluster import keep_writer

            keep_writer(key, None)

    return BringWriter()


def keep_writer(key: str, writer: BlockWriter | None) -> None:
    """Remember a run's writer in this process; None forgets it."""
    _WRITERS.pop(key, None)
    if writer is not None:
        while len(_WRITERS) >= MOST_WRITERS:  # of runs that were killed
            del _WRITERS[next(iter(_WRITERS))]
        _WRITERS[key] = writer


def compute_unit(key: str, unit: Unit, before: BoolArray | None) -> dict[str, Any]:
    """Compute and write one block in a worker; its record as plain data."""
    return _WRITERS[key].compute(unit, before).to_line()
