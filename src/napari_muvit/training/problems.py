"""What ended a run, in a sentence that says what to do."""

from __future__ import annotations

from pathlib import Path

import torch

from napari_muvit.errors import MuvitError, RunError
from napari_muvit.models.devices import is_out_of_memory
from napari_muvit.training.files import disk_error
from napari_muvit.training.loader import dead_loader


def explain(problem: Exception, folder: Path, device: torch.device) -> Exception:
    """The sentence for `problem`; an unknown error stays what it is.

    Parameters
    ----------
    folder, device
        Of the run.
    """
    explained = dead_loader(problem) or _sentence(problem, folder, device)
    if explained is None:
        return problem
    explained.__cause__ = problem
    return explained


def _sentence(problem: Exception, folder: Path, device: torch.device) -> MuvitError | None:
    if isinstance(problem, MuvitError):
        return None
    if isinstance(problem, OSError):
        return disk_error(problem, folder)
    if is_out_of_memory(problem):
        return RunError(
            f"memory ran out on {device} outside of the passes that can be split: for the "
            "optimizer's state, a preview or what is read. Close what else uses its memory and "
            "resume, on another device if need be; or start anew with a smaller preset or "
            "crop_size."
        )
    if torch.are_deterministic_algorithms_enabled() and "determinis" in str(problem):
        return RunError(
            f"deterministic is on, and torch cannot do all of a step so on {device}: "
            f"{str(problem).splitlines()[0]} Resume on the CPU, or start anew without it."
        )
    return None
