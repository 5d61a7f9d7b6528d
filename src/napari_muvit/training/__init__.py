"""Crops become weights: the engine, its events and its run folders."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "start_pretrain": "start", "start_finetune": "start", "resume_run": "resuming",
    "Run": "run", "RunFolder": "folder", "find_model": "folder", "fit_mae": "fit",
    **dict.fromkeys(
        ("StepEvent", "EpochEvent", "ValidationEvent", "PreviewEvent", "CheckpointEvent",
         "WarningEvent", "StoppingEvent", "FinishedEvent", "Event"), "events"),
}

__all__ = [*sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    # Reading a run folder must not cost the import of torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
