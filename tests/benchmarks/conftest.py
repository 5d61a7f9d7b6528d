"""The benchmarks' own folder is where their scripts find each other, as when they are run."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

SIDE = 128

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def sections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-ins for the sections of human cortex, where they would lie in a folder of test data.

    Two bands of different grey for each section, and a strip that is not judged.
    """
    from cortex_layers import DONORS

    folder = tmp_path_factory.mktemp("data") / "segmentation" / "human_cortex_layers"
    random = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for number, name in enumerate(name for donor in DONORS for name in donor):
        labels = np.ones((SIDE, SIDE), np.uint8)
        labels[55 + number:] = 2
        image = (labels[..., None] * 80 + random.integers(0, 20, (SIDE, SIDE, 3))).astype(np.uint8)
        labels[:, :10] = 0
        Image.fromarray(image).save(folder / "images" / f"{name}.png")
        Image.fromarray(labels).save(folder / "labels" / f"{name}.png")
    return folder
