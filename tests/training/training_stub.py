"""A tiny task that trains in milliseconds: the engine's behaviour without the real model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from napari_muvit.training.control import Control
from napari_muvit.training.device import Numerics
from napari_muvit.training.engine import Engine
from napari_muvit.training.events import Event, FinishedEvent
from napari_muvit.training.folder import RunFolder, create_run
from napari_muvit.training.loader import Batch, SampleLoader
from napari_muvit.training.parallel import Parallel
from napari_muvit.training.settings import Settings
from napari_muvit.training.task import StepSeed


class Numbers(torch.utils.data.Dataset):
    """Sample i: 8 numbers that depend on i, and what to make of them."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng([7, index])
        x = rng.normal(size=8).astype(np.float32)
        return {"x": x, "y": np.float32(x.sum()), "index": index}


class StubTask:
    """A two-layer network with dropout, so that global randomness would be noticed."""

    kind = "fit"
    metric = "loss"
    higher_is_better = False
    metric_names = ("loss",)
    num_scores = 2
    base_rate = 1e-2
    betas = (0.9, 0.999)

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.modules = nn.Sequential(
                nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, 1))
        self.before_loss = lambda batch: None

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.modules.parameters())}]

    def train(self) -> None:
        self.modules.train()

    def prepare(self, batch: Batch, seed: StepSeed, whole: int, part: slice) -> Batch:
        noise = torch.randn(whole, generator=seed.generator(0))
        return {**batch, "noise": noise[part][: len(batch["x"])]}

    def totals(self, batch: Batch) -> torch.Tensor:
        return torch.tensor([float(len(batch["x"]))], dtype=torch.float64)

    def loss(self, batch: Batch, totals: torch.Tensor) -> torch.Tensor:
        self.before_loss(batch)
        error = self.modules(batch["x"])[:, 0] + 0.01 * batch["noise"] - batch["y"]
        return error.square().sum() / totals[0]

    def scores(self, batch: Batch) -> torch.Tensor:
        error = self.modules(batch["x"])[:, 0] - batch["y"]
        return torch.stack([error.double().square().sum(),
                            torch.tensor(float(len(error)), dtype=torch.float64)])

    def metrics(self, scores: torch.Tensor) -> dict[str, float]:
        return {"loss": float(scores[0] / scores[1])}

    def preview(self, batch: Batch) -> np.ndarray:
        return np.zeros((4, 4, 3), np.uint8)

    def place(self, batch: Batch, index: int) -> str:
        return f"sample {int(batch['index'][index])}"

    def save(self, folder: Path, facts: dict[str, Any]) -> None:
        folder.mkdir(exist_ok=True)
        torch.save(self.modules.state_dict(), folder / "weights.pt")
        (folder / "config.yaml").write_text("kind: stub\n", encoding="utf-8")


DEFAULTS: dict[str, Any] = {
    "steps": 12, "batch_size": 8, "learning_rate": 1e-2, "epoch_size": 32, "validate_every": 4,
    "checkpoint_every": 3, "preview_every": 6,
}


def make_engine(
    path: Path, *, task: StubTask | None = None, validate: bool = True, workers: int = 0,
    control: Control | None = None, numerics: Numerics | None = None, **values: Any,
) -> Engine:
    """An engine on a new run folder, or on the one that is there."""
    settings = Settings(**{**DEFAULTS, **values})
    facts = {"kind": "fit", "steps": settings.steps}
    folder = RunFolder(path) if path.exists() else create_run(path, None, facts)
    parallel = Parallel()
    loader = SampleLoader(Numbers(), settings.batch_size, workers, parallel)
    validation = SampleLoader(Numbers(), settings.batch_size, 0, parallel, limit=20)
    numerics = numerics or Numerics(torch.device("cpu"))
    engine = Engine(
        task or StubTask(), settings, folder, loader, validation if validate else None, 3,
        numerics, parallel, control or Control(),
    )
    engine.load()
    return engine


def run_all(engine: Engine) -> list[Event]:
    """Train to the end."""
    events = list(engine.events())
    assert isinstance(events[-1], FinishedEvent)
    return events


def weights(engine: Engine) -> dict[str, torch.Tensor]:
    """A copy of everything that was trained."""
    return {k: v.clone() for k, v in engine.task.modules.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
