"""What a prediction tells the outside: plain frozen events, each a safe place to stop."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TileEvent:
    """`done` of `total` tiles are computed; `remaining` seconds, None while not known.

    `image` is the name of the image under way; `left_out` the share of it, 0 to 1, that is not
    predicted because it is empty or outside the mask.
    """

    done: int
    total: int
    remaining: float | None
    image: str = ""
    left_out: float = 0.0


@dataclass(frozen=True)
class WarningEvent:
    """Something went wrong that did not stop the prediction."""

    message: str
    image: str = ""


@dataclass(frozen=True)
class FinishedEvent:
    """A prediction is on disk.

    Attributes
    ----------
    output
        The label store.
    complete
        Whether every tile is done; run again to try the others.
    part_complete
        Whether every tile of this process's part is done; `complete` tells of all parts.
    was_complete
        Whether all was done before, so that nothing was computed.
    failed
        Tiles that could not be computed.
    seconds
        What it took this time.
    areas
        Rows of class, pixels and um2 of what is finished; see `area_table`.
    left_out
        Share of the image, or of the region asked for, that was left out as empty or outside
        the mask, 0 to 1.
    """

    output: Path
    complete: bool = True
    failed: int = 0
    seconds: float = 0.0
    areas: list[dict[str, Any]] = field(default_factory=list)
    part_complete: bool = True
    was_complete: bool = False
    left_out: float = 0.0


PredictionEvent = TileEvent | WarningEvent | FinishedEvent
