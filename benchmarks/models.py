"""Speed and memory of the models beside the official code: ``python benchmarks/models.py``.

Needs the extra `bench`. All contenders of a table take turns in one process, so that other load
hits all alike; times are medians, ratios medians of each round's. Errors are the largest
absolute difference from the official fp32 output, relative to its largest value. Peak memory,
above what the model and its input occupy, is that of a job in a process of its own, the median
of as many processes as `MEMORY_ROUNDS`. Below a table stands what no fp32 code could exceed here.
Options: ``--help``.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from napari_muvit.geometry import crop_extents, place_boxes
from napari_muvit.models.encoder import Encoder
from napari_muvit.models.kernels import KernelChoice, choose_kernels, use_kernels
from napari_muvit.models.mae import MAE

Job = Callable[[], Tensor]
"""Runs once and returns what contenders are compared by."""


@dataclass(frozen=True)
class Case:
    """A table: input shape, sizes, and the speed-ups and errors that are wanted."""

    title: str
    levels: tuple[int, ...]
    size: int
    channels: int
    batch: int
    is_step: bool
    wanted: dict[str, float]


CASES = {
    "encoder": Case("Encoder forward, 3x256x256, base", (1, 8, 32), 256, 1, 1, False,
                    {"ours fp32": 1.8, "ours bf16": 2.8}),
    "kpis": Case("Encoder forward, 2x512x512x3 (KPIS), base", (1, 8), 512, 3, 1, False,
                 {"ours fp32": 1.8, "ours bf16": 2.8}),
    "mae": Case("MAE step (forward, backward, clip, AdamW), batch 2, 3x256x256, base",
                (1, 8, 32), 256, 1, 2, True, {"ours fp32": 1.4, "ours bf16": 2.2}),
}
CONTENDERS = ("official fp32", "official autocast", "ours fp32", "ours bf16")
MEMORY_ROUNDS = 3
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def build_model(case: Case, is_ours: bool, device: str) -> nn.Module:
    """Model of the base preset with the same weights in both implementations."""
    import muvit

    arguments = {"in_channels": case.channels, "levels": case.levels, "patch_size": 8,
                 "num_layers": 12, "dim": 512, "heads": 8}
    torch.manual_seed(0)
    official = (muvit.MuViTMAE2d if case.is_step else muvit.MuViTEncoder2d)(**arguments)
    if not is_ours:
        return official.to(device)
    ours = (MAE if case.is_step else Encoder)(**arguments)  # type: ignore[arg-type]
    ours.load_state_dict(official.state_dict())
    return ours.to(device)


def draw_input(case: Case, device: str) -> tuple[Tensor, Tensor]:
    """Pixels and nested boxes."""
    torch.manual_seed(1)
    shape = (case.batch, len(case.levels), case.channels, case.size, case.size)
    boxes = place_boxes(crop_extents(case.levels, case.size, 2), center=(4000.0, 4000.0))
    bbox = torch.from_numpy(boxes).float().expand(case.batch, -1, -1, -1)
    return torch.randn(shape).to(device), bbox.contiguous().to(device)


def build_job(case: Case, name: str, choices: dict[str, KernelChoice], device: str) -> Job:
    """What one contender does."""
    owner, precision = name.split()[:2]
    model = build_model(case, owner == "ours", device)
    x, bbox = draw_input(case, device)
    if "compiled" in name:
        model = torch.compile(model)  # type: ignore[assignment]
    run = _step(model, x, bbox, owner == "ours") if case.is_step else _forward(model, x, bbox)
    if owner == "ours":
        return _under(lambda: use_kernels(choices[precision]), run)
    if precision == "autocast":
        return _under(lambda: torch.autocast(x.device.type, torch.bfloat16), run)
    return run


def _under(context: Callable[[], Any], run: Job) -> Job:
    def job() -> Tensor:
        with context():
            return run()

    return job


def _forward(model: nn.Module, x: Tensor, bbox: Tensor) -> Job:
    model.eval()

    def run() -> Tensor:
        with torch.inference_mode():
            return model(x, bbox)[0].float()  # type: ignore[no-any-return]

    return run


def _step(model: nn.Module, x: Tensor, bbox: Tensor, is_ours: bool) -> Job:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=is_ours or None)
    options = {"only_loss": True} if is_ours else {}

    def run() -> Tensor:
        torch.manual_seed(2)  # the same mask in both implementations
        optimizer.zero_grad()
        loss = model(x, bbox, **options)["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        return loss.detach().float()  # type: ignore[no-any-return]

    return run


def take_turns(
    jobs: dict[str, Job], rounds: int, device: str, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each job in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            _wait(device)
            begin = clock()
            job()
            _wait(device)
            seconds[name].append(clock() - begin)
    return seconds


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def run_counted(job: Job) -> tuple[Tensor, float]:
    """What a job returns, and its floating-point operations as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    aten = torch.ops.aten

    def attention(q: Any, k: Any, *_: Any, **__: Any) -> int:
        return 4 * math.prod(q) * k[2]

    def attention_backward(_: Any, q: Any, k: Any, *__: Any, **___: Any) -> int:
        return 10 * math.prod(q) * k[2]

    # torch does not count the fused attention of CPUs.
    mapping = {
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        result = job()
    return result, float(counter.get_total_flops())


def measure_peak(precision: torch.dtype, device: str, clock: Callable[[], float]) -> float:
    """FLOP/s of a large plain matrix product: what this machine can do at best."""
    size = 8192 if device == "cuda" else 2048
    a = torch.randn(size, size, dtype=precision, device=device)
    seconds = take_turns({"product": lambda: a @ a}, 5, device, clock)["product"]
    return 2 * size**3 / min(seconds)


def measure_memory(
    case_name: str, name: str, choice: KernelChoice, arguments: argparse.Namespace
) -> float:
    """Peak memory of a job in MB, in processes of their own."""
    command = [sys.executable, str(Path(__file__)), "--memory-of", case_name, name,
               json.dumps(choice.to_dict()), "--threads", str(arguments.threads),
               "--device", arguments.device]
    ran = [subprocess.run(command, capture_output=True, text=True, check=True)
           for _ in range(MEMORY_ROUNDS)]
    return statistics.median(float(one.stdout.split()[-1]) for one in ran)


def run_for_memory(case_name: str, name: str, kernels: str, device: str) -> float:
    """The child's side: run once, report the peak above model and input in MB."""
    choices = {name.split()[1]: KernelChoice.from_dict(json.loads(kernels))}
    job = build_job(CASES[case_name], name, choices, device)
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        job()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    return peak_of(job)


def peak_of(job: Job) -> float:
    """Highest resident memory while a job runs, above what was there before, in MB."""
    import psutil

    if sys.platform == "linux":  # what building the model has freed would hide in the count
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    process = psutil.Process()
    before, seen, is_over = process.memory_info().rss, [0], threading.Event()

    def watch() -> None:
        while not is_over.wait(0.001):
            seen.append(process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    job()
    is_over.set()
    thread.join()
    return (max(seen) - before) / 1e6


def choose(case: Case, device: str) -> dict[str, KernelChoice]:
    """Kernels measured for a case, by precision, as a run or a prediction would choose them."""
    tokens = len(case.levels) * (case.size // 8) ** 2
    return {
        precision: choose_kernels(
            precision, tokens=tokens, device=device, is_training=case.is_step)
        for precision in ("fp32", "bf16")
    }  # type: ignore[arg-type]


def run_case(
    case_name: str, choices: dict[str, KernelChoice], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """All rows of one table."""
    case, device = CASES[case_name], arguments.device
    names = list(CONTENDERS)
    if device == "cuda":
        names += ["official fp32 tf32", "ours bf16 compiled"]
    jobs = {name: build_job(case, name, choices, device) for name in names}
    counted = {name: run_counted(job) for name, job in jobs.items()}  # also warms up
    reference, flops = counted["official fp32"]
    seconds = take_turns(jobs, arguments.rounds, device, CLOCKS[arguments.clock])
    rows = []
    for name in names:
        ratios = [a / b for a, b in zip(seconds["official fp32"], seconds[name], strict=True)]
        error = ((counted[name][0] - reference).abs().max() / reference.abs().max()).item()
        median = statistics.median(seconds[name])
        choice = choices.get(name.split()[1], KernelChoice())
        memory = None
        if not arguments.no_memory:
            memory = measure_memory(case_name, name, choice, arguments)
        rows.append({
            "name": name, "seconds": median, "ratio": statistics.median(ratios), "error": error,
            "memory": memory, "gflops": flops / median / 1e9,
        })
    return rows


def print_table(
    case: Case, rows: list[dict[str, Any]], kernels: list[dict[str, str]], peaks: dict[str, float]
) -> None:
    """One table in Markdown."""
    error = "loss, relative error" if case.is_step else "error"
    print(f"\n### {case.title}\n")
    print(f"| contender | s | ratio | wanted | {error} | peak memory, MB | of fp32 peak |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        wanted = case.wanted.get(row["name"])
        memory = "" if row["memory"] is None else f"{row['memory']:.0f}"
        share = 100 * row["gflops"] * 1e9 / peaks["fp32"]
        print(f"| {row['name']} | {row['seconds']:.3f} | {row['ratio']:.2f} | {wanted or ''} | "
              f"{row['error']:.1e} | {memory} | {share:.0f} % |")
    print(f"\nKernels: {kernels}.")
    limit = peaks["fp32"] / rows[0]["gflops"] / 1e9
    print(f"\nThe official operations, all at the speed of a large fp32 product: {limit:.2f}.")


def parse_arguments() -> argparse.Namespace:
    """Flags of this script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall",
        help="cpu counts this process's own work: with --threads 1, for a machine that is busy",
    )
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--json", type=Path, help="also write all numbers here")
    parser.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print(run_for_memory(*arguments.memory_of, arguments.device))
        return
    device = arguments.device
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    clock = CLOCKS[arguments.clock]
    peaks = {name: measure_peak(dtype, device, clock) for name, dtype in dtypes.items()}
    print(f"torch {torch.__version__}, {device}, {arguments.threads} threads, {arguments.clock} "
          f"clock, {arguments.rounds} rounds; large product: "
          + ", ".join(f"{k} {v / 1e9:.0f} GFLOP/s" for k, v in peaks.items()))
    tables, kernels = {}, {}
    for name in arguments.cases:
        choices = choose(CASES[name], device)
        kernels[name] = [choice.to_dict() for choice in choices.values()]
        tables[name] = run_case(name, choices, arguments)
        print_table(CASES[name], tables[name], kernels[name], peaks)
    if arguments.json:
        facts = {"tables": tables, "peaks": peaks, "torch": torch.__version__, "kernels": kernels}
        arguments.json.write_text(json.dumps(facts, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
