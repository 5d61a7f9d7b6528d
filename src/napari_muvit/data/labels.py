"""Class tables: what each value of a label image means, from stroke to score.

A label image has an ``unlabelled`` value (never trained on, never scored) and may have a
``background`` class (judged, and none of the others). The table travels in the store's own
NGFF ``image-label`` metadata; a small ``muvit`` block beside it holds what NGFF cannot say.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.data.stored_chunks import block_pixels, fill_value, scan_blocks
from napari_muvit.errors import InputError, SourceError

if TYPE_CHECKING:
    from napari_muvit.data.pyramid import Pyramid

MAX_CLASSES = 256
"""Label images with more values than this hold instances, not classes."""

SCAN_PIXELS = 1 << 28
"""Stored label pixels of an array beyond which values are looked for in a coarser one."""

PALETTE = (
    "#e41a1c", "#377eb8", "#4daf4a", "#984ea3", "#ff7f00", "#ffd92f", "#a65628", "#f781bf",
    "#1b9e77", "#66c2a5", "#8da0cb", "#d95f02", "#7570b3", "#a6d854", "#b15928", "#17becf",
)
BACKGROUND_COLOR = "#808080"


@dataclass(frozen=True)
class LabelClass:
    """One class: its value in label images, its name, and its colour as ``#rrggbb``."""

    value: int
    name: str
    color: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"#[0-9a-fA-F]{6}", self.color):
            raise InputError(
                f"class {self.name!r} has the colour {self.color!r}; colours are #rrggbb. "
                "Pass for example #e41a1c."
            )


