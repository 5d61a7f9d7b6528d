"""The arrays of napari layers as one pyramid: planes of stacks, channels of several layers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from napari_muvit.errors import SourceError, SourceNotFoundError
from napari_muvit.plugin.label_layers import LevelArray

SAMPLES = 64
"""Pixels along each axis that are looked at to tell arrays in memory apart."""


class Layers(Protocol):
    """What is read: layers that are the channels of one image."""

    @property
    def name(self) -> str: ...
    @property
    def layers(self) -> tuple[Any, ...]: ...


class Place(Protocol):
    """What is asked about where they lie."""

    @property
    def num_axes(self) -> int: ...
    @property
    def pixel_size_um(self) -> tuple[float, ...] | None: ...


def arrays_of(layer: Any) -> list[Any]:
    """Arrays of a layer, finest first."""
    return list(layer.data) if layer.multiscale else [layer.data]


def shape_of(layer: Any) -> tuple[int, ...]:
    """Shape of the finest array of a layer, colours included."""
    return tuple(int(n) for n in (layer.level_shapes[0] if layer.multiscale else layer.data.shape))


def _check_file(choice: Layers) -> None:
    """Refuse layers that read from a file of which nothing is left.

    Raises
    ------
    SourceNotFoundError
        A store that is deleted would be read as zeros.
    """
    for layer in choice.layers:
        for array in arrays_of(layer):
            path = getattr(array, "path", None) if isinstance(array, LevelArray) else None
            if path is not None and "://" not in path and not Path(path).exists():
                raise SourceNotFoundError(
                    f"{path}, which the layer {layer.name!r} shows, is gone. Put it back, or open "
                    "the image again from where it is now.", source=path,
                )


def open_arrays(
    choice: Layers, backend: Any, plane: dict[str, int], transform: Place
) -> Any:
    """The pyramid of the layers' own arrays at one plane; nothing is copied."""
    _check_file(choice)
    stacks = [_planes(layer, tuple(plane.values())) for layer in choice.layers]
    if any(len(stack) != len(stacks[0]) for stack in stacks):
        raise SourceError(f"the channels of {choice.name!r} have different numbers of levels.")
    first, axes = choice.layers[0], "zyx"[-transform.num_axes:]
    if len(stacks) == 1:
        arrays: list[Any] = stacks[0]
        axes = f"{axes}c" if first.rgb else axes
    else:
        arrays = [ChannelStack(list(members)) for members in zip(*stacks, strict=True)]
        axes = f"c{axes}"
    names = None if first.rgb else [layer.name for layer in choice.layers]
    return backend.pyramid_from_arrays(
        arrays, axes=axes, pixel_size=transform.pixel_size_um, channel_names=names,
        name=choice.name, is_rgb=bool(first.rgb),
    )


def _planes(layer: Any, lead: tuple[int, ...]) -> list[Any]:
    top = shape_of(layer)
    return [_plane_of(array, _scaled(lead, array.shape, top)) for array in arrays_of(layer)]


def _plane_of(array: Any, index: tuple[int, ...]) -> Any:
    if not index:
        return array
    # A view of an array in memory stays one, which the engine reads without detours.
    return array[index] if isinstance(array, np.ndarray) else PlaneView(array, index)


def _scaled(index: tuple[int, ...], shape: Sequence[int], top: Sequence[int]) -> tuple[int, ...]:
    """The plane's index in an array whose leading axes may be downsampled too."""
    return tuple(min(i * shape[a] // top[a], shape[a] - 1) for a, i in enumerate(index))


class PlaneView:
    """One plane of an array that is only read where it is asked for."""

    def __init__(self, array: Any, index: tuple[int, ...]) -> None:
        self.array, self.index = array, index
        self.shape = tuple(array.shape[len(index) :])
        self.dtype = np.dtype(array.dtype)
        self.ndim = len(self.shape)

    @property
    def name(self) -> str:
        """Tells this plane from others, as the names of dask arrays do."""
        return f"{identity_of([self.array])}{list(self.index)}"

    def __getitem__(self, key: Any) -> np.ndarray[Any, Any]:
        key = key if isinstance(key, tuple) else (key,)
        return np.asarray(self.array[(*self.index, *key)])


class ChannelStack:
    """Several (y, x) arrays as one (c, y, x) array that is only read where it is asked for."""

    def __init__(self, members: list[Any]) -> None:
        self.members = members
        self.shape = (len(members), *members[0].shape)
        self.dtype = np.dtype(members[0].dtype)
        self.ndim = len(self.shape)

    @property
    def name(self) -> str:
        """Tells these channels from others, as the names of dask arrays do."""
        return identity_of(self.members)

    def __getitem__(self, key: Any) -> np.ndarray[Any, Any]:
        key = key if isinstance(key, tuple) else (key,)
        rest = key[1:]
        if isinstance(key[0], slice):
            return np.stack([np.asarray(member[rest]) for member in self.members[key[0]]])
        return np.asarray(self.members[key[0]][rest])


def identity_of(arrays: Sequence[Any]) -> str:
    """A digest that differs for arrays of other content, from their names or a few pixels."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr((tuple(array.shape), str(array.dtype))).encode())
        if isinstance(array, np.ndarray):
            digest.update(_sample(array).tobytes())
        else:
            # A zarr array's name tells its place in the store only.
            digest.update(f"{getattr(array, 'store', '')}{getattr(array, 'name', '')}".encode())
    return digest.hexdigest()[:16]


def _sample(array: NDArray[Any]) -> NDArray[Any]:
    steps = tuple(slice(None, None, max(1, n // SAMPLES)) for n in array.shape)
    return np.ascontiguousarray(array[steps])


def digest_of(array: Any) -> str:
    """A digest of every pixel of an array in memory, as labels that are painted need it."""
    if not isinstance(array, np.ndarray):
        return identity_of([array])
    digest = hashlib.blake2b(repr((array.shape, str(array.dtype))).encode(), digest_size=8)
    for part in array:
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()
