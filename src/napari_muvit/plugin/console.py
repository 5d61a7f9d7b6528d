"""What widgets do, as calls for napari's console: a viewer goes in, layers come out.

Everything that touches no viewer is in ``napari_muvit`` itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from napari_muvit.errors import InputError
from napari_muvit.plugin import crops, engine, predict
from napari_muvit.plugin.annotate import store_path
from napari_muvit.plugin.annotate_session import AnnotationSession, find_session
from napari_muvit.plugin.crops_layer import draw_boxes
from napari_muvit.plugin.image_choices import RESULT_KEY, ImageChoice, image_choices
from napari_muvit.plugin.label_layers import class_kwargs
from napari_muvit.plugin.layer_copies import whole_image
from napari_muvit.plugin.layers import ResolvedImage, resolve_image, visible_box


def show_crops(
    viewer: Any, layer: Any = None, *, center: ArrayLike | None = None,
    levels: Sequence[float] = (1, 4, 16), size: int = 256,
) -> Any:
    """A Shapes layer with the boxes of a nested crop.

    Parameters
    ----------
    viewer
        The napari viewer.
    layer
        An image layer or its name; by default the newest.
    center
        (y, x) world px of the finest crop's centre; by default the image's.
    levels, size
        Downsampling factors, and pixels of each crop.
    """
    image, _ = resolve(viewer, layer, is_whole=False)
    middle = np.asarray(image.pyramid.extent).mean(axis=0)
    choice = crops.CropChoice(tuple(levels), size).moved(
        (middle if center is None else np.asarray(center, np.float64)).tolist()
    )
    return draw_boxes(viewer, image.transform, choice.levels, choice.boxes())


def open_annotation_window(
    viewer: Any, layer: Any = None, *, level: int | None = None, folder: str = "",
    backend: Any = None,
) -> Any:
    """Open a window to paint in over what the viewer shows of an image; for the console.

    Parameters
    ----------
    layer
        The image layer; the newest image by default.
    level
        Downsampling factor at which to paint; what fits the view by default.
    folder
        Where the annotations lie; beside the image by default.

    Returns
    -------
    napari.layers.Labels
        The window's layer; what is painted in it is saved by itself.

    Raises
    ------
    InputError
        If there is no image, or the view does not show it.
    """
    backend = engine.default_backend() if backend is None else backend
    choices = [c for c in image_choices(viewer.layers) if layer is None or layer in c.layers]
    if not choices:
        raise InputError("the viewer has no such image layer. Open an image first.")
    image = whole_image(choices[-1], backend, viewer.dims.point)
    path = store_path(backend, image, folder)
    session = find_session(viewer.layers, path)
    if session is None:
        store = backend.open_annotations(image.pyramid, path=path)
        session = AnnotationSession(store, image, choices[-1].layers[0])
    opened = session.open_at_view(viewer, choices[-1].layers[0], level)
    if opened is None:
        session.close()
        raise InputError("the view shows no part of the image. Move the image into the view.")
    return opened.layer


def live_prediction(
    viewer: Any, model: str | Path, layer: Any = None, *, device: str = "auto",
    cache: str | Path | None = None,
) -> Any:
    """A session whose labels layer follows the camera; ``.stop()`` ends it.

    Parameters
    ----------
    viewer
        The napari viewer.
    model
        Run folder or model folder of a segmenter.
    layer
        An image layer or its name; by default the newest.
    device
        auto, cpu, cuda or mps.
    cache
        Folder of what was predicted; by default the plugin's.

    Returns
    -------
    LiveSession
        ``.layer`` is there once the model is loaded.
    """
    from napari_muvit.plugin.live import LiveSession
    from napari_muvit.plugin.preferences import cache_folder

    image, layers = resolve(viewer, layer)
    backend = engine.default_backend()
    loaded = predict.load(backend, str(model))
    predict.check_fit(loaded, image)
    folder = cache_folder() / "live" if cache is None else Path(cache)
    session = LiveSession(viewer, backend, image, layers, loaded, device=device, cache=folder)
    session.start()
    return session


def lazy_labels(
    viewer: Any, model: str | Path, layer: Any = None, *, box: ArrayLike | None = None,
    device: str = "auto",
) -> Any:
    """A labels layer of a region whose pixels are predicted when napari shows them.

    Parameters
    ----------
    viewer, model, layer, device
        See `live_prediction`.
    box
        (2, A) world px, of a volume with z; by default what the canvas shows.

    Raises
    ------
    InputError
        If the box lies outside the image, or the model does not fit it.
    """
    image, layers = resolve(viewer, layer)
    backend = engine.default_backend()
    loaded = predict.load(backend, str(model))
    predict.check_fit(loaded, image)
    seen = np.asarray(box, np.float64) if box is not None else (
        visible_box(layers[0], image.transform, viewer.dims.point))
    if seen is None:
        raise InputError("the view shows no part of the image. Pass box, or move the image.")
    labels = backend.predict(image.pyramid, loaded.folder, device=device)
    region = predict.plan_region(seen, labels.shape, loaded.factors_in(image.pyramid))
    part = tuple(slice(low, low + n) for low, n in zip(region.start, region.shape, strict=True))
    place = image.transform.layer_kwargs(region.factor, region.offset())
    return viewer.add_labels(
        labels[part], name=f"{image.name}: lazy prediction", metadata={RESULT_KEY: True}, **place,
        **class_kwargs(loaded.table),
    )


def resolve(
    viewer: Any, layer: Any, is_whole: bool = True
) -> tuple[ResolvedImage, tuple[Any, ...]]:
    """The image of a layer, with all its planes or the one shown, and the layers that show it.

    Raises
    ------
    InputError
        If there is no such layer, or it is no image.
    """
    from napari.layers import Image

    named = layer
    if isinstance(layer, str):
        layer = next((each for each in viewer.layers if each.name == named), False)
    if layer is not None and not isinstance(layer, Image):
        images = [each.name for each in viewer.layers if isinstance(each, Image)]
        raise InputError(f"layer is {str(named)!r}, which is no image here. Pass one of {images}.")
    if layer is None:
        choices = image_choices(viewer.layers)
        if not choices:
            raise InputError("the viewer shows no image. Open one, or pass layer.")
        choice = choices[-1]
    else:
        choice = ImageChoice(layer.name, (layer,))
    resolve = whole_image if is_whole else resolve_image
    return resolve(choice, engine.default_backend(), viewer.dims.point), choice.layers