@dataclass(frozen=True)
class ClassTable:
    """The classes a model predicts, in channel order, and the values that are special.

    `classes` holds the background class if background is judged, and never the unlabelled
    value. `unlabelled` and `background` are label values.

    Raises
    ------
    InputError
        If a value occurs twice, or unlabelled is also a class.
    """

    classes: tuple[LabelClass, ...]
    unlabelled: int | None = None
    background: int | None = None

    def __post_init__(self) -> None:
        if len(set(self.values)) != len(self.values):
            raise InputError(
                f"the class table has the values {self.values}; each class needs its own value."
            )
        if self.unlabelled in self.values:
            raise InputError(
                f"label value {self.unlabelled} is both unlabelled and a class; unlabelled "
                "pixels are never judged. Give the class another value."
            )
        if self.background is not None and self.background not in self.values:
            raise InputError(
                f"background is {self.background}; it must be one of the classes {self.values}, "
                "or None where background is not judged."
            )

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def values(self) -> tuple[int, ...]:
        """Label value of every class, in channel order."""
        return tuple(item.value for item in self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Name of every class, in channel order."""
        return tuple(item.name for item in self.classes)

    @property
    def colors(self) -> tuple[str, ...]:
        """Colour of every class as ``#rrggbb``, in channel order."""
        return tuple(item.color for item in self.classes)

    @property
    def foreground(self) -> tuple[int, ...]:
        """Indices (channels) of the classes that are not background."""
        return tuple(i for i, value in enumerate(self.values) if value != self.background)

    def with_unlabelled(self) -> ClassTable:
        """This table with a value for what is not judged: its own, else the first free one.

        Free are looked for in the order 0, 255, one more than the highest class, so that
        what was never judged cannot be taken for a class, background included.
        """
        if self.unlabelled is not None:
            return self
        free = (v for v in (0, 255, max(self.values, default=0) + 1) if v not in self.values)
        return replace(self, unlabelled=next(free))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for YAML and JSON."""
        rows = [{"value": c.value, "name": c.name, "color": c.color} for c in self.classes]
        return {"classes": rows, "unlabelled": self.unlabelled, "background": self.background}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ClassTable:
        """The table that `to_dict` wrote.

        Raises
        ------
        InputError
            If a key is missing or a value has the wrong type.
        """
        try:
            rows = tuple(
                LabelClass(int(row["value"]), str(row["name"]), str(row["color"]))
                for row in data["classes"]
            )
            return cls(rows, _optional_int(data.get("unlabelled")),
                       _optional_int(data.get("background")))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"class table {dict(data)!r} cannot be read ({error!r}); it needs classes, each "
                "with value, name and color."
            ) from None

    def to_index(self, labels: NDArray[Any]) -> NDArray[np.int16]:
        """Class indices (channels) of label values; -1 where unlabelled or of no known class."""
        check_label_dtype(labels.dtype)
        if labels.dtype.kind in "ub" and labels.dtype.itemsize <= 2:
            found: NDArray[np.int16] = self._lookup[labels.astype(np.uint16, copy=False)]
            return found
        index = np.full(labels.shape, -1, dtype=np.int16)
        if not self.values:
            return index
        order = np.argsort(self.values)
        known = np.asarray(self.values, dtype=np.int64)[order]
        place = np.clip(np.searchsorted(known, labels), 0, len(known) - 1)
        found = known[place] == labels
        index[found] = order[place[found]]
        return index

    @cached_property
    def _lookup(self) -> NDArray[np.int16]:
        """Class index of every 16-bit value."""
        lookup = np.full(1 << 16, -1, dtype=np.int16)
        for index, value in enumerate(self.values):
            if 0 <= value < len(lookup):
                lookup[value] = index
        return lookup

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_lookup"}

    def to_values(self, index: NDArray[Any]) -> NDArray[Any]:
        """Label values of class indices, in the smallest unsigned dtype that holds the table.

        Negative indices become the unlabelled value, else the background's, else 0. A table
        with negative values gets the smallest signed dtype.
        """
        empty = next((v for v in (self.unlabelled, self.background) if v is not None), 0)
        lookup = np.asarray([*self.values, empty], dtype=np.int64)
        return lookup.astype(self.dtype)[np.where(index < 0, len(self.values), index)]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Smallest integer dtype that holds every value of the table, unsigned if it can be."""
        special = [v for v in (self.unlabelled, self.background, 0) if v is not None]
        values = [*self.values, *special]
        if min(values) >= 0:
            return np.min_scalar_type(max(values))
        # -1 - v needs as many bits as v, with a sign.
        low, high = np.min_scalar_type(min(values)), np.min_scalar_type(-1 - max(values))
        return np.promote_types(low, high)

    @classmethod
    def from_ngff(
        cls, image_label: Mapping[str, Any], muvit: Mapping[str, Any] | None = None
    ) -> ClassTable | None:
        """The table in NGFF ``image-label`` metadata, or None where it names no value.

        A ``muvit`` block holds the whole table. Without one (written by others) value 0 is
        background.
        """
        own = (muvit or {}).get("classes")
        if isinstance(own, Mapping):
            return cls.from_dict(own)
        names, colors = _ngff_names(image_label), _ngff_colors(image_label)
        values = sorted({*names, *colors})
        if not values or len(values) > MAX_CLASSES:
            return None
        background = 0 if 0 in values else None
        return cls(make_classes(values, background, names, colors), None, background)


def _optional_int(value: Any) -> int | None:
    return None if value is None else int(value)


def _ngff_names(image_label: Mapping[str, Any]) -> dict[int, str]:
    rows = [row for row in image_label.get("properties") or () if "label-value" in row]
    keys = ("name", "class", "label")
    return {
        int(row["label-value"]): str(next(row[key] for key in keys if row.get(key)))
        for row in rows if any(row.get(key) for key in keys)
    }


def _ngff_colors(image_label: Mapping[str, Any]) -> dict[int, str]:
    rows = [row for row in image_label.get("colors") or () if "label-value" in row]
    return {
        int(row["label-value"]): "#" + "".join(f"{int(v) & 255:02x}" for v in row["rgba"][:3])
        for row in rows if len(row.get("rgba") or ()) >= 3
    }


def make_classes(
    values: Iterable[int], background: int | None = None,
    names: Mapping[int, str] | None = None, colors: Mapping[int, str] | None = None,
) -> tuple[LabelClass, ...]:
    """One class for each value, with given or made names and colours."""
    names, colors = names or {}, colors or {}
    palette = itertools.cycle(PALETTE)
    classes = []
    for value in values:
        is_background = value == background
        name = "background" if is_background else f"class {value}"
        color = BACKGROUND_COLOR if is_background else next(palette)
        classes.append(LabelClass(value, names.get(value, name), colors.get(value, color)))
    return tuple(classes)


def check_label_dtype(dtype: np.dtype[Any]) -> None:
    """Refuse label images that are not whole numbers."""
    if dtype.kind not in "iub":
        raise InputError(
            f"labels are of type {dtype}; label images hold one whole number for each class. "
            "Save them as an integer image."
        )


def read_class_table(pyramid: Pyramid) -> ClassTable | None:
    """The class table in the metadata of a label store, or None where it has none."""
    image_label, muvit = _read_blocks(pyramid)
    if image_label is None and muvit is None:
        return None
    return ClassTable.from_ngff(image_label or {}, muvit)


def _read_blocks(pyramid: Pyramid) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """The store's ``image-label`` and ``muvit`` blocks."""
    metadata = pyramid.label_metadata or {}
    image_label, muvit = metadata.get("image-label"), metadata.get("muvit")
    return (image_label if isinstance(image_label, Mapping) else None,
            muvit if isinstance(muvit, Mapping) else None)


def infer_class_table(
    pyramids: Sequence[Pyramid], unlabelled: int | None = None, background: int | None = None
) -> ClassTable:
    """The class table of several label images together.

    Images written by this package bring their table. The values of the others are looked
    for, and there 0 is background unless `unlabelled` or `background` says otherwise.

    Raises
    ------
    InputError
        If the images disagree, hold instances rather than classes, or hold no class.
    """
    tables = [_table_of(pyramid, unlabelled, background) for pyramid in pyramids]
    merged: dict[int, LabelClass] = {}
    for table, pyramid in zip(tables, pyramids, strict=True):
        for item in table.classes:
            known = merged.setdefault(item.value, item)
            if known.name != item.name and not {known.name, item.name} & _made_names(item.value):
                raise InputError(
                    f"labels {pyramid.name!r} call value {item.value} {item.name!r}; others call "
                    f"it {known.name!r}. One value must mean one class in all label images."
                )
            if known.name in _made_names(item.value):
                merged[item.value] = item
    unlabelled = _agreed("unlabelled", [t.unlabelled for t in tables], merged)
    background = _agreed("background", [t.background for t in tables], merged)
    if not merged:
        raise InputError(
            f"the labels hold no class, only the unlabelled value {unlabelled}. Annotate "
            "something, or name another unlabelled value."
        )
    return ClassTable(tuple(merged[v] for v in sorted(merged)), unlabelled, background)


def _made_names(value: int) -> set[str]:
    return {f"class {value}", "background"}


def _agreed(what: str, given: Sequence[int | None], merged: Mapping[int, LabelClass]) -> int | None:
    """The one value that `given` names; refuse images that mean different things by one value."""
    values = {value for value in given if value is not None}
    if len(values) > 1:
        raise InputError(
            f"the label images have different {what} values, {sorted(values)}; they must agree. "
            f"Pass {what} to say which one holds for all."
        )
    value = next(iter(values), None)
    if what == "unlabelled" and value in merged:
        raise InputError(
            f"value {value} is unlabelled in one label image and a class in another. Pass "
            f"unlabelled={value} if it means not judged in all of them."
        )
    return value


def _table_of(pyramid: Pyramid, unlabelled: int | None, background: int | None) -> ClassTable:
    """One image's table: its own where it brings one, else from the values found in it."""
    image_label, muvit = _read_blocks(pyramid)
    is_own = muvit is not None and "classes" in muvit
    own = ClassTable.from_ngff(image_label or {}, muvit) if is_own else None
    if own is None:
        values = find_values(pyramid)
        names, colors = _ngff_names(image_label or {}), _ngff_colors(image_label or {})
    else:
        values = list(own.values)
        names = dict(zip(own.values, own.names, strict=True))
        colors = {item.value: item.color for item in own.classes}
        unlabelled = own.unlabelled if unlabelled is None else unlabelled
        background = own.background if background is None else background
    if own is None and background is None and unlabelled != 0:
        background = 0
    values = [value for value in values if value != unlabelled]
    background = background if background in values else None
    return ClassTable(make_classes(values, background, names, colors), unlabelled, background)


def find_values(pyramid: Pyramid, max_pixels: int = SCAN_PIXELS) -> list[int]:
    """Values that occur in a label image, ascending; block by block, in constant memory.

    Reads the stored chunks of the finest array whose stored chunks have at most `max_pixels`
    pixels, else those of the coarsest.

    Raises
    ------
    SourceError
        If there are more than 256 values: these are instances.
    """
    check_label_dtype(pyramid.dtype)
    index, blocks = scan_blocks(pyramid, max_pixels)
    fresh = pyramid.uncached()
    found: set[int] = set()
    if block_pixels(blocks) < math.prod(pyramid.shapes[index]):
        found.add(fill_value(pyramid, index))
    for start, size in blocks:
        found.update(_values_in(fresh.read(index, start, size)))
        if len(found) > MAX_CLASSES:
            raise SourceError(
                f"labels {pyramid.name!r} hold more than {MAX_CLASSES} values, which looks like "
                "one value for each object; training needs one value for each class. Save the "
                "labels as 1 inside objects and 0 outside.", source=pyramid.source,
            )
    return sorted(found)


def _values_in(block: NDArray[Any]) -> list[int]:
    """Values that occur in a block; counting is faster than sorting where they are small."""
    if block.dtype.kind == "u" and block.dtype.itemsize <= 2:
        return [int(v) for v in np.flatnonzero(np.bincount(block.ravel()))]
    return [int(v) for v in np.unique(block)]
