"""Arrays as a source: numpy, dask, zarr, tensorstore, a list of them, or a viewer's layer."""

from __future__ import annotations

import contextlib
import hashlib
import uuid
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.data.sources.raw import MICROMETRES, RawImage, check_dtype, check_shape
from napari_muvit.data.sources.stores import date_of
from napari_muvit.errors import InputError, SourceError

FEW_CHANNELS = 6
"""A first axis of at most this length is taken for channels where nothing else tells."""

WHOLE_BYTES = 16 * 2**20
"""An array in memory of up to this size is told from others by every pixel."""

PLACE_NAMES = ("zarr", "tensorstore", "h5py", "xarray")
"""Packages whose arrays are named by their place in a file, which does not tell files apart."""

_tokens: dict[int, tuple[weakref.ref[Any], str]] = {}
"""Names of things in memory by their place there."""


@dataclass(frozen=True, eq=False)
class HeldArray:
    """An array that is already open in this process."""

    array: Any
    label: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(n) for n in self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        # tensorstore has its own dtype objects
        dtype = self.array.dtype
        found: np.dtype[Any] = np.dtype(getattr(dtype, "numpy_dtype", dtype))
        return found

    @property
    def chunks(self) -> tuple[int, ...] | None:
        chunks = getattr(self.array, "chunks", None)
        if not isinstance(chunks, tuple):
            return None
        return tuple(int(c[0] if isinstance(c, tuple) else c) for c in chunks)

    @property
    def in_memory(self) -> bool:
        return isinstance(self.array, np.ndarray)

    def open(self) -> Any:
        return self.array

    def explain(self, error: Exception) -> str:
        return f"the array could not be computed ({type(error).__name__}: {error})"


@dataclass(frozen=True, eq=False)
class StackedArrays:
    """Arrays of equal shape as the channels of one, each read only where it is asked for."""

    members: tuple[HeldArray, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.members), *self.members[0].shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.result_type(*(member.dtype for member in self.members))

    @property
    def chunks(self) -> tuple[int, ...] | None:
        chunks = self.members[0].chunks
        return None if chunks is None else (1, *chunks)

    @property
    def label(self) -> str:
        return self.members[0].label

    @property
    def in_memory(self) -> bool:
        return all(member.in_memory for member in self.members)

    def open(self) -> StackedArrays:
        return self

    def explain(self, error: Exception) -> str:
        return self.members[0].explain(error)

    def __getitem__(self, index: tuple[slice, ...]) -> NDArray[Any]:
        chosen = self.members[index[0]]
        return np.stack([np.asarray(resolve(m.array[index[1:]])) for m in chosen])


def resolve(pixels: Any) -> Any:
    """An array of the values; dask computes, tensorstore reads."""
    if hasattr(pixels, "compute"):
        return pixels.compute()
    if hasattr(pixels, "read"):
        return pixels.read().result()
    return pixels


def is_array(source: object) -> bool:
    return all(hasattr(source, name) for name in ("shape", "dtype", "__getitem__"))


def is_layer(source: object) -> bool:
    """Whether `source` looks like a napari layer (this module does not know napari)."""
    return all(hasattr(source, name) for name in ("multiscale", "translate", "scale", "data"))


def read_arrays(
    arrays: Sequence[Any], *, axes: str | None = None, name: str = "array",
    pixel_size: Sequence[float] | None = None, factors: Sequence[Sequence[float]] | None = None,
    channel_names: Sequence[str] | None = None, is_rgb: bool | None = None,
    is_labels: bool = False, source: str | None = None,
) -> RawImage:
    """A list of arrays, finest first, as one image.

    Parameters
    ----------
    axes
        Letters of ``tczyx`` in the order of the arrays; guessed where None.
    pixel_size
        um of each spatial axis at full resolution.
    factors
        Per array, one factor for each spatial axis; the ratio of shapes where None.
    """
    if not arrays:
        raise InputError("the list of arrays is empty; pass at least one array, finest first.")
    handles = tuple(HeldArray(array, str(i)) for i, array in enumerate(arrays))
    for handle in handles:
        check_dtype(handle.dtype, f"array {handle.label}")
        check_shape(handle.shape, f"array {handle.label}")
    letters = guess_axes([h.shape for h in handles], handles[0].dtype) if axes is None else axes
    _check_axes(letters, handles)
    spatial = [a for a in "zyx" if a in letters]
    rgb = letters.endswith("c") and _rgb_like(handles[0]) if is_rgb is None else is_rgb
    return RawImage(
        kind="array", name=name, axes=letters, arrays=handles, source=source,
        scales=_scales(letters, spatial, handles, pixel_size, factors),
        units=tuple("micrometer" if pixel_size is not None and a in spatial else None
                    for a in letters),
        channel_names=None if channel_names is None else tuple(map(str, channel_names)),
        is_rgb=rgb, is_labels=is_labels, stamp=_stamp(handles),
    )


