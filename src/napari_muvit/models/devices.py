"""Which devices there are, why another one cannot be used, and how a pass runs on one."""

from __future__ import annotations

import copy
import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from napari_muvit.errors import RunError
from napari_muvit.models.kernels import KernelChoice, use_kernels

WITHOUT_FLOAT64 = {"mps"}
"""Kinds of devices that refuse float64: Apple GPUs."""


def widest_float(device: torch.device) -> torch.dtype:
    """float64, or float32 where a device has nothing wider."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def copy_to(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`, waited for except on CUDA.

    CUDA has read ordinary memory when the call returns. Apple's backend may read it later, after
    it was freed and used anew (pytorch/pytorch issue 139550).
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


def module_on(module: nn.Module, device: torch.device) -> nn.Module:
    """`module` itself if it lies on `device`, else a copy of it there.

    A module that is moved is taken away from everyone who uses it.
    """
    tensors = [*module.parameters(), *module.buffers()]
    if all(_lies_on(tensor, device) for tensor in tensors):
        return module
    moved: dict[int, Any] = {id(b): b.detach().to(device) for b in module.buffers()}
    moved |= {id(p): nn.Parameter(p.detach().to(device), p.requires_grad)
              for p in module.parameters()}
    return copy.deepcopy(module, moved)


def _lies_on(tensor: Tensor, device: torch.device) -> bool:
    own = tensor.device
    return own.type == device.type and device.index in (None, own.index)


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
    """The device that `name` means here: auto (the fastest kind), cpu, mps, cuda or cuda:i.

    Parameters
    ----------
    local_rank
        Number of this process on its machine; with several, each takes its own GPU.

    Raises
    ------
    RunError
        If the device cannot be used; the message says why and what can be.
    """
    usable = _usable_names()
    wanted = usable[0] if name == "auto" else name
    is_any_gpu = name in {"auto", "cuda"} and wanted.startswith("cuda")
    if is_any_gpu and cuda_problem() is None:
        wanted = f"cuda:{local_rank % torch.cuda.device_count()}"
    if wanted not in usable:
        unusable = {fact.name: fact.reason for fact in device_facts() if not fact.is_usable}
        reason = unusable.get(wanted.split(":")[0], "there is no such device")
        raise RunError(
            f"device {name!r} cannot be used: {reason}. Usable are: auto, {', '.join(usable)}.")
    return torch.device(wanted)


def _usable_names() -> list[str]:
    """The preferred first; asks no card for its memory, which would take some of it."""
    cards = 0 if cuda_problem() else torch.cuda.device_count()
    apple = ["mps"] if torch.backends.mps.is_available() else []
    return [*(f"cuda:{index}" for index in range(cards)), *apple, "cpu"]


def pass_context(
    device: torch.device, precision: str, kernels: KernelChoice
) -> AbstractContextManager[Any]:
    """The context of one forward pass, or of one backward pass that recomputes it.

    On a GPU autocast does bf16, because the backward pass has threads of its own there and takes
    autocast along; on the CPU the measured kernels do.
    """
    if device.type == "cpu":
        return use_kernels(kernels)
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` means that memory ran out, on whichever device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
    )
