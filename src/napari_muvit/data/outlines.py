"""Outlines of label images: the exact pixel borders of every connected area, with holes.

Borders are collected block by block as edges between unlike pixels, then joined to rings, so
memory follows the length of the borders and not the size of the image: about 40 bytes for each
pixel's side of smooth ones, up to 80 where every side is a corner's.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_muvit.data.label_blocks import iterate_blocks

Codes = NDArray[np.int64]
"""Corners, or unit edges, as one number each that sorts as they lie."""


@dataclass(frozen=True)
class Outline:
    """One connected area of one label: outer ring first, then holes.

    Attributes
    ----------
    rings
        Each (n, 2) corners (y, x), world px, without a repeated last corner.
    value
        The label.
    """

    rings: tuple[NDArray[np.float64], ...]
    value: int


def trace_labels(
    labels: Any, values: Iterable[int] | None = None, *, level: ArrayLike = 1,
    corner: ArrayLike = (-0.5, -0.5),
) -> Iterator[Outline]:
    """Outlines of all connected areas (by edges, not corners) of a label plane.

    Parameters
    ----------
    labels
        (H, W) integers, in memory or lazy; read block by block.
    values
        Labels to trace; all but 0 by default.
    level, corner
        Size of a pixel, one number or (y, x), and lower outer edge of the array (y, x), world px.
    """
    wanted = None if values is None else {int(value) for value in values}
    stride = max(labels.shape) + 2
    found: dict[int, tuple[list[Codes], list[Codes]]] = {}
    for start, block in _blocks_with_rim(labels):
        if not block.any():
            continue
        present = {int(value) for value in np.unique(block)} - {0}
        for value in sorted(present if wanted is None else present & wanted):
            rows, columns = _block_edges(block == value, start, stride)
            kept = found.setdefault(value, ([], []))
            kept[0].append(rows)
            kept[1].append(columns)
    for value in sorted(found):
        for rings in _join_rings(*found.pop(value), stride):
            yield Outline(
                tuple(ring * np.asarray(level, np.float64) + np.asarray(corner) for ring in rings),
                value,
            )


def _blocks_with_rim(labels: Any) -> Iterator[tuple[tuple[int, int], NDArray[Any]]]:
    """Blocks with one more row above and column to the left; 0 outside the image.

    The last blocks also get a row below and a column to the right, so that every edge of the
    image is the upper or left one of some block's pixel.
    """
    height, width = labels.shape
    for (top, left), block in iterate_blocks(labels):
        bottom, right = top + block.shape[0], left + block.shape[1]
        rim = np.zeros(
            (block.shape[0] + 1 + (bottom == height), block.shape[1] + 1 + (right == width)),
            block.dtype,
        )
        rim[1 : 1 + block.shape[0], 1 : 1 + block.shape[1]] = block
        if top:
            rim[0, 1 : 1 + block.shape[1]] = np.asarray(labels[top - 1 : top, left:right])[0]
        if left:
            rim[1 : 1 + block.shape[0], 0] = np.asarray(labels[top:bottom, left - 1 : left])[:, 0]
        yield (top, left), rim


def _block_edges(
    mask: NDArray[np.bool_], start: tuple[int, int], stride: int
) -> tuple[Codes, Codes]:
    """Unit edges above and left of each pixel, as 2 * (line * stride + place) + is_forward.

    The line of an edge above is y and its place x; of an edge to the left it is the other way
    round. Edges run with the area on their right hand in an image whose y points down: along a
    top border to the right (forward), along a left border upwards.
    """
    signed = mask.astype(np.int8)
    # A top border has the area below it; the pixel of mask[i, j] is (start + i - 1, ...).
    across = signed[1:, 1:] - signed[:-1, 1:]
    y, x = np.nonzero(across)
    rows = 2 * ((y + start[0]) * stride + x + start[1]) + (across[y, x] > 0)
    along = signed[1:, :-1] - signed[1:, 1:]
    y, x = np.nonzero(along)
    columns = 2 * ((x + start[1]) * stride + y + start[0]) + (along[y, x] > 0)
    return rows, columns


@dataclass(frozen=True)
class _Runs:
    """Straight pieces of border, each as long as it can be.

    Attributes
    ----------
    begin, end
        Corners, y * stride + x.
    is_forward
        Whether it runs to the right, or down.
    first
        The first of its unit edges.
    """

    begin: Codes
    end: Codes
    is_forward: NDArray[np.bool_]
    first: Codes

    @classmethod
    def merge(cls, edges: Codes, stride: int, is_down: bool) -> _Runs:
        """Join unit edges, in ascending order, that continue each other."""
        first = np.flatnonzero(np.concatenate([[True], edges[1:] != edges[:-1] + 2]))
        last = np.concatenate([first[1:], [len(edges)]]) - 1
        is_forward = edges[first] % 2 == 1
        low, high = edges[first] // 2, edges[last] // 2 + 1
        if is_down:
            low, high = _transposed(low, stride), _transposed(high, stride)
        return cls(
            np.where(is_forward, low, high), np.where(is_forward, high, low), is_forward, first)

    def starting_at(self, corners: Codes, is_forward: NDArray[np.bool_]) -> NDArray[np.int32]:
        """Index of the run that begins at each corner, of two the one of that direction."""
        own = 2 * self.begin + self.is_forward
        order = np.argsort(own)
        own = own[order]
        place = np.minimum(np.searchsorted(own, 2 * corners + is_forward), len(own) - 1)
        missing = np.flatnonzero(own[place] != 2 * corners + is_forward)
        place[missing] = np.searchsorted(own, 2 * corners[missing] + ~is_forward[missing])
        return order[place].astype(np.int32)

    def touches(self) -> NDArray[np.bool_]:
        """Whether another run begins at the same corner: only there can a ring touch itself."""
        order = np.argsort(self.begin)
        is_same = np.diff(self.begin[order]) == 0
        touching = np.zeros(len(order), np.bool_)
        touching[order[1:][is_same]] = True
        touching[order[:-1][is_same]] = True
        return touching


def _transposed(codes: Codes, stride: int) -> Codes:
    """Between x * stride + y and y * stride + x."""
    return codes % stride * stride + codes // stride


def _sorted(parts: list[Codes]) -> Codes:
    """All parts together in ascending order; the list is emptied."""
    whole = np.concatenate(parts)
    parts.clear()
    whole.sort()
    return whole


def _join_rings(
    rows: list[Codes], columns: list[Codes], stride: int
) -> Iterator[list[NDArray[np.float64]]]:
    """Outer ring and holes, (n, 2) corners, of every area that the unit edges enclose."""
    across, edges = _Runs.merge(_sorted(rows), stride, is_down=False), _sorted(columns)
    down = _Runs.merge(edges, stride, is_down=True)
    # Where two pixels touch by their corners only, always turning right keeps them apart.
    steps, lengths = _walk(
        (across, down), (down.starting_at(across.end, across.is_forward),
                         across.starting_at(down.end, ~down.is_forward)))
    is_down = steps % 2 == 1
    corners = np.empty(len(steps), np.int64)
    corners[~is_down] = across.begin[steps[~is_down] // 2]
    corners[is_down] = down.begin[steps[is_down] // 2]
    owner = np.zeros(len(down.begin), np.int64)
    owner[steps[is_down] // 2] = np.repeat(np.arange(len(lengths)), lengths)[is_down]
    stops = np.cumsum(lengths, dtype=np.int64)
    starts = stops - lengths
    parents = _find_parents(corners, starts, edges, down, owner, stride)
    is_outer = parents == np.arange(len(parents))
    holes: dict[int, list[int]] = {}
    for number in np.flatnonzero(~is_outer).tolist():
        holes.setdefault(int(parents[number]), []).append(number)
    for outer in np.flatnonzero(is_outer).tolist():
        yield [_ring(corners[starts[number] : stops[number]], stride)
               for number in (outer, *holes.get(outer, ()))]


def _ring(corners: Codes, stride: int) -> NDArray[np.float64]:
    return np.stack(np.divmod(corners, stride), axis=1).astype(np.float64)


def _walk(
    runs: tuple[_Runs, _Runs], following: tuple[NDArray[np.int32], NDArray[np.int32]]
) -> tuple[NDArray[np.intc], NDArray[np.intc]]:
    """Rings one behind the other, cut where one touches itself, and how long each is.

    A step is 2 * index of the run + (0 across or 1 down). `runs` are those across and down, and
    `following` the run down after each across, and the reverse.
    """
    # Lists of numbers would take ten times the memory, and numpy's scalars the time.
    after = [each.data for each in following]
    corners = [each.begin.data for each in runs]
    touches = [each.touches().data for each in runs]
    steps, lengths = array("i"), array("i")
    is_free = bytearray(b"\1") * len(following[0])
    for first in range(len(is_free)):
        if not is_free[first]:
            continue
        ring, places = array("i"), dict[int, int]()
        run, kind = first, 0
        while kind or is_free[run]:
            if not kind:
                is_free[run] = 0
            if touches[kind][run]:
                corner = corners[kind][run]
                cut = places.get(corner, len(ring))
                # What was cut off since may have been there.
                if cut < len(ring) and corners[ring[cut] % 2][ring[cut] // 2] == corner:
                    lengths.append(len(ring) - cut)
                    steps.extend(ring[cut:])
                    del ring[cut:]
                places[corner] = len(ring)
            ring.append(2 * run + kind)
            run, kind = after[kind][run], 1 - kind
        lengths.append(len(ring))
        steps.extend(ring)
    return np.frombuffer(steps, np.intc), np.frombuffer(lengths, np.intc)


def _find_parents(
    corners: Codes, starts: NDArray[np.int64], edges: Codes, down: _Runs,
    owner: NDArray[np.int64], stride: int,
) -> NDArray[np.int64]:
    """For each ring the outer ring of its area; an outer ring's is itself.

    Parameters
    ----------
    corners, starts
        Of all rings one behind the other, and where each begins.
    edges, down, owner
        Unit edges along y, the runs that they make, and the ring of each run.
    """
    # Positive where the ring has its area on its right hand.
    areas = np.zeros(len(starts), np.int64)
    np.add.at(areas, owner, down.begin % stride * (down.end // stride - down.begin // stride))
    is_hole = areas < 0
    parents = np.arange(len(starts))
    if not is_hole.any():
        return parents
    holes = np.flatnonzero(is_hole)
    tops = np.minimum.reduceat(corners, starts)[holes]
    places = _transposed(edges // 2, stride)
    order = np.argsort(places)
    # Left of the pixel above a hole's top corner, the next border is the same area's.
    left = np.searchsorted(places, tops - stride, side="right", sorter=order) - 1
    found = owner[np.searchsorted(down.first, order[left], side="right") - 1]
    for index in np.argsort(tops, kind="stable").tolist():
        parents[holes[index]] = parents[found[index]]
    return parents
