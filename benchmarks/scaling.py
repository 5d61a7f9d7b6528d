"""Time and peak memory of the encoder against crop size and number of levels (Figure S4).

    python benchmarks/scaling.py [--sizes 64 128 256] [--levels 1 2 3] [--threads 1]

Ours beside the official code (extra `bench`), base preset, one sample, fp32, forward pass.
Every cell is measured in a process of its own: the CPU time of the pass (the median of
`--rounds`), and the highest resident memory above what the model and its input occupy. Kernels
are chosen once, before: what their probe had freed would hide in the memory of a cell.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
from models import CLOCKS, Case, build_job, peak_of

from napari_muvit.models.kernels import KernelChoice, choose_kernels

LEVELS = (1, 8, 32, 64)
OWNERS = ("ours", "official")


def measure_cell(
    owner: str, size: int, count: int, kernels: KernelChoice, rounds: int, clock: str
) -> dict[str, float]:
    """Seconds and MB of one forward pass, in this process."""
    case = Case("", LEVELS[:count], size, 1, 1, False, {})
    job = build_job(case, f"{owner} fp32", {"fp32": kernels}, "cpu")
    memory = peak_of(job)
    seconds = []
    for _ in range(rounds):
        began = CLOCKS[clock]()
        job()
        seconds.append(CLOCKS[clock]() - began)
    return {"seconds": statistics.median(seconds), "memory": memory}


def measure_apart(
    owner: str, size: int, count: int, kernels: KernelChoice, given: argparse.Namespace
) -> dict[str, float]:
    """`measure_cell` in a new process."""
    command = [
        sys.executable, __file__, "--cell", owner, str(size), str(count),
        json.dumps(kernels.to_dict()), "--rounds", str(given.rounds), "--threads",
        str(given.threads), "--clock", given.clock,
    ]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    return found


def table(found: dict[tuple[str, int, int], dict[str, float]]) -> str:
    """Markdown: a row for each size and number of levels."""
    titles = ["crop", "levels", "tokens", *(f"{owner}, s" for owner in OWNERS),
              *(f"{owner}, MB" for owner in OWNERS)]
    lines = [titles, ["---"] * len(titles)]
    for size, count in dict.fromkeys((size, count) for _, size, count in found):
        cells = [found.get((owner, size, count)) for owner in OWNERS]
        lines.append([
            str(size), str(count), str(count * (size // 8) ** 2),
            *("" if cell is None else f"{cell['seconds']:.2f}" for cell in cells),
            *("" if cell is None else f"{cell['memory']:.0f}" for cell in cells),
        ])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--owners", nargs="+", choices=OWNERS, default=OWNERS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="cpu")
    parser.add_argument("--json", type=Path, help="also write all numbers here")
    parser.add_argument("--cell", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> str:
    """Measure and print."""
    given = parse(argv)
    torch.set_num_threads(given.threads)
    if given.cell:
        warnings.simplefilter("ignore")
        owner, size, count, kernels = given.cell
        choice = KernelChoice.from_dict(json.loads(kernels))
        cell = measure_cell(owner, int(size), int(count), choice, given.rounds, given.clock)
        print(json.dumps(cell))
        return ""
    found, kernels = {}, choose_kernels("fp32")
    began = time.perf_counter()
    for size in given.sizes:
        for count in given.levels:
            for owner in given.owners:
                found[owner, size, count] = measure_apart(owner, size, count, kernels, given)
                print(owner, size, count, found[owner, size, count],
                      f"{time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    if given.json:
        named = {" ".join(map(str, key)): value for key, value in found.items()}
        given.json.write_text(json.dumps(named, indent=1), encoding="utf-8")
    text = table(found)
    print(text)
    return text


if __name__ == "__main__":
    main()
