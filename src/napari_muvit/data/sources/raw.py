"""What every reader hands over: handles of arrays and the metadata that came with them.

A handle knows an array's shape, type and chunks, and opens it when pixels are wanted. Handles
are small and picklable, so each worker process opens its own arrays.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from napari_muvit.errors import SourceError

Floats = tuple[float, ...]

MICROMETRES = {
    "angstrom": 1e-4, "nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3,
    "centimeter": 1e4, "meter": 1e6, "inch": 25400.0, "picometer": 1e-6,
    "å": 1e-4, "nm": 1e-3, "um": 1.0, "µm": 1.0, "μm": 1.0, "micron": 1.0, "microns": 1.0,
    "mm": 1e3, "cm": 1e4, "m": 1e6, "nanometre": 1e-3, "micrometre": 1.0, "millimetre": 1e3,
    "\\u00b5m": 1.0, "pm": 1e-6,
}
"""Micrometres in one unit, by the names that NGFF, OME-XML and ImageJ use."""

RGB_COLORS = ("#ff0000", "#00ff00", "#0000ff")
"""Of the channels of a picture."""

LARGEST_CHUNK = 2**31
"""Bytes of a decoded chunk beyond which a source is refused rather than read."""


class ArrayHandle(Protocol):
    """An array that can be opened: metadata now, pixels later."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def chunks(self) -> tuple[int, ...] | None: ...
    @property
    def label(self) -> str:
        """What to call the array in a message, for example its path in the store."""
        ...

    @property
    def in_memory(self) -> bool:
        """Whether reading costs nothing, so that caching would only waste memory."""
        ...

    def open(self) -> Any:
        """Something that gives an ndarray for a tuple of slices."""
        ...

    def explain(self, error: Exception) -> str:
        """Why reading failed, and the remedy, in words that complete a sentence."""
        ...


@dataclass(frozen=True)
class RawImage:
    """One image as it is stored: axes in stored order, nothing selected yet.

    Attributes
    ----------
    kind
        What it is, for example ``"OME-Zarr 0.5"``.
    axes
        Letters of ``tczyx`` in stored order.
    arrays
        Finest first.
    scales, translations
        Per array and stored axis, in the units of the file; None where the file has none.
    units
        Name of the unit of each axis, or None.
    series
        Number of the image, where one file or group holds several.
    channel_names, channel_colors
        Of the stored channels, colours as ``#rrggbb``; None where the file has none.
    """

    kind: str
    name: str
    axes: str
    arrays: tuple[ArrayHandle, ...]
    source: str | None = None
    series: int = 0
    scales: tuple[Floats, ...] | None = None
    translations: tuple[Floats, ...] | None = None
    units: tuple[str | None, ...] | None = None
    channel_names: tuple[str, ...] | None = None
    channel_colors: tuple[str, ...] | None = None
    is_rgb: bool = False
    is_labels: bool = False
    label_metadata: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    stamp: str = ""


def parse_colors(values: Sequence[Any]) -> tuple[str, ...] | None:
    """Colours of all channels as ``#rrggbb``; None where one is none, or several are all alike."""
    texts = [str(value).lower().lstrip("#")[:6] for value in values]
    if not texts or any(re.fullmatch("[0-9a-f]{6}", text) is None for text in texts):
        return None
    if len(texts) > 1 and len(set(texts)) == 1:
        return None
    return tuple(f"#{text}" for text in texts)


def check_dtype(dtype: np.dtype[Any], what: str, source: object = None) -> None:
    """Refuse types that are no pixels: text, records, objects, complex numbers."""
    if dtype.kind not in "buif":
        raise SourceError(
            f"{what} holds values of type {dtype}; pixels must be integers or real numbers. "
            "Convert the image, for example to uint16 or float32.",
            source,
        )


def check_shape(shape: tuple[int, ...], what: str, source: object = None) -> None:
    if any(n < 1 for n in shape):
        raise SourceError(
            f"{what} has shape {shape}; every axis needs at least one pixel. "
            "Write the image again, or choose another array.",
            source,
        )


def check_chunks(
    chunks: tuple[int, ...] | None, dtype: np.dtype[Any], what: str, source: object = None
) -> None:
    """Refuse chunks so large that reading one pixel would fill the memory."""
    if chunks is None:
        return
    size = float(np.prod([float(n) for n in chunks])) * dtype.itemsize
    if size > LARGEST_CHUNK or any(n < 1 for n in chunks):
        raise SourceError(
            f"{what} has chunks of {chunks} ({size / 2**30:.3g} GiB each); at most "
            f"{LARGEST_CHUNK / 2**30:.0f} GiB can be decoded at once. Write the image again with "
            "chunks of for example 512 x 512.",
            source,
        )


def as_native(pixels: NDArray[Any]) -> NDArray[Any]:
    """The same values in this computer's byte order; truth values become 0 and 1."""
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8)
    if not pixels.dtype.isnative:
        return pixels.astype(pixels.dtype.newbyteorder("="))
    return pixels


def native_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.uint8) if dtype == np.bool_ else dtype.newbyteorder("=")
