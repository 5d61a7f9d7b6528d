"""A pretended GPU: to torch another device than the CPU, which computes for it.

It refuses what real ones refuse: tensors of two devices in one operation (single numbers may
stay on the CPU), becoming an array of numpy, and, as Apple's, float64 where that is asked for.
Nothing is said about memory, speed or the last digits. It lives as long as its process.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
DEVICE = f"{NAME}:0"
COPY, MOVE = torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default
_fallbacks = torch.library.Library("_", "IMPL")
_make_tensor = torch.tensor
_refused: set[torch.dtype] = set()


def install(*, has_float64: bool) -> None:
    """Make the device known to torch; once in a process."""
    _setup_privateuseone_for_python_backend(NAME)
    _fallbacks.fallback(lambda op, *args, **options: _run(op, args, options), "PrivateUse1")
    if not has_float64:
        _refused.add(torch.float64)
    getattr(torch, NAME).get_amp_supported_dtype = lambda: [torch.bfloat16]
    # torch itself cannot do these two with a device that is written in Python.
    torch.tensor = _tensor
    torch.inference_mode = lambda mode=True: torch.no_grad()


class Held(torch.Tensor):
    """A tensor of the pretended device; `raw` has its numbers."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> Held:
        if raw.dtype in _refused:
            raise TypeError(f"cannot convert a tensor to {raw.dtype}: {NAME} has none")
        return torch.Tensor._make_wrapper_subclass(
            cls, raw.size(), strides=raw.stride(), storage_offset=raw.storage_offset(),
            dtype=raw.dtype, device=DEVICE)

    def __init__(self, raw: torch.Tensor) -> None:
        self.raw = raw

    def tolist(self) -> Any:
        """As of other tensors; torch refuses it for classes of one's own."""
        return self.raw.tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Saved as a tensor of the CPU, where loading puts those of GPUs."""
        return self.raw.__reduce_ex__(protocol)

    def numpy(self, *args: Any, **options: Any) -> Any:
        """Refused, as by every GPU."""
        raise TypeError(f"cannot convert a tensor of {DEVICE} to numpy; use .cpu() first")

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), options: Any = None) -> Any:
        return _run(op, args, options or {})


def _run(op: Any, args: Any, options: dict[str, Any]) -> Any:
    """An operation on the CPU, in the name of the device that should do it."""
    tensors = [leaf for leaf in pytree.tree_leaves((args, options))
               if isinstance(leaf, torch.Tensor)]
    held = [tensor for tensor in tensors if isinstance(tensor, Held)]
    if op is COPY:
        into, source = (_raw(tensor) for tensor in args[:2])
        into.copy_(source)
        return args[0]
    if op is not MOVE and held and any(t.ndim and not isinstance(t, Held) for t in tensors):
        raise RuntimeError(f"{op}: tensors of {DEVICE} and of the CPU in one operation")
    out = op(*pytree.tree_map(_raw, args), **pytree.tree_map(_raw, options))
    device = options.get("device")
    if not (held if device is None else torch.device(device).type == NAME):
        return out
    wrapped = pytree.tree_map(
        lambda leaf: Held(leaf) if isinstance(leaf, torch.Tensor) else leaf, out)
    return return_and_correct_aliasing(op, args, options, wrapped)


def _raw(leaf: Any) -> Any:
    if isinstance(leaf, torch.device) and leaf.type == NAME:
        return torch.device("cpu")
    return leaf.raw if isinstance(leaf, Held) else leaf


def _tensor(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
    made = _make_tensor(data, **options)
    return made if device is None else made.to(device)
