"""What is said before a run starts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from napari_muvit.config import FinetuneConfig, PretrainConfig
from napari_muvit.errors import SourceError
from napari_muvit.plugin import checks

BASE = {"images": ("a.zarr",), "output": "run", "device": "cpu"}


def test_memory_grows_with_what_is_chosen() -> None:
    small = PretrainConfig(**BASE, preset="tiny", crop_size=(64,), batch_size=2)
    larger = [
        {"batch_size": 8}, {"crop_size": (256,)}, {"preset": "base"}, {"levels": (1, 2, 4, 8, 16)},
        {"masking_ratio": 0.5},
    ]
    least = checks.memory_bytes(small)
    for change in larger:
        values = {**small.model_dump(), **change}
        assert checks.memory_bytes(PretrainConfig.model_validate(values)) > least
    tuned = FinetuneConfig(**BASE, labels=("l.zarr",), preset="tiny", crop_size=(64,), batch_size=2)
    assert checks.memory_bytes(tuned) > least
    assert checks.memory_bytes(small, ndim=3) > least


def test_too_little_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    config = PretrainConfig(**BASE)
    monkeypatch.setattr(checks, "available_bytes", lambda device: (1e9, "in this computer"))
    assert "of 1 GB in this computer: take a smaller" in checks.memory_text(config)
    monkeypatch.setattr(checks, "available_bytes", lambda device: (1e15, "in this computer"))
    assert checks.memory_text(config).endswith("in this computer.")
    monkeypatch.setattr(checks, "available_bytes", lambda device: (None, ""))
    assert checks.memory_text(config).endswith("GB of memory.")


def test_advice_is_given_once_and_unreadable_images_are_left_to_the_start() -> None:
    def open_pyramid(path: str, **options: Any) -> Any:
        if path == "gone":
            raise SourceError("there is no file.")
        return SimpleNamespace(ndim=2)

    backend = SimpleNamespace(
        open_pyramid=open_pyramid, advise_levels=lambda *given: "crops are too large."
    )
    config = PretrainConfig(**{**BASE, "images": ("a.tif", "b.tif", "gone", "list.csv")})
    said = checks.advise(backend, config)
    assert said.startswith("Crops are too large. Needs about ")
