"""TensorBoard records beside ``metrics.csv``, by the extra ``tensorboard``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from napari_muvit.errors import require_extra
from napari_muvit.training.events import Event, PreviewEvent, StepEvent, ValidationEvent


def check_tensorboard() -> None:
    """Refuse to start where TensorBoard is not installed.

    Raises
    ------
    MissingExtraError
        Naming the pip command.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise require_extra("tensorboard", "tensorboard", "writing TensorBoard records")


class TensorBoardWatcher:
    """Writes losses, rates, metrics and previews of a run into `folder`.

    Parameters
    ----------
    writer
        Something with ``add_scalar`` and ``add_image``; by default torch's writer.
    """

    def __init__(self, folder: Path, writer: Any = None) -> None:
        if writer is None:
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(folder))
        self._writer = writer

    def __call__(self, event: Event) -> None:
        """Write what `event` tells."""
        if isinstance(event, StepEvent):
            self._writer.add_scalar("train/loss", event.loss, event.step)
            self._writer.add_scalar("train/learning_rate", event.learning_rate, event.step)
        elif isinstance(event, ValidationEvent):
            for name, value in event.metrics.items():
                self._writer.add_scalar(f"val/{name}", value, event.step)
        elif isinstance(event, PreviewEvent):
            import imagecodecs

            picture = imagecodecs.png_decode(event.path.read_bytes())
            self._writer.add_image("preview", picture, event.step, dataformats="HWC")
