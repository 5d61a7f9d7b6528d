"""Ordinary images (PNG, JPEG and what else Pillow knows): one array, read whole when asked."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.data.sources.raw import RawImage, check_dtype, check_shape
from napari_muvit.data.sources.remote import is_url, open_url
from napari_muvit.data.sources.single_file import file_name, told_as
from napari_muvit.data.sources.stores import describe_error, refuse_lfs_pointer
from napari_muvit.errors import SourceError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".jp2", ".npy")
LARGEST_PICTURE = 2**31
"""Bytes of a decoded picture beyond which it must be converted first."""
SMALL_PICTURE = 32 * 2**20
"""Bytes up to which a picture is left to the cache of coarse arrays, which has a budget."""


@dataclass(frozen=True)
class Picture:
    """An image file that can only be decoded whole."""

    file: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def chunks(self) -> tuple[int, ...] | None:
        return self.shape

    @property
    def label(self) -> str:
        return "0"

    @property
    def in_memory(self) -> bool:
        return False

    def open(self) -> Any:
        """Small pictures are decoded at each read (and kept by the cache), large ones once."""
        nbytes = int(np.prod(self.shape)) * self.dtype.itemsize
        return self if nbytes <= SMALL_PICTURE else self.decode()

    def __getitem__(self, index: Any) -> NDArray[Any]:
        part: NDArray[Any] = self.decode()[index]
        return part

    def decode(self) -> NDArray[Any]:
        pixels = _decode(self.file)
        if pixels.shape != self.shape:
            raise SourceError(
                f"{self.file} changed from shape {self.shape} to {pixels.shape} since it was "
                "opened. Open it again.", self.file,
            )
        return pixels

    def explain(self, error: Exception) -> str:
        return f"the file is damaged or cut short ({describe_error(error)}); copy it again"


def read_picture(file: str) -> RawImage:
    """The picture's size and type from its head; pixels are decoded at the first read."""
    with told_as("an image", file, "TIFF or OME-Zarr"):
        head = _bytes(file, 64)
        refuse_lfs_pointer(head, file)
        shape, dtype, axes = _npy_head(file) if head[:6] == b"\x93NUMPY" else _head(file)
    check_dtype(dtype, file, file)
    check_shape(shape, file, file)
    size = float(np.prod([float(n) for n in shape])) * dtype.itemsize
    if size > LARGEST_PICTURE:
        raise SourceError(
            f"{file} has shape {shape}, {size / 2**30:.1f} GiB; pictures beyond "
            f"{LARGEST_PICTURE / 2**30:.0f} GiB cannot be read in parts. Convert it to a tiled "
            "TIFF or OME-Zarr first.", file,
        )
    return RawImage(
        kind="picture", name=file_name(file), axes=axes, source=file,
        arrays=(Picture(file, shape, dtype),),
        is_rgb=axes.endswith("c") and shape[-1] in (3, 4) and dtype == np.uint8,
    )


def _bytes(file: str, most: int = -1) -> bytes:
    if is_url(file):
        with open_url(file) as stream:
            content: bytes = stream.read(most)
            return content
    with Path(file).open("rb") as stream:
        return stream.read(most)


def _head(file: str) -> tuple[tuple[int, ...], np.dtype[Any], str]:
    """Shape, type and axes; palettes count as the colours that they stand for."""
    from PIL import Image

    with warnings.catch_warnings():
        # Pillow's size warning; the limit of this module decides
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(_bytes(file)) if is_url(file) else file) as picture:
            width, height = picture.size
            mode, form = picture.mode, picture.format
            depth = _png_depth(file) if form == "PNG" else 8
    count = {"1": 1, "L": 1, "P": 3, "RGB": 3, "RGBA": 4, "CMYK": 3, "YCbCr": 3, "LA": 1,
             "PA": 3, "I": 1, "I;16": 1, "I;16B": 1, "F": 1}.get(mode)
    if count is None:
        raise SourceError(
            f"{file} has the colour mode {mode!r}; grey, RGB and palette images can be read. "
            "Convert it to RGB.", file,
        )
    kind = {"I": np.int32, "F": np.float32}.get(mode, np.uint8)
    dtype = np.dtype(np.uint16 if depth == 16 or mode.startswith("I;16") else kind)
    shape = (height, width) if count == 1 else (height, width, count)
    return shape, dtype, "yx" if count == 1 else "yxc"


def _png_depth(file: str) -> int:
    return _bytes(file, 26)[24]


def _npy_head(file: str) -> tuple[tuple[int, ...], np.dtype[Any], str]:
    from napari_muvit.data.sources.arrays import guess_axes

    array = np.load(io.BytesIO(_bytes(file)) if is_url(file) else file,
                    mmap_mode=None if is_url(file) else "r", allow_pickle=False)
    return array.shape, array.dtype, guess_axes([array.shape], array.dtype)


def _decode(file: str) -> NDArray[Any]:
    content = _bytes(file)
    if content[:6] == b"\x93NUMPY":
        pixels: NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
        return pixels
    if content[:8] == b"\x89PNG\r\n\x1a\n" and content[24] == 16:
        import imagecodecs

        # Pillow would cut 16-bit colours to 8 bits
        deep: NDArray[Any] = imagecodecs.png_decode(content)
        return deep if deep.ndim == 2 or deep.shape[-1] > 2 else deep[..., 0]
    return _decode_pillow(content)


def _decode_pillow(content: bytes) -> NDArray[Any]:
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            if picture.mode in {"P", "PA", "CMYK", "YCbCr"}:
                return np.asarray(picture.convert("RGB"))
            if picture.mode in {"1", "LA"}:
                return np.asarray(picture.convert("L"))
            return np.asarray(picture)
