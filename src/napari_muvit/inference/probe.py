"""Linear probing: how well frozen features tell classes apart. MuViT, section 4.6.

Each patch of one level is a sample: its feature vector, and the class that most of its judged
pixels have. A linear classifier (multinomial logistic regression) learns on some places and
is judged on others by the area under the ROC curve of each class against all others.

Axis letters: n samples, D width, K classes, A spatial axes, S' patches along each axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.data.label_reader import LabelReader
from napari_muvit.data.labels import ClassTable, infer_class_table
from napari_muvit.data.physical import match_pixel_size
from napari_muvit.errors import InputError
from napari_muvit.geometry import FloatArray, default_scaled_axes
from napari_muvit.inference.features import (
    EncoderSource,
    FeaturePredictor,
    features,
    parse_encoder,
)
from napari_muvit.inference.job import level_grids

if TYPE_CHECKING:
    from napari_muvit.data.pyramid import Pyramid

SAMPLES = 65_536
"""Most patches of one image that take part; drawn at random where there are more."""

POINTS = 4
"""Labels looked up along each side of a patch."""

CELLS = 8
"""Places that the longest side of an image is cut into, to hold some out."""

DECAY = 1e-4
"""L2 penalty of the classifier's weights, features scaled to unit deviation."""

ITERATIONS = 200

COMPUTING = ("device", "precision", "threads", "kernels")
"""Options that say how an encoder runs."""

PLANES = ("channels", "t", "z", "image")
"""Options that say what of a source is the image."""


@dataclass(frozen=True)
class ProbeScores:
    """What a linear probe reached on the held-out samples.

    Attributes
    ----------
    classes
        Name of each class by its label value.
    auc
        Area under the ROC curve of each class against all others, by label value; of the
        classes that both parts hold, if the held-out one also holds others.
    mean_auc
        Mean of `auc`; NaN where there is none.
    accuracy
        Share of the held-out samples whose class is the likeliest.
    num_train, num_test
        Samples of both parts.
    """

    classes: dict[int, str]
    auc: dict[int, float]
    mean_auc: float
    accuracy: float
    num_train: int
    num_test: int

    def __str__(self) -> str:
        width = max([len(name) for name in self.classes.values()] + [5])
        lines = [f"{'class':<{width}}  value  ROC-AUC"]
        for value, name in self.classes.items():
            shown = f"{self.auc[value]:.4f}" if value in self.auc else "not in both parts"
            lines.append(f"{name:<{width}}  {value:>5}  {shown}")
        lines.append(f"mean ROC-AUC {self.mean_auc:.4f}, accuracy {self.accuracy:.4f}; learned on "
                     f"{self.num_train} patches, judged on {self.num_test}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "classes": {str(key): name for key, name in self.classes.items()},
            "auc": {str(key): value for key, value in self.auc.items()},
            "mean_auc": self.mean_auc if math.isfinite(self.mean_auc) else None,
            "accuracy": self.accuracy, "num_train": self.num_train, "num_test": self.num_test,
        }


@dataclass(frozen=True, eq=False)
class Samples:
    """Features (n, D) float32, class indices (n,), and places in the grid of patches (n, A)."""

    features: NDArray[np.float32]
    classes: NDArray[np.int64]
    places: NDArray[np.int64]

    def part(self, chosen: NDArray[np.bool_]) -> Samples:
        """The chosen samples."""
        return Samples(self.features[chosen], self.classes[chosen], self.places[chosen])


