"""Stage 7 of 7: many images in one call; one that fails does not stop the rest.

Several processes can share the work (``part``): whole images of a cohort, or the blocks of a
single image. Whoever finishes last finds everything there and writes the complete table.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.config import PredictConfig
from napari_muvit.data.annotation_place import image_stem
from napari_muvit.data.cohort import is_cohort, resolve_images
from napari_muvit.data.label_blocks import BlockArray
from napari_muvit.data.output import PredictionStore, read_facts, write_text
from napari_muvit.errors import InputError, MuvitError
from napari_muvit.inference.events import FinishedEvent, PredictionEvent, WarningEvent
from napari_muvit.inference.model_source import parse_model
from napari_muvit.inference.to_store import (
    check_output,
    parse_part,
    predict_to_zarr,
)

TABLE_NAME = "areas.csv"
COLUMNS = ("image", "value", "name", "pixels", "px", "um2", "um3")


def predict_images(config: PredictConfig) -> Iterator[PredictionEvent]:
    """Predict the images of a config; iterate over the result to do the work.

    One image goes to the store ``output``; several, or a CSV, to one store each in the folder
    ``output``, with a table of areas beside them.

    Raises
    ------
    MuvitError
        At the call, if the model cannot be loaded, or the only image cannot be read.
    """
    rows = resolve_images(config.images, split="test")
    images = [row.image for row in rows]
    if len(images) == 1 and not is_cohort(config.images[0]):
        events = predict_to_zarr(
            images[0], config.model, config.output, part=config.part, **shared_options(config)
        )
        return _with_outlines(events, config)
    check_output(config.output)
    folder = Path(config.output).expanduser().absolute()
    if folder.is_file() or (folder / "zarr.json").exists() or (folder / ".zgroup").exists():
        raise InputError(
            f"output {config.output!r} is a single image; several images need a folder for one "
            "store each. Pass another output."
        )
    parse_model(config.model, device=config.device, precision=config.precision,
                threads=config.threads, average=config.average, kernels=config.kernels)
    return _predict_many(images, folder, config)


def shared_options(config: PredictConfig) -> dict[str, Any]:
    """The options that hold for every image, as `predict_to_zarr` takes them."""
    names = (
        "channels", "t", "z", "overlap", "tissue", "average", "batch_size", "probabilities",
        "confidence", "fmt", "shard", "cluster", "device", "precision", "threads", "kernels",
    )
    options = {name: getattr(config, name) for name in names}
    if config.roi is not None:
        half = len(config.roi) // 2
        options["roi"] = [list(config.roi[:half]), list(config.roi[half:])]
    return options


def _predict_many(
    images: Sequence[str], folder: Path, config: PredictConfig
) -> Iterator[PredictionEvent]:
    begin = time.monotonic()
    number, total = parse_part(config.part)
    outputs = {
        image: folder / f"{name}.ome.zarr"
        for image, name in zip(images, store_names(images), strict=True)
    }
    failed, open_stores = 0, 0
    for image in images[number - 1::total]:
        try:
            events = predict_to_zarr(
                image, config.model, outputs[image], **shared_options(config)
            )
            for event in _with_outlines(events, config):
                if isinstance(event, FinishedEvent):
                    failed += event.failed > 0
                    open_stores += not event.complete
                yield event
        except (MuvitError, OSError) as error:
            failed += 1
            yield WarningEvent(f"{image} is left out: {error}", image)
    rows = collect_areas(outputs)
    write_table(folder / TABLE_NAME, rows)
    complete = all(_is_complete(output) for output in outputs.values())
    yield FinishedEvent(folder, complete, failed, time.monotonic() - begin, rows,
                        part_complete=not failed and not open_stores)


def store_names(images: Sequence[str]) -> list[str]:
    """A different name for each image: its file's, with its folder's where two are alike."""
    stems = [image_stem(Path(image).name) or "image" for image in images]
    names: list[str] = []
    for image, stem in zip(images, stems, strict=True):
        name = stem if stems.count(stem) == 1 else f"{Path(image).parent.name}_{stem}"
        taken = sum(other == name or other.startswith(f"{name}-") for other in names)
        names.append(f"{name}-{taken + 1}" if name in names else name)
    return names


def collect_areas(outputs: dict[str, Path]) -> list[dict[str, Any]]:
    """Rows of all finished predictions, with the image in front."""
    rows = []
    for image, output in outputs.items():
        facts = _facts(output)
        rows += [{"image": image, **row} for row in (facts.get("areas") or ())]
    return rows


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as CSV."""
    text = io.StringIO()
    known = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    writer = csv.DictWriter(text, known or COLUMNS[:4], extrasaction="ignore",
                            lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _facts(output: Path) -> dict[str, Any]:
    try:
        return read_facts(output) or {}
    except MuvitError:  # something else stands there
        return {}


def _is_complete(output: Path) -> bool:
    return bool(_facts(output).get("complete"))


def _with_outlines(
    events: Iterator[PredictionEvent], config: PredictConfig
) -> Iterator[PredictionEvent]:
    for event in events:
        if isinstance(event, FinishedEvent) and event.complete and config.geojson:
            export_outlines(event.output)
        yield event


def export_outlines(store: str | Path, output: str | Path | None = None) -> list[Path]:
    """Write the outlines of a finished prediction for QuPath; returns the files.

    Corners are in full-resolution pixels of the image. Volumes give one file for each plane.

    Parameters
    ----------
    store
        A label store that `predict_to_zarr` wrote.
    output
        File to write; by default beside the store.
    """
    from napari_muvit.data.geojson import write_geojson
    from napari_muvit.data.labels import read_class_table
    from napari_muvit.data.outlines import trace_labels
    from napari_muvit.data.pyramid import open_pyramid

    path = Path(store)
    table = read_class_table(open_pyramid(str(path)))
    facts = read_facts(path)
    if table is None or facts is None or "grid" not in facts:
        raise InputError(
            f"{path} is no prediction of this package, so what its labels mean is not known. "
            "Predict again, or pass the store that predict wrote."
        )
    scale, offset = facts["grid"]["scale"], facts["grid"]["offset"]
    corner = [place - size / 2 for place, size in zip(offset, scale, strict=True)][-2:]
    values = [item.value for item in table.classes if item.value != table.background]
    # A store may be called anything; only .zarr is an ending of it.
    stem = image_stem(path.name) if path.suffix == ".zarr" else path.name
    target = Path(output) if output is not None else path.with_name(f"{stem}.geojson")
    files = []
    for number, labels in _label_planes(PredictionStore(path).arrays[0]):
        file = target if number is None else target.with_name(
            f"{target.stem}_{number}{target.suffix}")
        outlines = trace_labels(labels, values, level=scale[-2:], corner=corner)
        write_geojson(file, outlines, table, plane=number)
        files.append(file)
    return files


def _label_planes(array: Any) -> Iterator[tuple[int | None, BlockArray]]:
    """Every plane of a label array with its number; None for the only one."""
    def read(start: Sequence[int], size: Sequence[int]) -> NDArray[Any]:
        cut = (slice(s, s + n) for s, n in zip(start, size, strict=True))
        return np.asarray(array[tuple(cut)])

    for number, lead in enumerate(np.ndindex(*array.shape[:-2])):
        plane = BlockArray(array.shape[-2:], array.dtype, read, lead)
        yield number if array.ndim > 2 else None, plane
