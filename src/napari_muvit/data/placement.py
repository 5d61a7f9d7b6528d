"""From a file's scales and translations to world coordinates, for the part that is selected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from napari_muvit.data.selection import Selection
from napari_muvit.data.sources.raw import MICROMETRES, Floats, RawImage
from napari_muvit.errors import SourceError
from napari_muvit.geometry import FloatArray


@dataclass(frozen=True)
class Placed:
    """World coordinates of every array that a selection leaves, and how to index it.

    Attributes
    ----------
    indices
        Positions of these arrays in the raw image.
    starts
        Per array, the stored index at which each spatial axis begins.
    """

    raw: RawImage
    selection: Selection
    indices: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    starts: tuple[tuple[int, ...], ...]
    fixed: tuple[tuple[tuple[str, int], ...], ...]
    factors: tuple[Floats, ...]
    offsets: tuple[Floats, ...]
    pixel_size: tuple[Floats, ...] | None
    spacing: Floats
    origin: Floats
    notes: tuple[str, ...]

    def plan_read(
        self, array_index: int, start: Sequence[int], size: Sequence[int]
    ) -> ReadPlan:
        """How to read a region of one array: one read for each run of neighbouring channels."""
        fixed = dict(self.fixed[array_index])
        begins = dict(zip(self.selection.axes, self.starts[array_index], strict=True))
        regions = dict(zip(self.selection.axes, zip(start, size, strict=True), strict=True))
        chosen = self.selection.channels
        runs = [slice(None)] if chosen is None else _runs(chosen)
        index: list[Any] = []
        for letter in self.raw.axes:
            if letter in fixed:
                index.append(fixed[letter])
            elif letter in begins:
                first = begins[letter] + regions[letter][0]
                index.append(slice(first, first + regions[letter][1]))
            else:
                index.append(None)
        kept = [letter for letter in self.raw.axes if letter not in fixed]
        target = ("c" if chosen is not None else "") + self.selection.axes
        held = sorted(set(chosen or ()))
        picks = None if chosen is None or list(chosen) == held else [
            held.index(c) for c in chosen]
        return ReadPlan(
            indices=tuple(tuple(run if i is None else i for i in index) for run in runs),
            order=tuple(kept.index(letter) for letter in target), picks=picks,
        )


@dataclass(frozen=True)
class ReadPlan:
    """Reads of a stored array, the transposition after them, and the order of channels.

    Attributes
    ----------
    indices
        What to index the array with; the results are joined along the channels.
    picks
        Positions among the joined channels, or None where their order is right.
    """

    indices: tuple[tuple[Any, ...], ...]
    order: tuple[int, ...]
    picks: list[int] | None


def _runs(channels: Sequence[int]) -> list[slice]:
    """Slices over neighbouring channels that hold all of `channels` and no others."""
    runs: list[slice] = []
    for channel in sorted(set(channels)):
        if runs and runs[-1].stop == channel:
            runs[-1] = slice(runs[-1].start, channel + 1)
        else:
            runs.append(slice(channel, channel + 1))
    return runs


def place_arrays(raw: RawImage, selection: Selection) -> Placed:
    """World coordinates of an image's arrays, finest first."""
    factors, offsets, notes = _world(raw)
    order = sorted(range(len(raw.arrays)), key=lambda i: -math.prod(raw.arrays[i].shape))
    if order != list(range(len(raw.arrays))):
        notes.append("the arrays were not stored finest first and have been sorted")
    first = order[0]
    rows: list[tuple[int, Any, Any, Any, Any, Any]] = []
    for i in order:
        factor = factors[i] / factors[first]
        offset = (offsets[i] - offsets[first]) / factors[first]
        part = _select_part(raw, selection, i, factor, offset)
        if part is not None:
            rows.append((i, *part))
    picked = [raw.axes.index(a) for a in selection.axes]
    spacing = tuple(float(factors[first][k]) for k in picked)
    begin = dict(selection.spans)
    shift = [begin[a][0] if a in begin else 0 for a in selection.axes]
    origin = tuple(float(offsets[first][k] + s * factors[first][k])
                   for k, s in zip(picked, shift, strict=True))
    micrometres = _micrometres(raw, selection, spacing)
    return Placed(
        raw=raw, selection=selection,
        indices=tuple(r[0] for r in rows), shapes=tuple(r[1] for r in rows),
        starts=tuple(r[2] for r in rows), fixed=tuple(r[3] for r in rows),
        factors=tuple(r[4] for r in rows), offsets=tuple(r[5] for r in rows),
        pixel_size=None if micrometres is None else tuple(
            tuple(f * m for f, m in zip(r[4], micrometres, strict=True)) for r in rows),
        spacing=spacing, origin=origin, notes=tuple(notes),
    )


