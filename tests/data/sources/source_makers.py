"""Writes one small image as every kind of source, for the contract test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zarr

from napari_muvit.data.omezarr import create_pyramid

SHAPE = (3, 151, 103)
PIXEL_UM = 0.5


def picture() -> np.ndarray:
    """(3, 151, 103) uint8, smooth and different in every channel."""
    y, x = np.mgrid[:151, :103]
    rows = [127 + 100 * np.sin(y / 9 + k) * np.cos(x / 7) + 20 * np.cos((x + y) / 2)
            for k in range(3)]
    return np.stack(rows).astype(np.uint8)


def halved(image: np.ndarray) -> np.ndarray:
    """Means over 2 x 2 pixels of what is there, rounded half to even."""
    channels, height, width = image.shape
    padded = np.full((channels, height + height % 2, width + width % 2), np.nan)
    padded[:, :height, :width] = image
    blocks = padded.reshape(channels, padded.shape[1] // 2, 2, padded.shape[2] // 2, 2)
    return np.rint(np.nanmean(blocks, axis=(2, 4))).astype(image.dtype)


def ome_zarr(folder: Path, **options: Any) -> Path:
    path = folder / "image.ome.zarr"
    arrays = create_pyramid(
        path, shape=SHAPE, axes="cyx", levels=(1, 2, 4), dtype="uint8", chunk=32,
        pixel_size=(PIXEL_UM, PIXEL_UM), channel_names=("red", "green", "blue"), **options)
    image = picture()
    for array in arrays:
        array[:] = image
        image = halved(image)
    return path


def ngff_04(folder: Path) -> Any:
    return ome_zarr(folder, fmt="0.4")


def ngff_05(folder: Path) -> Any:
    return str(ome_zarr(folder))


def ngff_05_sharded(folder: Path) -> Any:
    return ome_zarr(folder, shard=64)


def bioformats2raw(folder: Path) -> Any:
    root = zarr.create_group(folder / "raw.zarr", zarr_format=2)
    root.attrs["bioformats2raw.layout"] = 3
    ome_zarr(folder, fmt="0.4").rename(folder / "raw.zarr" / "0")
    return folder / "raw.zarr"


def plate(folder: Path) -> Any:
    root = zarr.create_group(folder / "plate.zarr")
    root.attrs["ome"] = {"version": "0.5", "plate": {"wells": [{"path": "A/1"}]}}
    well = root.create_group("A/1")
    well.attrs["ome"] = {"version": "0.5", "well": {"images": [{"path": "0"}]}}
    ome_zarr(folder).rename(folder / "plate.zarr" / "A" / "1" / "0")
    return folder / "plate.zarr"


def plain_group(folder: Path) -> Any:
    group = zarr.create_group(folder / "plain.zarr")
    image = picture()
    for name in ("full", "half", "quarter"):
        group.create_array(name, data=image, chunks=(3, 32, 32))
        image = halved(image)
    return folder / "plain.zarr"


def plain_array(folder: Path) -> Any:
    zarr.create_array(folder / "array.zarr", data=picture(), chunks=(1, 50, 50))
    return folder / "array.zarr"


def open_group(folder: Path) -> Any:
    return zarr.open_group(plain_group(folder), mode="r")


def tiff(folder: Path) -> Any:
    import tifffile

    tifffile.imwrite(folder / "image.tif", np.moveaxis(picture(), 0, -1), photometric="rgb")
    return folder / "image.tif"


def pyramidal_tiff(folder: Path) -> Any:
    import tifffile

    image = picture()
    with tifffile.TiffWriter(folder / "slide.ome.tif", ome=True) as writer:
        metadata = {"axes": "YXS", "PhysicalSizeX": PIXEL_UM, "PhysicalSizeXUnit": "µm",
                    "PhysicalSizeY": PIXEL_UM, "PhysicalSizeYUnit": "µm"}
        writer.write(np.moveaxis(image, 0, -1), subifds=2, tile=(32, 32), photometric="rgb",
                     compression="zlib", metadata=metadata)
        for _ in range(2):
            image = halved(image)
            writer.write(np.moveaxis(image, 0, -1), subfiletype=1, tile=(32, 32),
                         photometric="rgb", compression="zlib")
    return folder / "slide.ome.tif"


def svs(folder: Path) -> Any:
    """As Aperio's scanners write it: slide, thumbnail, then the coarser levels."""
    import tifffile

    image = picture()
    head = f"Aperio Image Library v11.2.1\r\n103x151 (32x32) Q=100|AppMag = 20|MPP = {PIXEL_UM}"
    with tifffile.TiffWriter(folder / "slide.svs") as writer:
        for number in range(3):
            writer.write(np.moveaxis(image, 0, -1), tile=(32, 32), photometric="rgb",
                         compression="lzw", description=head, metadata=None)
            if number == 0:
                writer.write(np.moveaxis(image, 0, -1)[::4, ::4], photometric="rgb",
                             description=head, metadata=None)
            image = halved(image)
    return folder / "slide.svs"


def png(folder: Path) -> Any:
    from PIL import Image

    Image.fromarray(np.moveaxis(picture(), 0, -1)).save(folder / "image.png")
    return str(folder / "image.png")


def npy(folder: Path) -> Any:
    np.save(folder / "image.npy", picture())
    return folder / "image.npy"


def array(_folder: Path) -> Any:
    return picture()


def array_list(_folder: Path) -> Any:
    return [picture(), halved(picture()), halved(halved(picture()))]


def dask_array(_folder: Path) -> Any:
    import dask.array as da

    return da.from_array(picture(), chunks=(3, 40, 40))


def zarr_array(folder: Path) -> Any:
    return zarr.open_array(plain_array(folder), mode="r")


def tensorstore_array(folder: Path) -> Any:
    tensorstore = pytest.importorskip("tensorstore")
    plain_array(folder)
    place = {"driver": "file", "path": str(folder / "array.zarr")}
    return tensorstore.open({"driver": "zarr3", "kvstore": place}).result()


def layer(_folder: Path) -> Any:
    """What a viewer's multiscale RGB layer looks like from outside."""
    data = [np.moveaxis(level, 0, -1) for level in array_list(_folder)]
    return SimpleNamespace(
        data=data, multiscale=True, rgb=True, scale=(PIXEL_UM, PIXEL_UM), translate=(0, 0),
        units=("micrometer", "micrometer"), name="slide")


KINDS: dict[str, Callable[[Path], Any]] = {
    maker.__name__: maker
    for maker in (ngff_04, ngff_05, ngff_05_sharded, bioformats2raw, plate, plain_group,
                  plain_array, open_group, tiff, pyramidal_tiff, svs, png, npy, array, array_list,
                  dask_array, zarr_array, tensorstore_array, layer)
}
