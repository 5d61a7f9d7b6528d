"""Downloads to a cohort: one OME-Zarr for each image and label image, and their table."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.downloads import FINDERS, Download
from experiments.label_files import (
    MASK,
    find_classes,
    open_mask,
    open_regions,
    with_pixel_size,
)
from napari_muvit import api
from napari_muvit.data.cohort import CohortRow, write_cohort
from napari_muvit.data.convert import LOG_NAME
from napari_muvit.data.labels import ClassTable
from napari_muvit.data.lock import WriterLock
from napari_muvit.doors.commands import show_events
from napari_muvit.errors import InputError

LEVELS = {"mouse": (1, 8, 32), "kpis": (1, 8, 32, 64)}
COHORT, CLASSES = "images.csv", "classes.csv"


def prepare(
    kind: str, raw: Path, output: Path, classes: Path | None = None,
    channels: Sequence[int] | None = None, pixel_size: float | None = None,
) -> Path:
    """The cohort CSV of a set, ``mouse`` or ``kpis``; what is there already is kept.

    Parameters
    ----------
    raw, output
        Folder of the download, and the one that stores and table are written to.
    classes
        Class table with names for the regions, else they are looked for in all pictures.
    channels
        Channels of the images to keep; all by default.
    pixel_size
        um, for images whose file does not say it.

    Raises
    ------
    MuvitError
        If something is missing, cannot be read, or does not fit together.
    """
    found = FINDERS[kind](raw)
    output.mkdir(parents=True, exist_ok=True)
    with WriterLock(output / ".prepare.lock", str(output)):
        table = MASK if kind == "kpis" else _class_table(found, output, classes)
        rows = []
        for number, one in enumerate(found, start=1):
            name = f"{number}/{len(found)} {one.group} {one.name}"
            rows.append(_convert(one, kind, output, table, name, channels, pixel_size))
        write_cohort(output / COHORT, rows)
    return output / COHORT


def _class_table(found: Sequence[Download], output: Path, given: Path | None) -> ClassTable:
    """The classes of the regions, kept in the output: looking for them reads every picture."""
    known = output / CLASSES
    wanted = None if given is None else api.read_classes(given)
    if known.is_file():
        table = api.read_classes(known)
        if wanted not in (None, table):
            raise InputError(f"{known} has other classes than {given}, and labels are written "
                             "with them already. Take another folder, or remove this one.")
        return table
    table = find_classes([one.labels for one in found]) if wanted is None else wanted
    api.write_classes(known, table)
    return table


def _convert(
    one: Download, kind: str, output: Path, table: ClassTable, name: str,
    channels: Sequence[int] | None, pixel_size: float | None,
) -> CohortRow:
    place = output / one.group
    stores = place / f"{one.name}.ome.zarr", place / f"{one.name}_labels.ome.zarr"
    if not all(store.exists() for store in stores):
        image = with_pixel_size(api.open_pyramid(one.image, channels=channels), pixel_size)
        labels = open_mask(one.labels, image) if kind == "kpis" else (
            open_regions(one.labels, image, table))
        _store(image, stores[0], name, levels=LEVELS[kind])
        _store(labels, stores[1], f"{name}, labels", levels=(1,), classes=table)
    return CohortRow(str(stores[0]), str(stores[1]), one.split, one.group)


def _store(source: Any, output: Path, name: str, **options: Any) -> None:
    """Convert beside and rename, so that what bears its name is complete."""
    if output.exists():
        return
    beside = output.with_name(f".{output.name}.part")
    if beside.exists() and not (beside / LOG_NAME).exists():
        shutil.rmtree(beside)  # of a start that was killed before it wrote anything
    show_events(name, api.convert(source, beside, **options))
    beside.rename(output)
