"""Choosing channels, time points and planes by index, name or range."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from napari_muvit.data.sources.raw import RGB_COLORS, RawImage
from napari_muvit.errors import InputError, nearest_name

Span = tuple[int, int]


@dataclass(frozen=True)
class Selection:
    """The part of a stored image that a pyramid shows.

    Attributes
    ----------
    channels
        Indices along c; None where the image has no c axis.
    axes
        Spatial letters that stay, in the order (t)(z)yx.
    fixed
        Index of each axis that is dropped, at full resolution.
    spans
        Start and stop of each axis that is kept in part, at full resolution.
    """

    channels: tuple[int, ...] | None
    axes: str
    fixed: tuple[tuple[str, int], ...] = ()
    spans: tuple[tuple[str, Span], ...] = ()


def select(raw: RawImage, channels: Any = None, t: Any = None, z: Any = None) -> Selection:
    """Resolve what the caller asked for against what the image has.

    Raises
    ------
    InputError
        If an index is out of range, a name unknown, or the axis absent.
    """
    first = dict(zip(raw.axes, raw.arrays[0].shape, strict=True))
    fixed: list[tuple[str, int]] = []
    spans: list[tuple[str, Span]] = []
    kept = ""
    for letter, wanted in (("t", t), ("z", z)):
        if letter not in first:
            _refuse_absent(letter, wanted, raw)
            continue
        size = first[letter]
        if wanted is None and (letter == "t" or size == 1):
            fixed.append((letter, 0))
        elif wanted is None:
            kept += letter
        elif isinstance(wanted, (slice, range)):
            spans.append((letter, _span(letter, wanted, size)))
            kept += letter
        else:
            fixed.append((letter, parse_index(letter, wanted, size)))
    return Selection(
        _channels(raw, first.get("c"), channels), kept + "yx", tuple(fixed), tuple(spans)
    )


def stored_part(raw: RawImage, selection: Selection) -> dict[str, Any]:
    """Which part of its file an image is: number of the series, and the time point, the plane
    or the range of planes (first, one past the last) where the file has others.
    """
    first = dict(zip(raw.axes, raw.arrays[0].shape, strict=True))
    spans = {letter: list(span) for letter, span in selection.spans if span != (0, first[letter])}
    fixed = {letter: index for letter, index in selection.fixed if first[letter] > 1}
    chosen = {**fixed, **spans}
    return {"series": raw.series, **{a: chosen[a] for a in "tz" if a in chosen}}


def at_plane(selection: Selection, z: int) -> Selection:
    """One plane of what `selection` shows of a volume."""
    first = dict(selection.spans).get("z", (0, 0))[0]
    return replace(
        selection, axes=selection.axes.replace("z", ""),
        fixed=(*selection.fixed, ("z", first + z)),
        spans=tuple(span for span in selection.spans if span[0] != "z"),
    )


def _refuse_absent(letter: str, wanted: Any, raw: RawImage) -> None:
    if wanted is None or (isinstance(wanted, int) and wanted == 0):
        return
    raise InputError(
        f"{letter}={wanted!r} was asked of {raw.name!r}, whose axes are {raw.axes}; it has no "
        f"axis {letter}. Leave {letter} out."
    )


def parse_index(name: str, wanted: Any, size: int) -> int:
    """`wanted` as an index from 0, negative ones counted from the end.

    Raises
    ------
    InputError
        If it is none, or out of range.
    """
    try:
        index = operator.index(wanted)
    except TypeError:
        raise InputError(
            f"{name} is {wanted!r}; it must be an index or a range. Pass for example {name}=0."
        ) from None
    if not -size <= index < size:
        raise InputError(
            f"{name}={index} is out of range; the image has {size} along {name}, counted from 0. "
            f"Pass 0 to {size - 1}."
        )
    return index % size


def _span(name: str, wanted: slice | range, size: int) -> Span:
    start, stop, step = (
        wanted.indices(size) if isinstance(wanted, slice)
        else (wanted.start, wanted.stop, wanted.step)
    )
    if step != 1 or not 0 <= start < stop <= size:
        raise InputError(
            f"{name}={wanted!r} is no range inside the {size} along {name}; start and stop must "
            f"ascend in steps of 1. Pass for example slice(0, {size})."
        )
    return start, stop


def _channels(raw: RawImage, count: int | None, wanted: Any) -> tuple[int, ...] | None:
    if count is None:
        if wanted not in (None, 0, [0], (0,)):
            raise InputError(
                f"channels={wanted!r} was asked of {raw.name!r}, which has one channel and no "
                "channel axis. Leave channels out."
            )
        return None
    if wanted is None:
        # the fourth channel of a colour image is its opacity
        return tuple(range(3 if raw.is_rgb else count))
    if isinstance(wanted, (slice, range)):
        chosen = list(range(count))[wanted] if isinstance(wanted, slice) else list(wanted)
    else:
        chosen = list(wanted) if isinstance(wanted, Sequence) and not isinstance(wanted, str) \
            else [wanted]
    if not chosen:
        raise InputError(f"channels={wanted!r} chooses none of the {count} channels; name one.")
    return tuple(_channel(raw, count, each) for each in chosen)


def channel_names(raw: RawImage, chosen: Sequence[int] | None = None) -> tuple[str, ...]:
    """Names of the channels `chosen` (all if None): the file's, colours, or numbers."""
    count = raw.arrays[0].shape[raw.axes.index("c")] if "c" in raw.axes else 1
    names = tuple(str(i) for i in range(count))
    if raw.channel_names is not None and len(raw.channel_names) == count:
        names = raw.channel_names
    elif raw.is_rgb:
        names = ("red", "green", "blue", "opacity")[:count]
    return names if chosen is None else tuple(names[i] for i in chosen)


def channel_colors(raw: RawImage, chosen: Sequence[int] | None) -> tuple[str, ...] | None:
    """Colours of the channels `chosen` (all if None): the file's or a picture's, else None."""
    count = raw.arrays[0].shape[raw.axes.index("c")] if "c" in raw.axes else 1
    colors = (*RGB_COLORS, "#ffffff")[:count] if raw.is_rgb else raw.channel_colors
    if colors is None or len(colors) != count:
        return None
    return colors if chosen is None else tuple(colors[i] for i in chosen)


def _channel(raw: RawImage, count: int, wanted: Any) -> int:
    names = channel_names(raw)
    if not isinstance(wanted, str):
        return parse_index("channels", wanted, count)
    if wanted in names:
        return names.index(wanted)
    lowered = [name.lower() for name in names]
    if lowered.count(wanted.lower()) == 1:
        return lowered.index(wanted.lower())
    if wanted.isdigit():
        return parse_index("channels", int(wanted), count)
    near = nearest_name(wanted, names)
    raise InputError(
        f"the channel {wanted!r} is not in {raw.name!r}; its channels are {', '.join(names)}."
        + (f" Did you mean {near!r}?" if near else " Choose one of these.")
    )
