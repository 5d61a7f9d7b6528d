"""Scores of a prediction against the truth: Dice and IoU of every class, and their mean.

Both are read block by block, so images of any size take the same memory. The two may have
different resolutions: they are aligned by their scale, and every pixel of the truth is compared
with the prediction at its centre.

Dice = 2 TP / (2 TP + FP + FN), IoU = TP / (TP + FP + FN), over the pixels of all images
together (pooled) and for each image. A class that is in neither truth nor prediction has no
score.

mDSC is the mean Dice of the classes that are not background and have a score (MuViT, section 4:
11 classes of the mouse brain; outer and inner ring). Validation while training means the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.data.labels import ClassTable, check_label_dtype, read_class_table
from napari_muvit.errors import InputError
from napari_muvit.inference.alignment import align

if TYPE_CHECKING:
    from napari_muvit.data.pyramid import Pyramid

BLOCK_PIXELS = 1 << 22
"""Pixels of the truth that are compared at once."""

DENSE_VALUES = 256
"""Label values up to this are counted in a table, others one by one."""


@dataclass(frozen=True)
class ImageScores:
    """Scores of one image; `name` is the truth's."""

    name: str
    dice: dict[int, float]
    iou: dict[int, float]
    mdsc: float
    num_pixels: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "name": self.name, "dice": _keyed(self.dice), "iou": _keyed(self.iou),
            "mdsc": _finite(self.mdsc), "num_pixels": self.num_pixels,
        }


@dataclass(frozen=True)
class Scores:
    """Scores over all images together, and of each.

    Attributes
    ----------
    classes
        Name of each class by its label value.
    dice, iou
        By label value, of the classes that occur in truth or prediction.
    mdsc
        Mean of `dice` over the classes that are not background; NaN where none of them occurs.
    confusion
        Number of judged pixels by (truth, prediction) value.
    num_pixels
        Judged pixels.
    per_image
        One for each pair of images.
    background
        Values that are background: they have a Dice and do not enter `mdsc`.
    unlabelled
        Values that mean not judged: pixels of the truth that have them are left out, and those
        of the prediction are wrong for the class that they should be, but no class themselves.
    """

    classes: dict[int, str]
    dice: dict[int, float]
    iou: dict[int, float]
    mdsc: float
    num_pixels: int
    confusion: dict[tuple[int, int], int] = field(repr=False)
    per_image: tuple[ImageScores, ...] = ()
    background: tuple[int, ...] = ()
    unlabelled: tuple[int, ...] = ()

    def __str__(self) -> str:
        width = max([len(name) for name in self.classes.values()] + [5])
        lines = [f"{'class':<{width}}  value    Dice     IoU"]
        for value, name in self.classes.items():
            if value in self.dice:
                dice, iou = self.dice[value], self.iou[value]
                note = "  background, not in mDSC" if value in self.background else ""
                lines.append(f"{name:<{width}}  {value:>5}  {dice:.4f}  {iou:.4f}{note}")
            else:
                lines.append(f"{name:<{width}}  {value:>5}  in neither image, not counted")
        num_counted = len(self.dice.keys() - set(self.background))
        lines.append(f"mDSC {self.mdsc:.4f} over {num_counted} classes and "
                     f"{self.num_pixels} pixels")
        if self.unlabelled:
            shown = ", ".join(map(str, self.unlabelled))
            lines.append(f"value {shown} means unlabelled: the truth is not judged there; "
                         f"{self.num_missing} judged pixels are not predicted")
        if len(self.per_image) > 1:
            lines += [f"  {one.name}: mDSC {one.mdsc:.4f}" for one in self.per_image]
        return "\n".join(lines)

    @property
    def num_missing(self) -> int:
        """Judged pixels that the prediction leaves unlabelled."""
        return sum(n for (_, given), n in self.confusion.items() if given in self.unlabelled)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "mdsc": _finite(self.mdsc),
            "classes": _keyed(self.classes), "dice": _keyed(self.dice), "iou": _keyed(self.iou),
            "num_pixels": self.num_pixels,
            "confusion": [[t, p, n] for (t, p), n in sorted(self.confusion.items())],
            "per_image": [scores.to_dict() for scores in self.per_image],
            "background": list(self.background), "unlabelled": list(self.unlabelled),
        }