def _rgb_like(handle: HeldArray) -> bool:
    return handle.shape[-1] in (3, 4) and handle.dtype == np.uint8


def _scales(
    axes: str, spatial: list[str], handles: tuple[HeldArray, ...],
    pixel_size: Sequence[float] | None, factors: Sequence[Sequence[float]] | None,
) -> tuple[tuple[float, ...], ...] | None:
    if pixel_size is None and factors is None:
        return None
    sizes = np.ones(len(spatial)) if pixel_size is None else np.asarray(pixel_size, np.float64)
    if sizes.shape != (len(spatial),):
        raise InputError(
            f"pixel_size is {pixel_size!r}; the axes {axes!r} need {len(spatial)} values "
            f"in the order {''.join(spatial)}. Pass one number for each spatial axis."
        )
    if factors is None:
        first = handles[0].shape
        ratios = [[first[axes.index(a)] / h.shape[axes.index(a)] for a in spatial]
                  for h in handles]
    else:
        ratios = [list(map(float, f)) for f in factors]
        if len(ratios) != len(handles) or any(len(f) != len(spatial) for f in ratios):
            raise InputError(
                f"factors are {factors!r}; {len(handles)} arrays with the spatial axes "
                f"{''.join(spatial)} need one row of {len(spatial)} numbers for each array."
            )
    rows = []
    for ratio in ratios:
        by_axis = dict(zip(spatial, np.asarray(ratio) * sizes, strict=True))
        rows.append(tuple(float(by_axis.get(a, 1.0)) for a in axes))
    return tuple(rows)


def _check_axes(axes: str, handles: tuple[HeldArray, ...]) -> None:
    first = handles[0].shape
    wrong = set(axes) - set("tczyx") or len(set(axes)) != len(axes) or not {"y", "x"} <= set(axes)
    if wrong or len(axes) != len(first):
        raise InputError(
            f"axes are {axes!r} for an array of shape {first}; each axis needs one different "
            "letter of tczyx, y and x among them. Pass for example axes='cyx'."
        )
    for handle in handles:
        if len(handle.shape) != len(first):
            raise InputError(
                f"array {handle.label} has shape {handle.shape}, the first one {first}; all "
                "arrays of a pyramid need the same axes. Pass one image only."
            )
        for letter, size, reference in zip(axes, handle.shape, first, strict=True):
            if letter in "tc" and size != reference:
                raise InputError(
                    f"array {handle.label} has {size} along {letter}, the first one {reference}; "
                    "only z, y and x may shrink. Pass the arrays of one image, finest first."
                )


def guess_axes(shapes: Sequence[tuple[int, ...]], dtype: np.dtype[Any]) -> str:
    """The likeliest axes of arrays without metadata.

    Colours last when the last axis has 3 or 4 and does not shrink; a first axis that shrinks
    from array to array is z, and so is a long one; a short one is channels.
    """
    first = shapes[0]
    colour_last = len(first) >= 3 and first[-1] in (3, 4) and len({s[-1] for s in shapes}) == 1
    colour_last = colour_last and min(first[-3:-1]) > 4
    shrinks = len({s[:1] for s in shapes}) > 1
    if len(first) == 2:
        return "yx"
    if len(first) == 3:
        if colour_last:
            return "yxc"
        return "cyx" if first[0] <= FEW_CHANNELS and not shrinks else "zyx"
    if len(first) == 4:
        return "zyxc" if colour_last and dtype == np.uint8 else "czyx"
    if len(first) == 5:
        return "tczyx"
    raise InputError(
        f"the array has shape {first}; two to five axes can be an image. Select the part to use, "
        "for example array[0]."
    )


def _stamp(handles: tuple[HeldArray, ...]) -> str:
    """A digest of arrays: of those in memory a sample, of others what tells them apart."""
    digest = hashlib.sha256()
    for handle in handles:
        digest.update(repr((handle.shape, str(handle.dtype))).encode())
        digest.update(_sample(handle.array).tobytes() if handle.in_memory
                      else _identity(handle.array).encode())
    return digest.hexdigest()


