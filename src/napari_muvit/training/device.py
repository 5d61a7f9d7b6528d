"""How a run computes on its device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from napari_muvit.errors import RunError
from napari_muvit.models.devices import is_out_of_memory, pass_context
from napari_muvit.models.kernels import PLAIN, KernelChoice

CUBLAS = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
"""The environment variable that makes cuBLAS deterministic, and a value that torch takes."""


@dataclass(frozen=True)
class Numerics:
    """How forward passes are computed: the device, its precision and its kernels."""

    device: torch.device
    precision: str = "fp32"
    kernels: KernelChoice = PLAIN

    def __call__(self) -> AbstractContextManager[Any]:
        """The context of one forward pass, or of one backward pass that recomputes it."""
        return pass_context(self.device, self.precision, self.kernels)


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


def move_modules(modules: nn.Module, device: torch.device) -> None:
    """Move what is trained to `device`, in place.

    Raises
    ------
    RunError
        If it does not fit there.
    """
    try:
        modules.to(device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(
            f"the model does not fit into the memory of {device}. Close what else uses it, or "
            "take a smaller preset or another device."
        ) from error


@contextmanager
def torch_settings(*, threads: int | None, deterministic: bool) -> Iterator[None]:
    """Within, torch uses `threads` CPU threads and, if asked, deterministic kernels only.

    For these torch refuses every product on CUDA unless cuBLAS is told, in an environment
    variable, to keep its workspaces apart. The variable is read when cuBLAS is first used, which
    in a run is later than here. A value that the user has set is kept.
    """
    before = (
        torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
    )
    if threads is not None:
        torch.set_num_threads(threads)
    if deterministic:
        os.environ.setdefault(*CUBLAS)
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        torch.backends.cudnn.benchmark = before[2]
