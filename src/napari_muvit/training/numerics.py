"""Which kernels and precision a run computes with: an earlier choice, or a measured one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from napari_muvit.inference.device import count_tokens
from napari_muvit.models.encoder import Encoder
from napari_muvit.models.kernels import PLAIN, SMALL_PRODUCT, KernelChoice, choose_kernels
from napari_muvit.training.device import Numerics


def choose_numerics(
    encoder: Encoder, device: torch.device, precision: str, *, is_fixed: bool = False
) -> tuple[Numerics, list[str]]:
    """Numerics for training `encoder` here, and what to warn of.

    Parameters
    ----------
    is_fixed
        Take torch's own kernels, the same on every machine and at every start.
    """
    if device.type != "cpu":
        return Numerics(device, precision), []
    crop = encoder.crop_size or tuple(32 * side for side in encoder.patch_size)
    tokens = count_tokens(encoder, crop)
    sizes: dict[str, Any] = {
        "dim": encoder.dim, "heads": encoder.heads, "tokens": tokens, "is_training": True}
    if precision == "bf16":
        kernels = choose_kernels("bf16", **sizes)
        if is_fixed:
            kernels = KernelChoice(precision=kernels.precision)
        if kernels.precision == "fp32":
            return Numerics(device, "fp32", kernels), [
                "precision bf16 was asked for, but fp32 measures as fast here; fp32 is used."]
        return Numerics(device, precision, kernels), []
    if is_fixed or tokens * encoder.dim < SMALL_PRODUCT:
        return Numerics(device, precision, PLAIN), []
    return Numerics(device, precision, choose_kernels(**sizes)), []


def numerics_again(
    facts: Mapping[str, Any], encoder: Encoder, device: torch.device, precision: str,
    *, is_fixed: bool = False,
) -> tuple[Numerics, list[str]]:
    """What a run was started with, so that timing noise never changes its numbers.

    On another kind of device than before the choice is made anew, with a warning.
    """
    if facts["device"].split(":")[0] == device.type:
        kernels = KernelChoice.from_dict(facts["kernels"])
        return Numerics(device, facts.get("precision", precision), kernels), []
    numerics, warnings = choose_numerics(encoder, device, precision, is_fixed=is_fixed)
    return numerics, [*warnings, (
        f"the run began on {facts['device']} and goes on on {device}; its numbers will differ in "
        "the last digits."
    )]
