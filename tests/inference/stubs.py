"""Models whose right answer is known: functions of pixels that count their calls."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np

from napari_muvit.data.labels import ClassTable, LabelClass
from napari_muvit.inference.spec import ModelSpec

TABLE = ClassTable(
    (LabelClass(1, "low", "#e41a1c"), LabelClass(3, "mid", "#377eb8"),
     LabelClass(7, "high", "#4daf4a")),
    unlabelled=0,
)


def make_spec(levels=(1,), size=32, ndim=2, channels=1, table=TABLE, **more) -> ModelSpec:
    sizes = (size,) * ndim if isinstance(size, int) else size
    return ModelSpec(tuple(levels), sizes, ndim, channels, table, **more)


def thirds(x: np.ndarray) -> np.ndarray:
    """Probabilities (B, 3, *S) of values (B, *S) in 0..1: low, middle, high."""
    centres = np.array([0.0, 0.5, 1.0]).reshape(1, 3, *(1,) * (x.ndim - 1))
    scores = np.exp(-8 * (x[:, None] - centres) ** 2)
    return (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)


@dataclass
class PixelModel:
    """Judges every pixel by its own value on the finest level."""

    spec: ModelSpec = field(default_factory=make_spec)
    calls: int = 0
    tiles: int = 0
    lock: object = field(default_factory=threading.Lock, repr=False)

    def __getstate__(self):
        return {"spec": self.spec, "calls": 0, "tiles": 0}

    def __setstate__(self, state):
        self.__dict__.update(state, lock=threading.Lock())

    def __call__(self, x, bbox, valid):
        with self.lock:
            self.calls += 1
            self.tiles += len(x)
        return thirds(self.judge(x, bbox))

    def judge(self, x, bbox):
        return x[:, 0, 0]


@dataclass
class BlurModel(PixelModel):
    """Judges every pixel by the mean of its 3 x 3 neighbours: translation-equivariant."""

    def judge(self, x, bbox):
        padded = np.pad(x[:, 0, 0], ((0, 0), (1, 1), (1, 1)))
        h, w = x.shape[-2:]
        return sum(padded[:, i:i + h, j:j + w] for i in range(3) for j in range(3)) / 9


@dataclass
class PlaceModel(PixelModel):
    """Judges every pixel by its world position alone, from the boxes."""

    period: float = 97.0

    def judge(self, x, bbox):
        size = x.shape[-1]
        lower, upper = bbox[:, 0, 0], bbox[:, 0, 1]
        places = [
            lower[:, axis, None] + (np.arange(size) + 0.5) / size * (upper - lower)[:, axis, None]
            for axis in range(2)
        ]
        rows, columns = places[0] / self.period, places[1] / self.period
        return 0.5 + 0.5 * np.sin(rows)[:, :, None] * np.cos(columns)[:, None]


@dataclass
class ContextModel(PixelModel):
    """Judges every pixel by the coarsest crop's mean: changes where the crop changes."""

    def judge(self, x, bbox):
        mean = x[:, -1].reshape(len(x), -1).mean(axis=1)
        return np.broadcast_to(mean[:, None, None], (len(x), *x.shape[-2:]))
