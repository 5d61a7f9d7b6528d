"""Which device trains, and why another one does not."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from napari_muvit.errors import RunError
from napari_muvit.models.kernels import PLAIN, KernelChoice, use_kernels


@dataclass(frozen=True)
class DeviceFact:
    """One device: its name for ``--device``, whether it can be used, and why (not)."""

    name: str
    is_usable: bool
    reason: str


def device_facts() -> list[DeviceFact]:
    """Every device of this machine, the preferred first, with the reason where unusable."""
    return [*_cuda_facts(), _mps_fact(), DeviceFact(
        "cpu", True, f"{torch.get_num_threads()} threads, {platform.machine()}")]


def _cuda_facts() -> list[DeviceFact]:
    reason = cuda_problem()
    if reason is not None:
        return [DeviceFact("cuda", False, reason)]
    facts = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        facts.append(DeviceFact(
            f"cuda:{index}", True, f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GB free"))
    return facts


def cuda_problem() -> str | None:
    """Why no CUDA device can be used, in a sentence; None when one can."""
    if torch.version.cuda is None and torch.version.hip is None:
        return (
            f"torch {torch.__version__} is built for CPUs only; install a CUDA build, see "
            "pytorch.org/get-started"
        )
    if torch.cuda.is_available():
        return None
    return (
        f"torch {torch.__version__} is built for CUDA {torch.version.cuda} but finds no GPU: no "
        "NVIDIA card, a driver that is missing or too old, or CUDA_VISIBLE_DEVICES hides it"
    )


def _mps_fact() -> DeviceFact:
    if torch.backends.mps.is_available():
        return DeviceFact("mps", True, "Apple GPU")
    if torch.backends.mps.is_built():
        return DeviceFact("mps", False, "needs an Apple GPU and macOS 14 or newer")
    return DeviceFact("mps", False, "this torch is not built for Apple GPUs")


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that `name` means here: auto, cpu, mps, cuda or cuda:i.

    Parameters
    ----------
    local_rank
        Number of this process on its machine; with several, each takes its own GPU.

    Raises
    ------
    RunError
        If the device cannot be used; the message says why and what can be.
    """
    usable = [fact for fact in device_facts() if fact.is_usable]
    if name == "auto":
        name = usable[0].name
        if name.startswith("cuda"):
            name = f"cuda:{local_rank % torch.cuda.device_count()}"
    elif name == "cuda" and cuda_problem() is None:
        name = f"cuda:{local_rank % torch.cuda.device_count()}"
    if name not in {fact.name for fact in usable}:
        unusable = {fact.name: fact.reason for fact in device_facts() if not fact.is_usable}
        reason = unusable.get(name.split(":")[0], "there is no such device")
        others = ", ".join(fact.name for fact in usable)
        raise RunError(f"device {name!r} cannot be used: {reason}. Usable are: auto, {others}.")
    return torch.device(name)


@dataclass(frozen=True)
class Numerics:
    """How forward passes are computed: the device, its precision and its kernels."""

    device: torch.device
    precision: str = "fp32"
    kernels: KernelChoice = PLAIN

    def __call__(self) -> AbstractContextManager[Any]:
        """The context of one forward pass, or of one backward pass that recomputes it.

        On a GPU autocast does bf16, because the backward pass has threads of its own there
        and takes autocast along; on the CPU the measured kernels do.
        """
        if self.device.type == "cpu":
            return use_kernels(self.kernels)
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()


def check_precision(device: torch.device, precision: str) -> None:
    """Refuse bf16 where the device does not do it.

    Raises
    ------
    RunError
        Naming the device.
    """
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise RunError(
            f"precision 'bf16' is not supported by {torch.cuda.get_device_name(device)}; "
            "take precision 'fp32'."
        )


@contextmanager
def torch_settings(*, threads: int | None, deterministic: bool) -> Iterator[None]:
    """Within, torch uses `threads` CPU threads and, if asked, deterministic kernels only."""
    before = (
        torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
    )
    if threads is not None:
        torch.set_num_threads(threads)
    if deterministic:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        torch.backends.cudnn.benchmark = before[2]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` means that memory ran out, on whichever device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
    )