def evaluate(
    prediction: Any, truth: Any, unlabelled: int | None = None, background: int | None = None
) -> Scores:
    """Scores of a prediction, or of several against as many truths.

    Parameters
    ----------
    prediction, truth
        Label images, anything that `open_pyramid` takes; or lists of them.
    unlabelled
        Value of the truth that is not judged; by default what its store says, else what the
        prediction's does, unless it is a class of the truth.
    background
        Value that means none of the classes, left out of the mean; by default what the truth's
        store says, else the prediction's, else 0 where that is no class and not unlabelled.

    Raises
    ------
    InputError
        If the images do not show the same place, differ in number, or are no labels.
    """
    classes: dict[int, str] = {}
    counts, per_image = [], []
    backgrounds, skipped = set[int](), set[int]()
    for given, wanted in list(_pairs(prediction, truth)):
        table, other = read_class_table(wanted), read_class_table(given)
        _add_names(classes, table, other)
        ignored = _ignored(unlabelled, table, other)
        skipped |= set() if ignored is None else {ignored}
        outside = _background(table, other, ignored) if background is None else background
        backgrounds |= set() if outside is None else {outside}
        counts.append(count_pairs(given, wanted, ignored))
        per_image.append(_score_image(wanted.name, counts[-1], outside, ignored))
    pooled = _pool(counts)
    dice, iou = score_counts(pooled, skipped)
    return Scores(
        {value: classes.get(value, f"class {value}") for value in sorted({*classes, *dice})},
        dice, iou, mean_dice(dice, backgrounds), sum(pooled.values()), pooled,
        tuple(per_image), tuple(sorted(backgrounds)), tuple(sorted(skipped)),
    )


def _pool(counts: Sequence[Mapping[tuple[int, int], int]]) -> dict[tuple[int, int], int]:
    pooled: dict[tuple[int, int], int] = {}
    for found in counts:
        for key, number in found.items():
            pooled[key] = pooled.get(key, 0) + number
    return pooled


def _pairs(prediction: Any, truth: Any) -> Iterator[tuple[Pyramid, Pyramid]]:
    from napari_muvit.data.pyramid import open_pyramid

    def opened(source: Any) -> Pyramid:
        pyramid = open_pyramid(source)
        if pyramid.num_times > 1 and "t" not in pyramid.axes:
            pyramid = open_pyramid(source, t=slice(None))
        check_label_dtype(pyramid.dtype)
        if pyramid.shape[0] != 1:
            raise InputError(
                f"{pyramid.name!r} has {pyramid.shape[0]} channels; scores compare label images "
                "with one value for each pixel. Pass the labels, not probabilities or colours."
            )
        return pyramid.as_labels().uncached()

    many = isinstance(prediction, (list, tuple)), isinstance(truth, (list, tuple))
    predictions = list(prediction) if many[0] else [prediction]
    truths = list(truth) if many[1] else [truth]
    if len(predictions) != len(truths) or not predictions:
        raise InputError(
            f"{len(predictions)} predictions are given with {len(truths)} truths; each prediction "
            "needs its own truth, in the same order."
        )
    for given, wanted in zip(predictions, truths, strict=True):
        yield opened(given), opened(wanted)


def _add_names(classes: dict[int, str], *tables: ClassTable | None) -> None:
    for table in filter(None, tables):
        for item in table.classes:
            classes.setdefault(item.value, item.name)


def _ignored(
    unlabelled: int | None, table: ClassTable | None, other: ClassTable | None
) -> int | None:
    """Unlabelled by the caller, else the truth's table, else the prediction's."""
    if unlabelled is not None:
        return unlabelled
    if table is not None and table.unlabelled is not None:
        return table.unlabelled
    theirs = None if other is None else other.unlabelled
    is_class = table is not None and theirs in {*table.values, table.background}
    return None if is_class else theirs


def _background(
    table: ClassTable | None, other: ClassTable | None, ignored: int | None
) -> int | None:
    """Background by the truth's table, else the prediction's, else 0 if that is no class."""
    for known in (table, other):
        if known is not None and known.background is not None:
            return known.background if known.background != ignored else None
    is_class = table is not None and 0 in table.values
    return None if is_class or ignored == 0 else 0


