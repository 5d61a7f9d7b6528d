"""Linear probing of whole images: which group an image belongs to. MuViT, section 4.6, Table 7.

Random nested crops of each image become one vector each, the mean of the encoder's features of
every level. A linear classifier learns the groups from some images and is judged on the crops
of others, as in the paper: five crops of a training image and ten of a test image.

Axis letters: n samples, L levels, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.config import PretrainConfig, parse_config
from napari_muvit.data.labels import ClassTable, make_classes
from napari_muvit.data.samples import SampleSource
from napari_muvit.errors import InputError
from napari_muvit.inference.features import FeaturePredictor, parse_encoder
from napari_muvit.inference.job import check_image
from napari_muvit.inference.probe import ProbeScores, Samples, score_probe

if TYPE_CHECKING:
    from napari_muvit.data.pyramid import Pyramid


def probe_images(
    train: Sequence[tuple[Any, str]], test: Sequence[tuple[Any, str]], model: Any, *,
    crops: tuple[int, int] = (5, 10), seed: int = 0, device: str = "auto",
) -> ProbeScores:
    """How well a linear classifier on frozen features tells groups of images apart.

    Parameters
    ----------
    train, test
        Pairs of an image, anything that `open_pyramid` takes, and the name of its group.
    model
        Run or model folder, pretrained or fine-tuned, or a loaded model.
    crops
        Random crops of each training image and of each test image.
    seed
        Of the places of the crops.

    Returns
    -------
    ProbeScores
        Groups in alphabetical order are the classes 0, 1, ...; samples are crops.

    Raises
    ------
    InputError
        If there are fewer than two groups to learn, or no image to judge.
    """
    names = sorted({group for _, group in [*train, *test]})
    if len({group for _, group in train}) < 2 or not test:
        raise InputError(
            f"{len({group for _, group in train})} groups are given to learn from and "
            f"{len(test)} images to judge; a probe needs two groups and an image. Pass more."
        )
    table = ClassTable(make_classes(range(len(names)), names=dict(enumerate(names))))
    predictor = parse_encoder(model, device=device).open()
    parts = [
        _collect(pairs, names, predictor, count, seed + number)
        for number, (pairs, count) in enumerate(zip((train, test), crops, strict=True))
    ]
    return score_probe(parts[0], parts[1], table)


def _collect(
    pairs: Sequence[tuple[Any, str]], names: Sequence[str], predictor: FeaturePredictor,
    count: int, seed: int,
) -> Samples:
    from napari_muvit.data.pyramid import open_pyramid

    vectors = [
        crop_vectors(open_pyramid(image), predictor, range(count), seed) for image, _ in pairs]
    classes = np.repeat([names.index(group) for _, group in pairs], count)
    return Samples(np.concatenate(vectors), classes, np.arange(len(classes))[:, None])


def crop_vectors(
    pyramid: Pyramid, predictor: FeaturePredictor, numbers: Sequence[int], seed: int
) -> NDArray[np.float32]:
    """Mean features of every level, (n, L D), of random crops of an image."""
    import torch

    spec, encoder = predictor.spec, predictor.model
    check_image(pyramid, spec)
    rule = spec.normalization or {"kind": "none"}
    given = {
        "percentiles": rule.get("percentiles"), "normalization_constant": rule.get("constant"),
        "scaled_axes": [pyramid.axes[1:][axis] for axis in spec.scaled_axes or ()] or None,
    }
    config = parse_config(PretrainConfig, {
        "images": (pyramid.name,), "output": "unused", "levels": spec.levels,
        "crop_size": spec.crop_size, "seed": seed,
        "normalization": rule["kind"], **{k: v for k, v in given.items() if v is not None},
    })
    source = SampleSource([pyramid], config=config, augment=False, pixel_size=spec.pixel_size)
    found = []
    for number in numbers:
        sample = source.sample(number)
        with torch.inference_mode(), predictor.computing():
            maps: Any = encoder.compute_features(  # type: ignore[operator]
                *predictor.to_tensors(sample["img"][None], sample["bbox"][None]))
        found.append(maps[0].float().flatten(2).mean(-1).flatten().cpu().numpy())
    return np.stack(found)
