"""Stage 7 of 7: a dask array whose blocks run the model when they are computed.

Blocks are several tiles wide, because a graph of single tiles would take seconds and gigabytes
to build. Neighbouring blocks compute the tiles on their common rim again unless they still are
in memory; the result is the same either way.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from napari_muvit.data.labels import ClassTable
from napari_muvit.errors import InputError, RunError
from napari_muvit.inference.engine import BlockResult, engine_of
from napari_muvit.inference.job import Job, plan_job
from napari_muvit.inference.model_source import parse_model
from napari_muvit.inference.planes import Planes, open_planes
from napari_muvit.inference.tiles import Index

if TYPE_CHECKING:
    import dask.array as da
    from numpy.typing import ArrayLike

    from napari_muvit.inference.device import Precision
    from napari_muvit.inference.model_source import KernelOption

Output = Literal["labels", "probabilities", "confidence"]


def predict(
    source: Any, model: Any, *, overlap: float = 0.25, probabilities: bool = False,
    confidence: bool = False, channels: Any = None, t: int | None = None, z: int | None = None,
    image: str | int | None = None, tissue: str = "auto", roi: ArrayLike | None = None,
    batch_size: int | None = None, device: str = "auto", precision: Precision = "fp32",
    threads: int | None = None, average: int = 1, kernels: KernelOption = "auto",
) -> da.Array:
    """A dask array of the labels of an image, computed where and when it is asked for.

    Parameters
    ----------
    source, model
        Anything that `open_pyramid` takes; run folder, model folder, or a loaded segmenter.
    overlap
        Share of a tile that neighbours have in common; they are blended smoothly.
    probabilities, confidence
        Probabilities (K, *S) float32, or the largest of them (*S), instead of labels.
    t, z
        One time point or plane; by default all that the model does not read itself stand
        in front, (T, Z, *S).
    tissue, roi
        ``auto`` leaves empty places out, ``none`` predicts everything, or the path of a mask;
        and a box (2, A) in world px. What lies outside is unlabelled.
    channels, image, batch_size, device, precision, threads, average, kernels
        See `PredictConfig`.

    Returns
    -------
    dask.array.Array
        On the grid of ``levels[0]``; label values are those of the model's class table.
    """
    parsed = parse_model(
        model, device=device, precision=precision, threads=threads, average=average,
        kernels=kernels,
    )
    planes = open_planes(source, parsed.spec.ndim, channels=channels, t=t, z=z, image=image)
    plan = partial(
        plan_job, model=parsed, overlap=overlap, tissue=tissue, roi=roi, batch_size=batch_size)
    return _stack(_lazy_planes(planes, plan, _output(probabilities, confidence)), planes.shape)


def _output(probabilities: bool, confidence: bool) -> Output:
    if probabilities and confidence:
        raise InputError("probabilities and confidence exclude each other; pass one of them.")
    return "probabilities" if probabilities else "confidence" if confidence else "labels"


def _lazy_planes(planes: Planes, plan: Callable[..., Job], output: Output) -> list[da.Array]:
    first, *others = planes.pyramids
    job = plan(first)
    # other planes have the same tiles; tissue and intensities are looked at when asked for
    return [
        lazy_array(job, output),
        *(lazy_array(job, output, partial(plan, pyramid)) for pyramid in others),
    ]


def _stack(arrays: list[da.Array], shape: tuple[int, ...]) -> da.Array:
    import dask.array as da

    if not shape:
        return arrays[0]
    rows = len(arrays) // shape[0]
    parts = [_stack(arrays[i * rows:(i + 1) * rows], shape[1:]) for i in range(shape[0])]
    return da.stack(parts)


def lazy_array(
    job: Job, output: Output = "labels", make_job: Callable[[], Job] | None = None
) -> da.Array:
    """The dask array of one job.

    Parameters
    ----------
    make_job
        Makes the job when a block is computed, where `job` has only its tiles and classes.
    """
    import dask.array as da
    from dask.highlevelgraph import HighLevelGraph

    plan = job.plan
    is_known = job.spec.fingerprint and make_job is None
    mark = _mark_of(job) if is_known else uuid.uuid4().hex
    name, job_key = f"muvit-{output}-{mark}", f"muvit-job-{mark}"
    lead = (0,) if output == "probabilities" else ()
    graph: dict[Any, Any] = {job_key: job if make_job is None else (make_job,)}
    for index in np.ndindex(*plan.num_blocks):
        graph[(name, *lead, *index)] = (compute_block, job_key, index, output)
    chunks: list[tuple[int, ...]] = [
        tuple(min(b, n - start) for start in range(0, n, b))
        for n, b in zip(plan.shape, plan.block, strict=True)
    ]
    if lead:
        chunks.insert(0, (len(job.spec.class_table),))
    layer = HighLevelGraph.from_collections(name, graph, dependencies=[])
    dtype = job.spec.class_table.dtype if output == "labels" else np.dtype(np.float32)
    return da.Array(layer, name, tuple(chunks), dtype=dtype)


def _mark_of(job: Job) -> str:
    """Equal for jobs that give the same bits, so that dask computes their blocks once.

    A store goes on with other kernels than it was begun with; arrays that are compared must not.
    """
    model: Any = job.model
    while hasattr(model, "predictor"):  # averages over turns
        model = model.predictor
    how = getattr(model, "computing", model)
    names = [str(getattr(how, name, "")) for name in ("precision", "kernels", "device")]
    return job.fingerprint + hashlib.sha256(repr(names).encode()).hexdigest()[:8]


def compute_block(job: Job, index: Index, output: Output) -> NDArray[Any]:
    """One block of a job's output.

    Raises
    ------
    RunError
        If a tile of it cannot be computed.
    """
    result = engine_of(job).compute(job.plan.block_region(index))
    if result.failures:
        first = result.failures[0]
        raise RunError(
            f"{len(result.failures)} tiles of {job.pyramid.name!r} cannot be predicted; tile "
            f"{first.index}: {first.message} predict_to_zarr leaves such tiles out and goes on."
        )
    return render(result, job.spec.class_table, output)


def render(result: BlockResult, table: ClassTable, output: Output) -> NDArray[Any]:
    """Labels, probabilities or confidence of a block; where it is not done, nothing is judged."""
    if output == "probabilities":
        return result.probabilities
    highest: NDArray[np.float32] = result.probabilities.max(axis=0)
    if output == "confidence":
        return highest
    index = result.probabilities.argmax(axis=0).astype(np.int16)
    index[highest <= 0] = -1
    return table.to_values(index)