def probe(
    source: Any, labels: Any, model: Any, level: float = 1, *, test: tuple[Any, Any] | None = None,
    held_out: float = 0.25, unlabelled: int | None = None, seed: int = 0, **options: Any,
) -> ProbeScores:
    """How well a linear classifier on frozen features of one level finds the classes.

    Parameters
    ----------
    source, labels
        An image and its label image, anything that `open_pyramid` takes.
    model
        Run or model folder, pretrained or fine-tuned, or a loaded model.
    level
        One of the model's levels.
    test
        Another image and its labels to judge on, the harder test: features see surroundings.
    held_out, seed
        Without `test`: the share of places held out, and what draws them.
    unlabelled
        Label value that is not judged; by default what the label store says.
    **options
        Of `inference.features.features`, such as ``device``.

    Raises
    ------
    InputError
        If there are fewer than two classes or places, or labels and image do not fit.
    """
    if not 0 < held_out < 1:
        raise InputError(f"held_out is {held_out}; it must be between 0 and 1.")
    pairs = [(source, labels), *([] if test is None else [test])]
    found, table = _collect_all(pairs, model, level, unlabelled, seed, options)
    train, held = found if test is not None else split_places(found[0], held_out, seed)
    if len(np.unique(train.classes)) < 2 or not len(held.classes):
        raise InputError(
            f"the labels give {len(train.classes)} patches of {len(np.unique(train.classes))} "
            f"classes to learn from and {len(held.classes)} to judge; a probe needs two classes "
            "and something to judge. Label more places, or pass a finer level."
        )
    return score_probe(train, held, table)


def _collect_all(
    pairs: Sequence[tuple[Any, Any]], model: Any, level: float, unlabelled: int | None, seed: int,
    options: dict[str, Any],
) -> tuple[list[Samples], ClassTable]:
    """The labelled patches of every image, and the classes of all."""
    opened = [_open_labels(truth, options.get("t"), options.get("z")) for _, truth in pairs]
    table = infer_class_table(opened, unlabelled)
    encoder = parse_encoder(model, **{k: v for k, v in options.items() if k in COMPUTING})
    found = [
        collect(image, truth, table, encoder, level, np.random.default_rng([seed, number]), options)
        for number, ((image, _), truth) in enumerate(zip(pairs, opened, strict=True))
    ]
    return found, table


def _open_labels(source: Any, t: int | None, z: int | None) -> Pyramid:
    """Labels, of the plane that is probed where they have several."""
    from napari_muvit.data.pyramid import open_pyramid

    pyramid = open_pyramid(source)
    is_open = source is pyramid  # its plane is chosen
    time = t if pyramid.num_times > 1 and not is_open else None
    plane = z if "z" in pyramid.axes and not is_open else None
    return open_pyramid(source, t=time, z=plane).as_labels()