def _world(raw: RawImage) -> tuple[list[FloatArray], list[FloatArray], list[str]]:
    """Scale and place of pixel 0 of every array along every stored axis, in the file's units."""
    shapes = np.asarray([handle.shape for handle in raw.arrays], np.float64)
    finest = int(np.argmax(shapes.prod(axis=1)))
    spatial = np.asarray([a in "zyx" for a in raw.axes])
    ratios = np.where(spatial, shapes[finest] / shapes, 1.0)
    given = ratios if raw.scales is None else np.asarray(raw.scales, np.float64)
    places = np.zeros_like(shapes) if raw.translations is None else np.asarray(
        raw.translations, np.float64)
    # one place for all arrays says nothing about them
    is_placed = bool(np.ptp(places, axis=0).any())
    wrong = _contradictions(given / given[finest], shapes, shapes[finest]) & spatial
    notes = []
    if wrong.any() and not is_placed:
        given = np.where(wrong, given[finest] * ratios, given)
        notes.append("scales in the metadata contradict the arrays' shapes; "
                     "the ratios of shapes are used")
    if raw.translations is None or notes:
        places = places[finest] + np.where(spatial, (given - given[finest]) / 2, 0.0)
    return list(given), list(places), notes


def _contradictions(factors: FloatArray, shapes: FloatArray, largest: FloatArray) -> Any:
    """Where factor and shape disagree by more than one pixel of the array."""
    return np.abs(shapes - largest / factors) > 1.0 + 1e-6


def _select_part(
    raw: RawImage, selection: Selection, number: int, factor: FloatArray, offset: FloatArray
) -> tuple[Any, ...] | None:
    """Shape, starts, fixed indices, factors and offsets of one array; None if nothing is left."""
    shape = raw.arrays[number].shape
    spans = dict(selection.spans)
    fixed = []
    for letter, index in selection.fixed:
        k = raw.axes.index(letter)
        nearest = round((index - offset[k]) / factor[k])
        fixed.append((letter, min(max(int(nearest), 0), shape[k] - 1)))
    sizes, starts, factors, offsets = [], [], [], []
    for letter in selection.axes:
        k = raw.axes.index(letter)
        start, stop, shift = 0, shape[k], 0.0
        if letter in spans:
            low, high = spans[letter]
            # pixels whose centre lies in the range
            start = max(0, math.ceil((low - 0.5 - offset[k]) / factor[k] - 1e-9))
            stop = min(shape[k], math.ceil((high - 0.5 - offset[k]) / factor[k] - 1e-9))
            shift = float(low)
        if stop <= start:
            return None
        sizes.append(stop - start)
        starts.append(start)
        factors.append(float(factor[k]))
        offsets.append(float(offset[k] + start * factor[k] - shift))
    return tuple(sizes), tuple(starts), tuple(fixed), tuple(factors), tuple(offsets)


def _micrometres(raw: RawImage, selection: Selection, spacing: Floats) -> Floats | None:
    """um per world px along each spatial axis, or None where y or x have no unit of length.

    A z axis without a unit beside a y axis with one is taken to share it.
    """
    if raw.units is None or raw.scales is None:
        return None
    units = {a: MICROMETRES.get(str(u).lower()) if u else None
             for a, u in zip(raw.axes, raw.units, strict=True)}
    if units["y"] is None or units["x"] is None:
        return None
    sizes = []
    for letter, size in zip(selection.axes, spacing, strict=True):
        unit = 1.0 if letter == "t" else units[letter] or units["y"]
        if not math.isfinite(size * unit):
            raise SourceError(
                f"{raw.source}: the scale of axis {letter} is {size}; it must be a finite size. "
                "Repair the metadata.", raw.source,
            )
        sizes.append(size * unit)
    return tuple(sizes)
