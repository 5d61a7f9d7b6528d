"""OME-Zarr as a source: NGFF 0.1 to 0.5, tolerant of what is found in the wild.

Also bioformats2raw roots (images in numbered sub-groups), plates and wells, labels groups, and
plain zarr groups and arrays. The specification: https://ngff.openmicroscopy.org.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from napari_muvit.data.sources.arrays import guess_axes
from napari_muvit.data.sources.raw import (
    RGB_COLORS,
    ArrayHandle,
    RawImage,
    check_chunks,
    check_dtype,
    check_shape,
    parse_colors,
)
from napari_muvit.data.sources.stores import ZarrArray, open_store
from napari_muvit.errors import SourceError, SourceNotFoundError, nearest_name

MOST_ARRAYS = 64


def read_zarr(path: str, image: str | int | None = None) -> RawImage:
    """The image at `path`: a store's root, or a group or array inside one.

    Parameters
    ----------
    image
        Which image, by name or number, where the store holds several.
    """
    root = path.rstrip("/\\") or path
    node = open_store(root)
    if not hasattr(node, "attrs") or not hasattr(node, "members"):
        return _plain(root, [("", node)])
    return _read_group(root, "", node, image)


def _read_group(root: str, inside: str, group: Any, image: str | int | None) -> RawImage:
    attributes = dict(group.attrs)
    ome = attributes.get("ome")
    block: Mapping[str, Any] = {**attributes, **ome} if isinstance(ome, Mapping) else attributes
    where = f"{root}/{inside}" if inside else root
    if "multiscales" in block:
        if isinstance(image, str):
            return _enter(root, inside, image)
        return _read_multiscales(root, inside, group, block, image or 0)
    choices = _sub_images(where, group, block)
    if choices:
        return _enter(root, inside, _choose(where, choices, image))
    arrays = _member_arrays(group)
    if not arrays:
        raise SourceError(
            f"{where} is a zarr group without an image: it has no key 'multiscales' in its "
            "metadata and holds no arrays. Give the path of an OME-Zarr image, or of an array "
            "in it.", root,
        )
    prefix = f"{inside}/" if inside else ""
    return _plain(root, [(prefix + name, array) for name, array in arrays])


def _enter(root: str, inside: str, choice: str) -> RawImage:
    below = str(PurePosixPath(inside) / choice)
    node = open_store(root, below)
    if hasattr(node, "members"):
        return _read_group(root, below, node, None)
    return _plain(root, [(below, node)])


def _choose(where: str, choices: Sequence[str], image: str | int | None) -> str:
    """One of the images of a store with several."""
    listed = ", ".join(choices[:20]) + (", ..." if len(choices) > 20 else "")
    if image is None:
        if len(choices) == 1:
            return choices[0]
        raise SourceError(
            f"{where} holds {len(choices)} images: {listed}. Choose one with "
            f"image={choices[0]!r}, on the command line --image {choices[0]}, or give its path.",
            where,
        )
    if isinstance(image, int) and 0 <= image < len(choices):
        return choices[image]
    if str(image) in choices:
        return str(image)
    near = nearest_name(str(image), choices)
    raise SourceError(
        f"image={image!r} is not in {where}; it holds {listed}."
        + (f" Did you mean {near!r}?" if near else " Choose one of these."), where,
    )


def _sub_images(where: str, group: Any, block: Mapping[str, Any]) -> list[str]:
    """Paths of the images below a group that is no image itself."""
    if isinstance(block.get("plate"), Mapping):
        return _plate_images(where, group, block["plate"])
    if isinstance(block.get("well"), Mapping):
        return _paths(where, block["well"].get("images"), "well.images")
    labels = block.get("labels")
    if isinstance(labels, list) and all(isinstance(name, str) for name in labels):
        return list(labels)
    # the group OME names its siblings; only the root's own list is about what lies below it
    return _series(group, block.get("series")) if "bioformats2raw.layout" in block else []


def _plate_images(where: str, group: Any, plate: Mapping[str, Any]) -> list[str]:
    images = []
    for well in _paths(where, plate.get("wells"), "plate.wells"):
        node = open_store(where, well)
        attributes = dict(node.attrs)
        ome = attributes.get("ome", attributes)
        block = ome.get("well") if isinstance(ome, Mapping) else None
        fields = block.get("images") if isinstance(block, Mapping) else None
        images += [f"{well}/{name}" for name in _paths(where, fields, f"{well}: well.images")]
    return images


def _paths(where: str, rows: Any, key: str) -> list[str]:
    if not isinstance(rows, list) or not all(
        isinstance(row, Mapping) and isinstance(row.get("path"), (str, int)) for row in rows
    ):
        raise SourceError(
            f"{where}: the key {key!r} must be a list of objects with a 'path'. Repair the "
            "metadata, or give the path of one image inside.", where,
        )
    return [str(row["path"]) for row in rows]


def _series(group: Any, series: Any) -> list[str]:
    """Images of a bioformats2raw root: the list in OME, else the numbered sub-groups."""
    if series is None and "OME" in group:
        attributes = dict(group["OME"].attrs)
        ome = attributes.get("ome", attributes)
        series = ome.get("series") if isinstance(ome, Mapping) else None
    if isinstance(series, list) and series and all(isinstance(s, (str, int)) for s in series):
        return [str(s) for s in series]
    found = []
    for number in range(10_000):
        if str(number) not in group:
            break
        found.append(str(number))
    return found


def _member_arrays(group: Any) -> list[tuple[str, Any]]:
    with warnings.catch_warnings():
        # zarr warns of every file that lies beside the arrays
        warnings.simplefilter("ignore")
        arrays = [(name, node) for name, node in group.members() if hasattr(node, "shape")]
    return sorted(arrays, key=lambda pair: (-math.prod(pair[1].shape), pair[0]))


def _plain(root: str, arrays: list[tuple[str, Any]]) -> RawImage:
    """Arrays without OME metadata: one image when they look like one pyramid."""
    handles = [_handle(root, path, array) for path, array in arrays]
    shapes = [handle.shape for handle in handles]
    if any(len(s) != len(shapes[0]) for s in shapes) or any(h.dtype != handles[0].dtype
                                                           for h in handles):
        names = ", ".join(f"{h.label} {h.shape} {h.dtype}" for h in handles[:20])
        raise SourceError(
            f"{root} holds arrays that are no pyramid of one image: {names}. "
            f"Give the path of one of them, for example {root}/{handles[0].label}.", root,
        )
    first = arrays[0][1]
    dimensions = getattr(getattr(first, "metadata", None), "dimension_names", None) or ()
    letters = "".join(str(name).lower() for name in dimensions)
    valid = len(letters) == len(shapes[0]) and set(letters) <= set("tczyx")
    axes = letters if valid and {"y", "x"} <= set(letters) else guess_axes(shapes, handles[0].dtype)
    return RawImage(
        kind="zarr", name=PurePosixPath(root.replace("\\", "/")).name, axes=axes,
        arrays=tuple(handles), source=root,
        is_rgb=axes.endswith("c") and shapes[0][-1] in (3, 4) and handles[0].dtype == "uint8",
    )


def _handle(root: str, path: str, array: Any) -> ArrayHandle:
    handle = ZarrArray.of(root, path, array)
    what = f"{root}: array {handle.label!r}"
    check_dtype(handle.dtype, what, root)
    check_shape(handle.shape, what, root)
    check_chunks(handle.chunks, handle.dtype, what, root)
    return handle


def _read_multiscales(
    root: str, inside: str, group: Any, block: Mapping[str, Any], image: int
) -> RawImage:
    where = f"{root}/{inside}" if inside else root
    multiscale = _multiscale(where, block["multiscales"], image)
    version = str(multiscale.get("version") or block.get("version") or "0.1")
    prefix = f"{inside}/" if inside else ""
    handles: list[ArrayHandle] = [
        _handle(root, prefix + path, _open_dataset(root, where, prefix, path))
        for path in _dataset_paths(where, multiscale)
    ]
    axes, units = _axes(where, multiscale, handles)
    scales, translations = _transforms(where, multiscale, axes)
    labels = block.get("image-label")
    names, colors, is_rgb = _channels(block.get("omero"), axes, handles[0])
    metadata = {"image-label": labels, "muvit": block.get("muvit")}
    title = multiscale.get("name")
    default = PurePosixPath(where.replace("\\", "/")).name
    return RawImage(
        kind=f"OME-Zarr {version}", axes=axes, arrays=tuple(handles), source=where, series=image,
        name=title.strip("/") if isinstance(title, str) and title.strip("/") else default,
        scales=scales, translations=translations, units=units, channel_names=names,
        channel_colors=colors, is_rgb=is_rgb, is_labels=isinstance(labels, Mapping),
        label_metadata=metadata if isinstance(labels, Mapping) else None,
    )


def _open_dataset(root: str, where: str, prefix: str, path: str) -> Any:
    """The array that 'multiscales' names, or the error that says which key is wrong."""
    key = f"{where}: the key 'multiscales.datasets.path' names {path!r}"
    try:
        node = open_store(root, prefix + path, array_first=True)
    except SourceNotFoundError as error:
        raise SourceError(
            f"{key}, which does not exist. Copy the store again, or remove the entry.", root
        ) from error
    if not hasattr(node, "shape"):
        raise SourceError(f"{key}, which is a group and not an array. Repair the entry.", root)
    return node


def _multiscale(where: str, multiscales: Any, image: int) -> Mapping[str, Any]:
    if not isinstance(multiscales, list) or not multiscales:
        raise SourceError(
            f"{where}: the key 'multiscales' must be a list with at least one object, but is "
            f"{type(multiscales).__name__} {str(multiscales)[:60]}. Repair the metadata.", where,
        )
    if image >= len(multiscales) or not isinstance(multiscales[image], Mapping):
        raise SourceError(
            f"{where}: 'multiscales' holds {len(multiscales)} entries, and entry {image} is "
            "missing or no object. Choose another one with image=.", where,
        )
    entry: Mapping[str, Any] = multiscales[image]
    return entry


def _dataset_paths(where: str, multiscale: Mapping[str, Any]) -> list[str]:
    datasets = multiscale.get("datasets")
    valid = isinstance(datasets, list) and 0 < len(datasets) <= MOST_ARRAYS
    if not valid or not all(
        isinstance(d, Mapping) and isinstance(d.get("path"), (str, int)) for d in datasets or ()
    ):
        raise SourceError(
            f"{where}: the key 'multiscales.datasets' must be a list of 1 to {MOST_ARRAYS} "
            "objects with a 'path'. Repair the metadata.", where,
        )
    paths = [str(d["path"]).strip("/") for d in datasets or ()]
    for path in paths:
        if ".." in PurePosixPath(path).parts or "\\" in path or "\0" in path or ":" in path:
            raise SourceError(
                f"{where}: the dataset path {path!r} leads out of the image. Repair the key "
                "'multiscales.datasets.path'.", where,
            )
    return paths


def _axes(
    where: str, multiscale: Mapping[str, Any], handles: Sequence[ArrayHandle]
) -> tuple[str, tuple[str | None, ...]]:
    """Axis letters in stored order and their units; 0.1 and 0.2 have none and mean tczyx."""
    ndim = len(handles[0].shape)
    for handle in handles:
        if len(handle.shape) != ndim:
            raise SourceError(
                f"{where}: dataset {handle.label!r} has {len(handle.shape)} axes, the first one "
                f"{ndim}; all need the same. Repair 'multiscales.datasets'.", where,
            )
    given = multiscale.get("axes")
    if given is None:
        letters = "tczyx" if ndim == 5 else guess_axes([h.shape for h in handles],
                                                      handles[0].dtype)
        return letters, (None,) * ndim
    if not isinstance(given, list):
        raise _axes_error(where, given, ndim)
    names = [a.get("name") if isinstance(a, Mapping) else a for a in given]
    units = tuple(a.get("unit") if isinstance(a, Mapping) and isinstance(a.get("unit"), str)
                  else None for a in given)
    letters = "".join(str(name).lower() for name in names)
    alone = all(isinstance(name, str) and len(name) == 1 for name in names)
    if (not alone or len(letters) != ndim or set(letters) - set("tczyx")
            or len(set(letters)) != ndim or not {"y", "x"} <= set(letters)):
        raise _axes_error(where, names, ndim)
    return letters, units


def _axes_error(where: str, given: Any, ndim: int) -> SourceError:
    return SourceError(
        f"{where}: the key 'multiscales.axes' is {str(given)[:80]}; it must name each of the "
        f"{ndim} axes of the arrays by a different letter of t, c, z, y, x, with y and x among "
        "them. Repair the metadata.", where,
    )


def _transforms(
    where: str, multiscale: Mapping[str, Any], axes: str
) -> tuple[tuple[tuple[float, ...], ...] | None, tuple[tuple[float, ...], ...] | None]:
    """Scale and translation of every dataset, the multiscale's own applied after.

    No translations where the file has none at all. A dataset that lacks its own shares its
    outer edge with the first one.
    """
    outer_scale, outer_shift = _one_transform(
        where, multiscale.get("coordinateTransformations"), axes, "multiscales")
    factor = outer_scale or (1.0,) * len(axes)
    outer = outer_shift or (0.0,) * len(axes)
    scales: list[tuple[float, ...]] = []
    shifts: list[tuple[float, ...]] = []
    has_own = False
    for number, dataset in enumerate(multiscale["datasets"]):
        scale, own = _one_transform(
            where, dataset.get("coordinateTransformations"), axes, f"datasets[{number}]")
        if scale is None:
            return None, None
        scales.append(tuple(a * b for a, b in zip(scale, factor, strict=True)))
        has_own = has_own or own is not None
        if own is not None:
            shifts.append(tuple(a * b + c for a, b, c in zip(own, factor, outer, strict=True)))
        else:
            edge = shifts[0] if shifts else outer
            shifts.append(tuple(
                place + (size - first) / 2 if letter in "zyx" else place
                for letter, place, size, first in zip(axes, edge, scales[-1], scales[0],
                                                      strict=True)))
    return tuple(scales), tuple(shifts) if has_own or outer_shift else None


def _one_transform(
    where: str, transforms: Any, axes: str, key: str
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    scale: tuple[float, ...] | None = None
    shift: tuple[float, ...] | None = None
    if not isinstance(transforms, list):
        return None, None
    for transform in transforms:
        if not isinstance(transform, Mapping):
            continue
        if transform.get("type") == "scale" and "scale" in transform:
            values = _numbers(where, transform["scale"], axes, f"{key}.scale")
            if any(v <= 0 for v in values):
                raise _number_error(where, transform["scale"], axes, f"{key}.scale")
            scale = values
        elif transform.get("type") == "translation" and "translation" in transform:
            shift = _numbers(where, transform["translation"], axes, f"{key}.translation")
    return scale, shift


def _numbers(where: str, values: Any, axes: str, key: str) -> tuple[float, ...]:
    valid = isinstance(values, list) and len(values) == len(axes)
    if not valid or not all(
        isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e30
        and math.isfinite(v) for v in values
    ):
        raise _number_error(where, values, axes, key)
    return tuple(float(v) for v in values)


def _number_error(where: str, values: Any, axes: str, key: str) -> SourceError:
    return SourceError(
        f"{where}: the key 'coordinateTransformations' of {key} is {str(values)[:60]}; it needs "
        f"one finite number for each of the axes {axes}, above 0 for a scale. Repair the "
        "metadata.", where,
    )


def _channels(
    omero: Any, axes: str, first: ArrayHandle
) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None, bool]:
    """Channel names and colours, and whether the channels are red, green and blue of a picture."""
    if "c" not in axes:
        return None, None, False
    count = first.shape[axes.index("c")]
    channels = omero.get("channels") if isinstance(omero, Mapping) else None
    rgb_like = count == 3 and first.dtype == "uint8"
    if not isinstance(channels, list) or len(channels) != count:
        return None, None, rgb_like and axes.endswith("c")
    rows = [row if isinstance(row, Mapping) else {} for row in channels]
    names = tuple(str(row.get("label", i)) for i, row in enumerate(rows))
    colors = parse_colors([row.get("color") for row in rows])
    lowered = tuple(name.lower() for name in names)
    is_rgb = rgb_like and (colors == RGB_COLORS or lowered == ("red", "green", "blue"))
    return names, None if is_rgb else colors, is_rgb
