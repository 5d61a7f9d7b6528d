"""Outlines of label images: the exact pixel borders of every connected area, with holes.

Borders are collected block by block as edges between unlike pixels, then joined to rings, so
memory follows the length of the borders and not the size of the image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_muvit.data.label_blocks import iterate_blocks

Edges = NDArray[np.int64]


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
    found: dict[int, list[tuple[Edges, Edges]]] = {}
    for start, block in _blocks_with_rim(labels):
        if not block.any():
            continue
        present = {int(value) for value in np.unique(block)} - {0}
        for value in sorted(present if wanted is None else present & wanted):
            found.setdefault(value, []).append(_block_edges(block == value, start))
    for value, parts in sorted(found.items()):
        rows = np.concatenate([rows for rows, _ in parts])
        columns = np.concatenate([columns for _, columns in parts])
        for rings in _join_rings(rows, columns):
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


def _block_edges(mask: NDArray[np.bool_], start: tuple[int, int]) -> tuple[Edges, Edges]:
    """Unit edges above and left of each pixel, as rows (y, x, direction).

    Edges run with the area on their right hand in an image whose y points down: along a top
    border to the right (+1), along a left border upwards (-1).
    """
    signed = mask.astype(np.int8)
    # A top border has the area below it; the pixel of mask[i, j] is (start + i - 1, ...).
    across = signed[1:, 1:] - signed[:-1, 1:]
    y, x = np.nonzero(across)
    rows = np.stack([y + start[0], x + start[1], across[y, x]], axis=1).astype(np.int64)
    along = signed[1:, :-1] - signed[1:, 1:]
    y, x = np.nonzero(along)
    columns = np.stack([y + start[0], x + start[1], along[y, x]], axis=1).astype(np.int64)
    return rows, columns


@dataclass(frozen=True)
class _Runs:
    """Straight pieces of border, each as long as it can be: begin and end corner, direction."""

    begin: Edges
    end: Edges
    direction: Edges
    run_of_edge: Edges

    @classmethod
    def merge(cls, edges: Edges, axis: int) -> _Runs:
        """Join unit edges (y, x, direction), sorted along `axis`, that continue each other."""
        line, place, direction = edges[:, 1 - axis], edges[:, axis], edges[:, 2]
        breaks = (np.diff(line) != 0) | (np.diff(place) != 1) | (np.diff(direction) != 0)
        first = np.flatnonzero(np.concatenate([[True], breaks]))
        last = np.concatenate([first[1:], [len(edges)]]) - 1
        low, high = edges[first, :2], edges[last, :2].copy()
        high[:, axis] += 1
        forward = (direction[first] > 0)[:, None]
        return cls(
            np.where(forward, low, high), np.where(forward, high, low), direction[first],
            np.cumsum(np.concatenate([[0], breaks])),
        )

    def starting_at(self, corners: Edges, preferred: Edges) -> Edges:
        """Index of the run that begins at each corner, of two the one that turns as preferred."""
        width = 2 + int(max(self.begin[:, 1].max(), corners[:, 1].max()))

        def key(points: Edges, direction: Edges) -> Edges:
            return (points[:, 0] * width + points[:, 1]) * 2 + (direction > 0)

        own = key(self.begin, self.direction)
        order = np.argsort(own)
        index = np.searchsorted(own, key(corners, preferred), sorter=order)
        index = order[np.minimum(index, len(order) - 1)]
        other = np.searchsorted(own, key(corners, -preferred), sorter=order)
        other = order[np.minimum(other, len(order) - 1)]
        is_preferred = own[index] == key(corners, preferred)
        return np.where(is_preferred, index, other)


def _join_rings(rows: Edges, columns: Edges) -> Iterator[list[NDArray[np.float64]]]:
    """Outer ring and holes, (n, 2) corners, of every area that the unit edges enclose."""
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    columns = columns[np.lexsort((columns[:, 0], columns[:, 1]))]
    across, down = _Runs.merge(rows, axis=1), _Runs.merge(columns, axis=0)
    # Where two pixels touch by their corners only, always turning right keeps them apart.
    to_down = down.starting_at(across.end, across.direction).tolist()
    to_across = across.starting_at(down.end, -down.direction).tolist()
    begins = [across.begin.tolist(), down.begin.tolist()]
    rings = _walk(to_down, to_across, begins)
    corners = [np.asarray([begins[kind][i] for kind, i in ring], np.int64) for ring in rings]
    owner = np.zeros(len(down.begin), np.int64)
    for number, ring in enumerate(rings):
        owner[[i for kind, i in ring if kind]] = number
    edge_owner = owner[down.run_of_edge]
    parents = _find_parents(corners, columns, edge_owner)
    grouped: dict[int, list[NDArray[np.float64]]] = {}
    for number, parent in enumerate(parents):
        if parent == number:
            grouped[number] = [corners[number].astype(np.float64)]
    for number, parent in enumerate(parents):
        if parent != number:
            grouped[parent].append(corners[number].astype(np.float64))
    yield from grouped.values()


def _walk(
    to_down: list[int], to_across: list[int], begins: list[list[list[int]]]
) -> list[list[tuple[int, int]]]:
    """Rings as lists of (0 across or 1 down, run); cut where a ring touches itself."""
    rings = []
    is_free = [True] * len(to_down)
    for first in range(len(to_down)):
        if not is_free[first]:
            continue
        stack: list[tuple[int, int]] = []
        depth: dict[tuple[int, int], int] = {}
        run, kind = first, 0
        while kind or is_free[run]:
            if not kind:
                is_free[run] = False
            y, x = begins[kind][run]
            if (y, x) in depth:
                cut = depth[y, x]
                for inner_kind, inner in stack[cut:]:
                    inner_y, inner_x = begins[inner_kind][inner]
                    del depth[inner_y, inner_x]
                rings.append(stack[cut:])
                del stack[cut:]
            depth[y, x] = len(stack)
            stack.append((kind, run))
            run, kind = (to_across[run], 0) if kind else (to_down[run], 1)
        rings.append(stack)
    return rings


def _find_parents(
    corners: list[NDArray[np.int64]], columns: Edges, edge_owner: Edges
) -> list[int]:
    """For each ring the outer ring of its area; an outer ring's is itself."""
    width = int(columns[:, 1].max()) + 2
    keys = columns[:, 0] * width + columns[:, 1]
    order = np.argsort(keys)
    is_hole = [_doubled_area(ring) < 0 for ring in corners]
    parents = list(range(len(corners)))
    tops = [tuple(min(ring.tolist())) for ring in corners]
    for number in sorted((n for n in parents if is_hole[n]), key=tops.__getitem__):
        # Left of the pixel above a hole's top corner, the next border is the same area's.
        y, x = tops[number]
        place = np.searchsorted(keys, (y - 1) * width + x, side="right", sorter=order) - 1
        found = int(edge_owner[order[place]])
        parents[number] = parents[found] if is_hole[found] else found
    return parents


def _doubled_area(ring: NDArray[np.int64]) -> int:
    """Twice the area, positive where the ring has it on its right hand."""
    y, x = ring.T
    return int(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))
