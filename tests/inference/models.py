"""Tiny real segmenters, in memory and in folders."""

from __future__ import annotations

import torch

from napari_muvit.data.labels import ClassTable, make_classes
from napari_muvit.models.checkpoint import ModelMeta, save_model
from napari_muvit.models.encoder import Encoder
from napari_muvit.models.segmenter import Segmenter

TABLE = ClassTable(make_classes((1, 2, 5)), unlabelled=0)


def make_model(levels=(1, 4), channels=1, seed=0, attention="all", decoder="unetr", size=32):
    """A segmenter with random weights, and the facts a folder would hold."""
    torch.manual_seed(seed)
    encoder = Encoder(
        channels, levels, 8, num_layers=2, dim=32, heads=1, attention_mode=attention, ndim=2,
        token_coordinates="centre", rope_frequencies="scales", crop_size=size,
    )
    model = Segmenter(encoder, 3, decoder=decoder, norm="group", head_dim=16).eval()
    model.meta = ModelMeta(
        "segmenter", crop_size=(size, size), scaled_axes=("y", "x"),
        normalization={"kind": "percentile"}, classes=TABLE.to_dict(),
    )
    return model


def save(model, folder):
    save_model(folder, model, model.meta)
    return folder
