"""Stage 7 of 7: the whole image to OME-Zarr, resumable.

A block that is done is never computed again; one that was half written is. What could not be
read is reported, left unlabelled and tried again the next time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_muvit.data.annotation_place import image_stem
from napari_muvit.data.output import PredictionStore, read_facts
from napari_muvit.errors import InputError, RunExistsError
from napari_muvit.inference.blocks import BlockWriter
from napari_muvit.inference.cluster import run_on_cluster
from napari_muvit.inference.events import PredictionEvent
from napari_muvit.inference.job import Job, plan_job
from napari_muvit.inference.layout import make_layout
from napari_muvit.inference.lazy import Output
from napari_muvit.inference.model_source import parse_model
from napari_muvit.inference.planes import Planes, open_planes
from napari_muvit.inference.store_run import StoreRun, disk_error

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from napari_muvit.inference.device import Precision
    from napari_muvit.inference.model_source import KernelOption


FILE_SUFFIXES = (
    ".tif", ".tiff", ".png", ".jpg", ".jpeg", ".npy", ".npz", ".h5", ".hdf5", ".csv", ".zip",
    ".geojson", ".json", ".yaml", ".yml",
)


def predict_to_zarr(
    source: Any, model: Any, output: str | Path, *, overlap: float = 0.25,
    probabilities: bool = False, confidence: bool = False, channels: Any = None,
    t: int | None = None, z: int | None = None, image: str | int | None = None,
    tissue: str = "auto", roi: ArrayLike | None = None, batch_size: int | None = None,
    device: str = "auto", precision: Precision = "fp32", threads: int | None = None,
    average: int = 1, kernels: KernelOption = "auto", fmt: str = "0.5", shard: bool = False,
    part: tuple[int, int] | str | None = None, cluster: str | None = None,
) -> Iterator[PredictionEvent]:
    """Predict an image to an OME-Zarr label pyramid; iterate over the result to do the work.

    Arguments mean what they do for `predict` and are checked at the call: a `MuvitError` says
    that they do not fit together, or that `output` holds something else, also a prediction of
    another model or image. Called again with the same ones it continues.

    Parameters
    ----------
    output
        Folder of the label store; ``OUT_probabilities`` and ``OUT_confidence`` lie beside it.
    fmt, shard
        OME-Zarr 0.4 or 0.5; with 0.5 the chunks of a block can share one file.
    part
        (i, n) or "i/n", from 1: the i-th of n processes that fill one store together.
    cluster
        ``local``, or the address of a dask scheduler; see `inference.cluster`.
    """
    check_output(output)
    # workers of a cluster have other working directories
    output = Path(output).expanduser().absolute()
    parsed = parse_model(
        model, device=device, precision=precision, threads=threads, average=average,
        kernels=_known_kernels(output) or kernels,
    )
    planes = open_planes(source, parsed.spec.ndim, channels=channels, t=t, z=z, image=image)
    plan = partial(
        plan_job, model=parsed, overlap=overlap, tissue=tissue, roi=roi, batch_size=batch_size)
    jobs = tuple(map(plan, planes.pyramids))
    kinds = _kinds(probabilities, confidence)
    writer = prepare_stores(planes, jobs, output, kinds, fmt=fmt, shard=shard)
    run = StoreRun(writer, output, parse_part(part))
    return run.events() if cluster is None else run_on_cluster(run, cluster)


def _kinds(probabilities: bool, confidence: bool) -> list[Output]:
    wanted: dict[Output, bool] = {
        "labels": True, "probabilities": probabilities, "confidence": confidence}
    return [kind for kind, is_wanted in wanted.items() if is_wanted]


def _known_kernels(output: Path) -> KernelOption | None:
    """The kernels that a prediction was begun with, which it is finished with."""
    names = (read_facts(output) or {}).get("kernels")
    return (names[0], names[1], names[2]) if names else None


def check_output(output: str | Path) -> None:
    """Refuse a name that promises another format.

    Raises
    ------
    InputError
        If it ends like a picture's or a table's.
    """
    path = Path(output)
    if path.suffix.lower() in FILE_SUFFIXES:
        better = path.with_name(image_stem(path.name) + ".ome.zarr")
        raise InputError(
            f"output {str(output)!r} is the name of a {path.suffix} file; predictions are written "
            f"as OME-Zarr folders. Pass for example {str(better)!r}."
        )


def parse_part(part: tuple[int, int] | str | None) -> tuple[int, int]:
    """Which part of how many; (1, 1) for the whole.

    Raises
    ------
    InputError
        If it is not i/n with 1 <= i <= n.
    """
    if part is None:
        return 1, 1
    pieces = part.split("/") if isinstance(part, str) else list(part)
    if len(pieces) == 2 and all(str(p).strip().isdigit() for p in pieces):
        number, total = int(pieces[0]), int(pieces[1])
        if 1 <= number <= total:
            return number, total
    raise InputError(f"part is {part!r}; it must be i/n with i from 1 to n. Pass for example 2/8.")


def prepare_stores(
    planes: Planes, jobs: tuple[Job, ...], output: Path, outputs: list[Output], *, fmt: str,
    shard: bool,
) -> BlockWriter:
    """Create the stores, or open those that an earlier call left.

    Raises
    ------
    RunExistsError
        If they belong to another model, image or set of options.
    """
    paths = {kind: output_path(output, kind) for kind in outputs}
    facts = describe_jobs(jobs)
    existing = {kind: read_facts(path) for kind, path in paths.items()}
    for kind, found in existing.items():
        if found is not None:
            check_facts(found, facts, paths[kind])
    for kind in reversed(outputs):  # labels last: they say that the others are there
        if existing[kind] is None:
            if existing["labels"] is not None:
                raise RunExistsError(
                    f"{output} was begun without {kind}; outputs cannot be added to a prediction. "
                    "Choose another output."
                )
            _create(planes, jobs[0], paths[kind], kind, facts, fmt=fmt, shard=shard)
    return BlockWriter(
        jobs, tuple(planes.indices), planes.axes, {k: str(p) for k, p in paths.items()}
    )


def _create(
    planes: Planes, job: Job, path: Path, kind: Output, facts: dict[str, Any], *, fmt: str,
    shard: bool,
) -> None:
    table = job.spec.class_table
    layout = make_layout(planes, job, kind, fmt=fmt, shard=shard)
    try:
        PredictionStore.create(
            path, layout, facts=facts, classes=table if kind == "labels" else None,
            dtype=table.dtype if kind == "labels" else np.float16,
            channel_names=table.names if kind == "probabilities" else None,
            channel_colors=table.colors if kind == "probabilities" else None,
            fill_value=int(table.to_values(np.array(-1))) if kind == "labels" else 0,
        )
    except OSError as error:
        found = read_facts(path)  # another part of the same run was quicker
        if found is None:
            raise disk_error(error, path) from error
        check_facts(found, facts, path)


def output_path(output: Path, kind: Output) -> Path:
    """Where an output lies: the labels at `output`, the others beside it."""
    if kind == "labels":
        return output
    stem, dot, rest = output.name.partition(".")
    return output.with_name(f"{stem}_{kind}{dot}{rest}")


def describe_jobs(jobs: tuple[Job, ...]) -> dict[str, Any]:
    """What a prediction is made of: equal facts give equal bytes."""
    first = jobs[0]
    model = first.model
    mark = hashlib.sha256("".join(job.fingerprint for job in jobs).encode()).hexdigest()[:24]
    return {
        "job": mark, "model": first.spec.fingerprint, "image": first.pyramid.fingerprint,
        "image_name": first.pyramid.name, "levels": list(first.plan.levels),
        "tile": list(first.plan.size), "step": list(first.plan.step),
        "precision": getattr(model, "precision", "fp32"),
        "kernels": list(getattr(model, "kernels", ())),
        "grid": {"scale": list(first.output_scale), "offset": list(first.output_offset)},
    }


def check_facts(found: dict[str, Any], facts: dict[str, Any], path: Path) -> None:
    """Refuse to continue a prediction that is made of something else."""
    if found.get("job") == facts["job"] and found.get("precision") == facts["precision"]:
        return
    what = (
        "another model" if found.get("model") != facts["model"]
        else f"another image ({found.get('image_name')})" if found.get("image") != facts["image"]
        else "the same model and image with other options (overlap, tissue, region, precision)"
    )
    raise RunExistsError(
        f"{path} holds a prediction of {what}, and nothing is overwritten. Choose another output, "
        "or remove it first."
    )