def count_pairs(
    prediction: Pyramid, truth: Pyramid, unlabelled: int | None
) -> dict[tuple[int, int], int]:
    """Number of pixels by (truth, prediction) value, where the truth is labelled."""
    places = align(prediction, truth)
    found: dict[tuple[int, int], int] = {}
    for region in _blocks(truth, prediction):
        wanted = _read(truth, region)
        judged = np.ones(wanted.shape, bool) if unlabelled is None else wanted != unlabelled
        if not judged.any():
            continue
        rows = [axis[part] for axis, part in zip(places, region, strict=True)]
        given = _read(prediction, tuple(slice(int(r[0]), int(r[-1]) + 1) for r in rows))
        if not all(len(r) == n and r[-1] - r[0] + 1 == n
                   for r, n in zip(rows, given.shape, strict=True)):
            given = given[np.ix_(*(r - r[0] for r in rows))]
        _count(wanted[judged], given[judged], found)
    return found


def _blocks(truth: Pyramid, prediction: Pyramid) -> Iterator[tuple[slice, ...]]:
    """Regions of the truth; whole blocks of a prediction that is computed on demand."""
    shape = truth.spatial_shape
    chunks = prediction.chunks[0]
    steps = [1] * len(shape)
    side = math.isqrt(BLOCK_PIXELS)
    for axis in range(len(shape) - 2, len(shape)):
        unit = chunks[axis] if chunks is not None else side
        unit = max(1, round(unit * shape[axis] / prediction.spatial_shape[axis]))
        steps[axis] = min(unit * max(1, side // unit), shape[axis])
    ranges = [range(0, n, step) for n, step in zip(shape, steps, strict=True)]
    for start in itertools.product(*ranges):
        axes = zip(start, steps, shape, strict=True)
        yield tuple(slice(s, min(s + step, n)) for s, step, n in axes)


def _read(pyramid: Pyramid, region: Sequence[slice]) -> NDArray[Any]:
    start = [part.start for part in region]
    size = [part.stop - part.start for part in region]
    plane: NDArray[Any] = pyramid.read(0, start, size)[0]
    return plane


def _count(
    truth: NDArray[Any], prediction: NDArray[Any], found: dict[tuple[int, int], int]
) -> None:
    low = min(int(truth.min()), int(prediction.min()))
    high = max(int(truth.max()), int(prediction.max()))
    if low >= 0 and high < DENSE_VALUES:
        codes = truth.astype(np.int64) * DENSE_VALUES + prediction.astype(np.int64)
        table = np.bincount(codes, minlength=DENSE_VALUES**2)
        for code in np.flatnonzero(table).tolist():
            key = divmod(code, DENSE_VALUES)
            found[key] = found.get(key, 0) + int(table[code])
        return
    pairs, numbers = np.unique(
        np.stack([truth.astype(np.int64), prediction.astype(np.int64)]), axis=1,
        return_counts=True,
    )
    for (t, p), number in zip(pairs.T.tolist(), numbers.tolist(), strict=True):
        found[t, p] = found.get((t, p), 0) + number


def score_counts(
    counts: dict[tuple[int, int], int], skipped: Collection[int] = ()
) -> tuple[dict[int, float], dict[int, float]]:
    """Dice and IoU by label value, of the classes that occur; `skipped` values are no classes."""
    dice, iou = {}, {}
    for value in sorted({value for pair in counts for value in pair} - set(skipped)):
        hits = counts.get((value, value), 0)
        size = sum(n for pair, n in counts.items() if pair[0] == value)
        given = sum(n for pair, n in counts.items() if pair[1] == value)
        dice[value] = 2 * hits / (size + given)
        iou[value] = hits / (size + given - hits)
    return dice, iou


def mean_dice(dice: dict[int, float], background: Collection[int] = ()) -> float:
    """Mean over the classes that have a Dice and are not background; NaN where none is left."""
    counted = [value for key, value in dice.items() if key not in background]
    return float(np.mean(counted)) if counted else math.nan


def _score_image(
    name: str, counts: dict[tuple[int, int], int], background: int | None, ignored: int | None
) -> ImageScores:
    dice, iou = score_counts(counts, () if ignored is None else (ignored,))
    outside = () if background is None else (background,)
    return ImageScores(name, dice, iou, mean_dice(dice, outside), sum(counts.values()))


def _keyed(values: dict[int, Any]) -> dict[str, Any]:
    return {str(key): value for key, value in values.items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