def _identity(array: Any) -> str:
    """Equal for arrays that are sure to hold the same, so that no cache serves one for another.

    dask, and classes of one's own, name arrays by what they are made of; an array of a folder is
    known by its place and date; all others are known as long as this process holds them, or
    their store.
    """
    name, package = getattr(array, "name", None), type(array).__module__.partition(".")[0]
    if name and isinstance(name, str) and package not in PLACE_NAMES:
        return name
    store: Any = getattr(array, "store", None)
    kvstore: Any = getattr(array, "kvstore", None)  # tensorstore's
    inside = str(getattr(array, "path", ""))
    if getattr(store, "root", None) is not None:
        place = Path(store.root) / inside
        return repr((str(place.absolute()), date_of(str(place))))
    if str(getattr(kvstore, "url", "")).startswith("file:"):
        return repr((array.spec().to_json(), date_of(kvstore.path)))
    return f"{_token(array if store is None else store)} {inside}"


def _token(held: Any) -> str:
    """A name of its own for a thing in memory."""
    place = id(held)
    reference, token = _tokens.get(place, (None, ""))
    if reference is None or reference() is not held:
        token = uuid.uuid4().hex
        with contextlib.suppress(TypeError):  # things that nothing can watch are new each time
            _tokens[place] = weakref.ref(held, lambda _: _tokens.pop(place, None)), token
    return token


def _sample(array: NDArray[Any]) -> NDArray[Any]:
    """All of a small array, every so many pixels of a large one."""
    if array.nbytes <= WHOLE_BYTES:
        return array
    return array[tuple(slice(None, None, max(1, n // 64)) for n in array.shape)]


def read_layer(layer: Any) -> RawImage:
    """A napari layer by its attributes alone: data, multiscale, scale, units, name."""
    arrays = list(layer.data) if layer.multiscale else [layer.data]
    is_labels = type(layer).__name__ == "Labels"
    is_rgb = bool(getattr(layer, "rgb", False))
    if not all(is_array(array) for array in arrays):
        raise SourceError(
            f"the layer {getattr(layer, 'name', '')!r} holds no pixels; only image and labels "
            "layers can be read. Choose another layer.", layer,
        )
    ndim = arrays[0].ndim - (1 if is_rgb else 0)
    letters = {2: "yx", 3: "zyx", 4: "tzyx"}.get(ndim, "tczyx")
    axes = letters + ("c" if is_rgb else "")
    scale = dict(zip(letters, np.asarray(layer.scale, np.float64)[-ndim:], strict=True))
    sizes = _layer_pixel_size(layer, letters, scale)
    return read_arrays(
        arrays, axes=axes, pixel_size=sizes, name=str(getattr(layer, "name", "layer")),
        is_rgb=is_rgb, is_labels=is_labels, channel_names=None,
    )


def read_layers(layers: Sequence[Any]) -> RawImage:
    """Several single-channel layers of one image as its channels, in this order."""
    images = [read_layer(layer) for layer in layers]
    first = images[0]
    for image in images[1:]:
        shapes = [handle.shape for handle in image.arrays]
        same = shapes == [handle.shape for handle in first.arrays] and image.scales == first.scales
        if not same or "c" in image.axes or "c" in first.axes:
            raise InputError(
                f"the layers {first.name!r} and {image.name!r} differ in shape, scale or colours; "
                "only single-channel layers of one image can be joined. Choose one layer."
            )
    stacks = tuple(StackedArrays(handles) for handles in
                   zip(*(image.arrays for image in images), strict=True))
    # read_arrays makes HeldArrays only
    scales = None if first.scales is None else tuple((1.0, *row) for row in first.scales)
    return replace(
        first, axes="c" + first.axes, arrays=stacks, scales=scales, is_labels=False,
        units=None if first.units is None else (None, *first.units),
        channel_names=tuple(image.name for image in images),
        stamp="".join(image.stamp for image in images),
    )


def _layer_pixel_size(
    layer: Any, letters: str, scale: dict[str, float]
) -> list[float] | None:
    """um per pixel of the spatial axes, or None where the layer's unit is pixels."""
    units = getattr(layer, "units", None) or ()
    names = [str(unit).lower() for unit in units][-len(letters):]
    spatial = [a for a in letters if a in "zyx"]
    if len(names) != len(letters):
        return None
    by_axis = dict(zip(letters, names, strict=True))
    if any(by_axis[a] not in MICROMETRES for a in spatial):
        return None
    return [scale[a] * MICROMETRES[by_axis[a]] for a in spatial]
