"""Stage 7 of 7: one block of the output is computed, rendered and written by whoever owns it.

The same code runs in this process and on the workers of a cluster; a block's bytes depend on
the job alone.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.data.output import PredictionStore
from napari_muvit.inference.engine import BlockResult, TileFailure, engine_of, run_through
from napari_muvit.inference.job import Job
from napari_muvit.inference.lazy import Output, render
from napari_muvit.inference.tiles import BoolArray, Index

Unit = tuple[int, Index]
"""Number of the plane, and place in its grid of blocks."""


@dataclass(frozen=True)
class BlockRecord:
    """What happened to one block.

    Attributes
    ----------
    plane, block
        Which one.
    done
        Cells of it that are now done, earlier ones included.
    counts
        Pixels of each label value in its finished cells.
    entropies
        Mean entropy of the tiles computed for it.
    failures
        Tiles that could not be computed.
    """

    plane: int
    block: Index
    done: BoolArray
    counts: dict[int, int]
    entropies: dict[Index, float]
    failures: list[TileFailure]

    def to_line(self) -> dict[str, Any]:
        """Plain data for the journal."""
        return {
            "plane": self.plane, "block": list(self.block), "cells": list(self.done.shape),
            "done": np.packbits(self.done).tobytes().hex(),
            "counts": {str(value): count for value, count in self.counts.items()},
            "entropies": [[list(k), round(v, 5)] for k, v in self.entropies.items()],
            "failures": [[list(f.index), f.message] for f in self.failures],
        }

    @classmethod
    def from_line(cls, line: dict[str, Any]) -> BlockRecord:
        """The record that `to_line` wrote."""
        cells = tuple(line["cells"])
        bits = np.frombuffer(bytes.fromhex(line["done"]), np.uint8)
        done = np.unpackbits(bits)[: int(np.prod(cells))].astype(bool).reshape(cells)
        return cls(
            line["plane"], tuple(line["block"]), done,
            {int(value): count for value, count in line["counts"].items()},
            {tuple(k): v for k, v in line["entropies"]},
            [TileFailure(tuple(k), message) for k, message in line["failures"]],
        )


@dataclass(frozen=True, eq=False)
class BlockWriter:
    """Computes blocks and writes them; picklable.

    Attributes
    ----------
    jobs
        One for each plane.
    indices
        Place of each plane along the axes in `plane_axes`.
    plane_axes
        Letters of the axes that planes stand along.
    paths
        Store of each output; labels among them.
    """

    jobs: tuple[Job, ...]
    indices: tuple[tuple[int, ...], ...]
    plane_axes: str
    paths: dict[Output, str]

    def steps(
        self, unit: Unit, before: BoolArray | None = None
    ) -> Generator[int, None, BlockRecord]:
        """Compute and write one block, yielding after each tile as `Engine.steps` does.

        Parameters
        ----------
        before
            Cells of the block that are done already; they are left as they are.
        """
        plane, index = unit
        job = self.jobs[plane]
        region = job.plan.block_region(index)
        wanted = None if before is None else ~before
        result = yield from engine_of(job).steps(region, wanted)
        keep = None if before is None or not before.any() else self._pixels(job, before, result)
        for output, path in self.paths.items():
            self._write(output, path, plane, result, keep)
        done = result.done if before is None else result.done | before
        labels = self._store(self.paths["labels"]).read(self.where("labels", plane, result))
        values, counts = np.unique(labels[self._pixels(job, done, result)], return_counts=True)
        tally = {int(v): int(n) for v, n in zip(values, counts, strict=True)}
        return BlockRecord(plane, index, done, tally, result.entropies, result.failures)

    def compute(self, unit: Unit, before: BoolArray | None = None) -> BlockRecord:
        """As `steps`, in one go: what a worker of a cluster runs."""
        return run_through(self.steps(unit, before))

    def where(self, output: Output, plane: int, result: BlockResult) -> tuple[slice | int, ...]:
        """The part of a store's array that holds a block."""
        letters = "zyx"[-len(result.region):]
        parts: dict[str, slice | int] = dict(zip(letters, result.region, strict=True))
        parts |= dict(zip(self.plane_axes, self.indices[plane], strict=True))
        if output == "probabilities":
            parts["c"] = slice(None)
        return tuple(parts[letter] for letter in "tczyx" if letter in parts)

    def _write(
        self, output: Output, path: str, plane: int, result: BlockResult,
        keep: NDArray[np.bool_] | None,
    ) -> None:
        store = self._store(path)
        place = self.where(output, plane, result)
        pixels = render(result, self.jobs[plane].spec.class_table, output)
        if keep is not None:
            pixels = np.where(keep, store.read(place), pixels)
        store.write(place, pixels)

    def _pixels(self, job: Job, cells: BoolArray, result: BlockResult) -> NDArray[np.bool_]:
        """The pixels of a block that lie in `cells`."""
        pixels: NDArray[np.bool_] = cells
        for axis, (step, part) in enumerate(zip(job.plan.step, result.region, strict=True)):
            size = part.stop - part.start
            pixels = np.repeat(pixels, step, axis).take(range(size), axis)
        return pixels

    def _store(self, path: str) -> PredictionStore:
        """The store at `path`, opened once in each process."""
        stores: dict[str, PredictionStore] = self.__dict__.setdefault("_stores", {})
        if path not in stores:
            stores[path] = PredictionStore(Path(path))
        return stores[path]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if not key.startswith("_")}
