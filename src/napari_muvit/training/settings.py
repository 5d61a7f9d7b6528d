"""What the engine needs to know, taken from a config or from the arguments of ``.fit()``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from napari_muvit.config import RunConfig


@dataclass(frozen=True)
class Settings:
    """Numbers of the loop; the same names and meanings as in the config."""

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.01
    warmup: float = 0.05
    clip: float = 0.5
    accumulate: int = 1
    ema: float = 0.0
    epoch_size: int = 10_000
    seed: int = 0
    deterministic: bool = False
    threads: int | None = None
    validate_every: int = 200
    early_stopping: int | None = None
    checkpoint_every: int = 200
    preview_every: int = 200

    @classmethod
    def from_config(cls, config: RunConfig, base_rate: float) -> Self:
        """Settings of a configured run; `base_rate` where the config leaves the rate open."""
        names = set(cls.__dataclass_fields__) - {"learning_rate"}
        values = {name: getattr(config, name) for name in names}
        return cls(learning_rate=config.learning_rate or base_rate, **values)