def collect(
    source: Any, labels: Pyramid, table: ClassTable, encoder: EncoderSource, level: float,
    rng: np.random.Generator, options: dict[str, Any],
) -> Samples:
    """The labelled patches of an image; features are computed only where there are some."""
    from napari_muvit.data.pyramid import open_pyramid

    which = {name: options[name] for name in PLANES if name in options}
    others = {name: value for name, value in options.items() if name not in PLANES}
    pyramid = open_pyramid(source, **which)
    lazy = features(pyramid, encoder, level, **others)
    lower, cell = patch_grid(pyramid, encoder.open(), level)
    reader = LabelReader(labels, pyramid, table)
    wanted = []
    for index in np.ndindex(*lazy.numblocks[1:]):
        start = [sum(sizes[:i]) for sizes, i in zip(lazy.chunks[1:], index, strict=True)]
        size = [sizes[i] for sizes, i in zip(lazy.chunks[1:], index, strict=True)]
        box = lower + cell * np.stack([start, np.add(start, size)])
        classes = patch_classes(reader, box, size, len(table))
        if (classes >= 0).any():
            wanted.append((index, np.asarray(start), classes))
    parts = []
    for index, first, classes in wanted:
        places = np.argwhere(classes >= 0)
        most = max(1, SAMPLES // len(wanted))
        if len(places) > most:
            places = places[rng.choice(len(places), most, replace=False)]
        block = np.asarray(lazy.blocks[(0, *index)].compute())
        at = tuple(places.T)
        vectors = np.moveaxis(block, 0, -1)[at]
        parts.append(Samples(vectors, classes[at], places + first))
    if not parts:
        raise InputError(f"labels {labels.name!r} hold nothing labelled inside the image.")
    return Samples(*(np.concatenate([getattr(part, name) for part in parts])
                     for name in ("features", "classes", "places")))


def patch_grid(
    pyramid: Pyramid, predictor: FeaturePredictor, level: float
) -> tuple[FloatArray, FloatArray]:
    """Lower outer edge and size (A,) of the first patch of a level, world px."""
    spec = predictor.spec
    axes = spec.scaled_axes or default_scaled_axes(spec.ndim)
    match = match_pixel_size(spec.levels, spec.pixel_size, pyramid, axes)
    scales, lowers = level_grids(pyramid, tuple(float(v) for v in match.levels), axes)
    number = spec.levels.index(level)
    patch: Any = predictor.model.patch_size
    return np.asarray(lowers[number]), np.asarray(scales[number]) * np.asarray(tuple(patch))


def patch_classes(
    reader: LabelReader, box: FloatArray, size: Sequence[int], num_classes: int
) -> NDArray[np.int64]:
    """Most frequent class (*S') of each patch in `box`; -1 where most of it is not judged."""
    points = reader.read(box, [n * POINTS for n in size])
    split = points.reshape([n for count in size for n in (count, POINTS)])
    axes = len(size)
    grouped = split.transpose([*range(0, 2 * axes, 2), *range(1, 2 * axes, 2)])
    flat = grouped.reshape(*size, -1)
    counts = np.stack([(flat == index).sum(-1) for index in range(num_classes)], axis=-1)
    found: NDArray[np.int64] = counts.argmax(-1)
    return np.where(2 * counts.sum(-1) > flat.shape[-1], found, -1)


def split_places(samples: Samples, held_out: float, seed: int) -> tuple[Samples, Samples]:
    """Samples to learn from and to judge on, from different places of one image."""
    extent = samples.places.max(0) + 1
    side = max(1, -(-int(extent.max()) // CELLS))
    _, cell = np.unique(samples.places // side, axis=0, return_inverse=True)
    cell = cell.reshape(-1)
    count = int(cell.max()) + 1
    order = np.random.default_rng(seed).permutation(count)
    is_held = np.isin(cell, order[: max(1, round(held_out * count))])
    return samples.part(~is_held), samples.part(is_held)


def score_probe(train: Samples, held: Samples, table: ClassTable) -> ProbeScores:
    """Fit on one part, judge on the other."""
    present = np.unique(train.classes)
    scores = fit_logistic(train.features, np.searchsorted(present, train.classes), held.features)
    auc = {}
    for column, index in enumerate(present.tolist()):
        is_class = held.classes == index
        if is_class.any() and not is_class.all():
            auc[table.values[index]] = roc_auc(scores[:, column], is_class)
    right = present[scores.argmax(1)] == held.classes
    return ProbeScores(
        dict(zip(table.values, table.names, strict=True)), auc,
        float(np.mean(list(auc.values()))) if auc else math.nan, float(right.mean()),
        len(train.classes), len(held.classes),
    )


def fit_logistic(
    features: NDArray[np.float32], classes: NDArray[np.int64], others: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Log-probabilities (m, K) of `others` (m, D), by a regression on `features` (n, D)."""
    import torch
    from torch.nn import functional

    mean, deviation = features.mean(0), features.std(0) + 1e-6
    x, y = ((torch.from_numpy((part - mean) / deviation)) for part in (features, others))
    target = torch.from_numpy(classes)
    weight = torch.zeros(x.shape[1], int(classes.max()) + 1, requires_grad=True)
    bias = torch.zeros(weight.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(x @ weight + bias, target)
        value = value + DECAY * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    with torch.no_grad():
        found: NDArray[np.float32] = (y @ weight + bias).log_softmax(1).numpy()
    return found


def roc_auc(scores: NDArray[Any], is_class: NDArray[np.bool_]) -> float:
    """Chance that a sample of the class scores above one of the others; ties count half.

    The Mann-Whitney statistic over its largest value.
    """
    from scipy.stats import rankdata

    num_class = int(is_class.sum())
    ranks = rankdata(scores)[is_class].sum() - num_class * (num_class + 1) / 2
    return float(ranks / (num_class * (len(scores) - num_class)))
