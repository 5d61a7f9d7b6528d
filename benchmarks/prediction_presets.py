"""Whole predictions of the presets: coarse-to-fine attention, and how many tiles in a call."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

NUM_CLASSES = 7


@dataclass(frozen=True)
class Case:
    """A preset with the crops that it is used with, and an image that it is tried on."""

    preset: str
    crop_size: int
    levels: tuple[int, ...]
    side: int


CASES = (
    Case("tiny", 64, (1, 2, 8), 600), Case("tiny", 128, (1, 2, 8), 600),
    Case("tiny", 128, (1, 4, 16), 600), Case("tiny", 256, (1, 4, 16), 900),
    Case("small", 256, (1, 4, 16), 900), Case("base", 256, (1, 4, 16), 640),
)


def make_model(case: Case, attention: str) -> Any:
    """A segmenter with UNETR head and random weights."""
    import torch

    from napari_muvit.config.options import PRESETS
    from napari_muvit.data.labels import ClassTable, make_classes
    from napari_muvit.models.checkpoint import ModelMeta
    from napari_muvit.models.encoder import Encoder
    from napari_muvit.models.segmenter import Segmenter

    torch.manual_seed(0)
    sizes = PRESETS[case.preset]
    encoder = Encoder(
        3, case.levels, sizes["patch_size"], num_layers=sizes["num_layers"], dim=sizes["dim"],
        heads=sizes["heads"], attention_mode=attention, ndim=2, token_coordinates="centre",
        rope_frequencies="scales", crop_size=case.crop_size)
    model = Segmenter(encoder, NUM_CLASSES, norm="group", head_dim=sizes["head_dim"]).eval()
    classes = ClassTable(make_classes(range(1, NUM_CLASSES + 1)), unlabelled=0)
    model.meta = ModelMeta("segmenter", crop_size=(case.crop_size,) * 2, classes=classes.to_dict())
    return model


def presets(given: argparse.Namespace) -> None:
    """Seconds of CPU for a megapixel: full and coarse-to-fine attention, by default and singly."""
    print("| preset | crop, px | levels | full, one tile a call | full | coarse to fine | gain |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for case in (case for case in CASES if case.preset in given.preset):
        image = np.random.default_rng(0).integers(0, 256, (case.side, case.side, 3), np.uint8)
        models = {name: make_model(case, name) for name in ("all", "coarse_to_fine")}
        arms = {"single": ("all", 1), "all": ("all", None), "fine": ("coarse_to_fine", None)}
        spent: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(given.rounds):
            for name, (attention, batch_size) in arms.items():
                spent[name].append(_seconds(image, models[attention], batch_size))
        single, full, fine = (float(np.median(times)) for times in spent.values())
        levels = ", ".join(map(str, case.levels))
        print(f"| {case.preset} | {case.crop_size} | {levels} | {single:.1f} | {full:.1f} | "
              f"{fine:.1f} | {full / fine:.2f} |", flush=True)


def _seconds(image: np.ndarray[Any, Any], model: Any, batch_size: int | None) -> float:
    from napari_muvit import api

    begin = time.process_time()
    api.predict(image, model, tissue="none", threads=1, device="cpu", kernels="torch",
                batch_size=batch_size).compute(scheduler="synchronous")
    return (time.process_time() - begin) / (image.shape[0] * image.shape[1] / 1e6)
