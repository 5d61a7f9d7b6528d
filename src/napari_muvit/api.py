"""One function per verb. Doors, widgets and scripts enter the engine here and nowhere else.

Importing this module loads no torch: each verb imports its room when it is called, and the
names that widgets need from deeper rooms are resolved when they are first used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_muvit.config import FinetuneConfig, PretrainConfig
from napari_muvit.errors import InputError
from napari_muvit.lookup import lazy_names

if TYPE_CHECKING:
    import dask.array as da
    from torch import nn

    from napari_muvit.data.pyramid import Pyramid
    from napari_muvit.inference.probe import ProbeScores
    from napari_muvit.inference.scores import Scores
    from napari_muvit.training.run import Run

Source = Any
"""What `open_pyramid` takes: a path or URL, a napari layer, a zarr group, an array, a list."""

_HOMES = {
    "napari_muvit.data.pyramid": ("Pyramid", "pyramid_from_arrays"),
    "napari_muvit.data.crop": ("NestedCrop",),
    "napari_muvit.data.labels": ("ClassTable", "LabelClass", "read_class_table"),
    "napari_muvit.data.omezarr": ("create_pyramid",),
    "napari_muvit.data.convert": ("convert",),
    "napari_muvit.data.describe": ("describe",),
    "napari_muvit.data.samples": ("SampleSource",),
    "napari_muvit.data.rings": ("rings_image", "write_rings"),
    "napari_muvit.data.landmarks": ("landmarks_image", "write_landmarks"),
    "napari_muvit.data.levels": ("advise_levels", "suggest_crops", "suggest_levels"),
    "napari_muvit.data.cohort": ("read_cohort",),
    "napari_muvit.data.annotations": ("AnnotationStore", "open_annotations"),
    "napari_muvit.data.annotation_metadata": ("default_class_table",),
    "napari_muvit.data.annotation_place": ("annotation_path", "image_stem"),
    "napari_muvit.data.rasterize": (
        "Polygon", "paint_instances", "paint_labels", "paint_polygons",
    ),
    "napari_muvit.data.outlines": ("trace_labels",),
    "napari_muvit.data.geojson": ("export_geojson", "read_geojson", "write_geojson"),
    "napari_muvit.data.class_files": ("read_classes", "write_classes"),
    "napari_muvit.models.devices": ("device_facts",),
    "napari_muvit.training.run": ("Run",),
    "napari_muvit.training.folder": ("RunFolder",),
    "napari_muvit.inference.instant": ("InstantPrediction",),
    "napari_muvit.inference.instant_model": ("instant_segmenter",),
    "napari_muvit.inference.live": ("LivePrediction",),
    "napari_muvit.inference.scores": ("Scores",),
    "napari_muvit.inference.cohort": ("export_outlines", "predict_images"),
    "napari_muvit.inference.probe": ("ProbeScores",),
    "napari_muvit.inference.probe_images": ("probe_images",),
    "napari_muvit.inference.attention_view": ("AttentionView", "attention_view"),
    "napari_muvit.geometry": ("crop_extents", "parse_levels", "place_boxes"),
}
__getattr__, __dir__ = lazy_names(globals(), _HOMES)


def open_pyramid(
    source: Source, channels: Sequence[int | str] | int | str | None = None,
    t: int | None = None, z: int | None = None, image: str | int | None = None,
) -> Pyramid:
    """The multi-resolution image at `source`, opened without reading pixels.

    Parameters
    ----------
    source
        Path or URL of an OME-Zarr, a (OME-)TIFF, a slide file or an ordinary image; a napari
        layer; a zarr group; an array; or a list of arrays, finest first.
    channels
        Channels to take, by index or name; all by default.
    t, z
        Index along t or z, where the image has that axis and one plane is wanted.
    image
        Which image of a file that holds several, by name or number.

    Returns
    -------
    Pyramid
        ``.shape`` is ``(C, *S)`` at full resolution, ``.pixel_size`` um for each array and
        spatial axis; ``.crop`` reads.

    Raises
    ------
    SourceError
        Naming file, key and remedy, if the source cannot be read; `SourceNotFoundError` if it
        does not exist.
    InputError
        If `source` is no image, or channel, time point, plane or image is not there.

    Examples
    --------
    >>> import numpy as np
    >>> pyramid = open_pyramid(np.zeros((64, 64), np.uint8))
    >>> pyramid.shape
    (1, 64, 64)
    """
    from napari_muvit.data.pyramid import open_pyramid as open_source

    return open_source(source, channels=channels, t=t, z=z, image=image)


def pretrain(config: PretrainConfig | Mapping[str, Any] | str | Path) -> Run:
    """A run of masked-autoencoder pretraining, checked and ready to iterate (MuViT, 3.3).

    Parameters
    ----------
    config
        A `PretrainConfig`, a dict of its options, or the path of a YAML file.

    Returns
    -------
    Run
        Iterate over its events, or call ``.wait()``; ``.folder`` is the run folder.

    Raises
    ------
    ConfigError, SourceError, RunExistsError
        At the call, before anything is written.
    """
    from napari_muvit.training import start_pretrain

    run: Run = start_pretrain(config)
    return run


def finetune(config: FinetuneConfig | Mapping[str, Any] | str | Path) -> Run:
    """A run of segmentation fine-tuning, checked and ready to iterate (MuViT, 3.4).

    Parameters
    ----------
    config
        A `FinetuneConfig`, a dict of its options, or the path of a YAML file.

    Raises
    ------
    ConfigError, SourceError, CheckpointError, RunExistsError
        As of `pretrain`, at the call; also for labels and classes that do not fit.
    """
    from napari_muvit.training import start_finetune

    run: Run = start_finetune(config)
    return run


def resume(folder: str | Path, **changes: Any) -> Run:
    """The run in `folder`, ready to go on from its last checkpoint.

    Of a run that is complete the only event says so.

    Parameters
    ----------
    folder
        The run folder.
    changes
        Options that may differ from the first start: ``device``, ``workers``, ``threads``, and
        ``steps`` to end later or sooner than planned.

    Raises
    ------
    RunError
        If the folder holds no run.
    ConfigError
        If `changes` names another option.
    LockedError
        While iterating, if another process is writing the run.
    """
    from napari_muvit.training import resume_run

    run: Run = resume_run(folder, **changes)
    return run


def load_model(folder: str | Path, device: str = "cpu") -> nn.Module:
    """The model in a run folder (best if validated, else last), model or official folder.

    Nothing that the folder holds is executed.

    Parameters
    ----------
    folder
        Run folder, model folder, bioimage.io package of ours, or the official project's folder.
    device
        Where to put it: cpu, mps, cuda or cuda:1.

    Returns
    -------
    torch.nn.Module
        `Segmenter`, `MAE` or `Encoder` in evaluation mode. Its ``.meta`` holds crop size (px),
        pixel size (um), normalisation and class table; None for an official folder.

    Raises
    ------
    CheckpointError
        If the folder holds no model, or a damaged one.
    """
    from napari_muvit.models.checkpoint import load_model as load
    from napari_muvit.training.folder import find_model

    return load(find_model(folder), device=device)


def predict(source: Source, model: Any, **options: Any) -> da.Array:
    """Labels of the whole image as a dask array that runs the model when computed.

    Parameters
    ----------
    source
        Anything that `open_pyramid` takes.
    model
        Run folder, model folder, or a loaded segmenter.
    **options
        See `napari_muvit.inference.lazy.predict`: ``overlap=0.25``, ``probabilities=False``.

    Returns
    -------
    dask.array.Array
        Class-table values, ``(*S)``, on the grid of ``levels[0]``; with
        ``probabilities=True`` float32 ``(K, *S)``.

    Raises
    ------
    SourceError, CheckpointError, InputError
        At the call, if image, model or options cannot be used or do not fit together.
    RunError
        When computed, if a tile cannot be predicted.
    """
    from napari_muvit.inference.lazy import predict as predict_lazily

    return predict_lazily(source, model, **options)


def predict_to_zarr(
    source: Source, model: Any, output: str | Path, **options: Any
) -> Iterator[Any]:
    """Predict a whole image to an OME-Zarr of labels; yields events, continues what is there.

    Parameters
    ----------
    source, model
        As of `predict`.
    output
        Folder of the label store.
    **options
        See `napari_muvit.inference.to_store.predict_to_zarr`: those of `predict`,
        ``part="1/8"``, ``cluster="local"``.

    Returns
    -------
    iterator of events
        Iterate to do the work: tiles done and seconds left, warnings, and what was written.

    Raises
    ------
    SourceError, CheckpointError, InputError
        At the call, if image, model or options cannot be used or do not fit together.
    RunExistsError
        At the call, if `output` holds something else than this prediction.
    """
    from napari_muvit.inference.to_store import predict_to_zarr as predict_to_store

    return predict_to_store(source, model, output, **options)


def features(source: Source, model: Any, level: float = 1, **options: Any) -> da.Array:
    """Encoder features of one level as a lazy dask array, one vector for each patch.

    Parameters
    ----------
    source, model
        As of `predict`; the model may be pretrained only.
    level
        One of the model's levels.
    **options
        See `napari_muvit.inference.features.features`: ``overlap=0.25``, ``device="auto"``.

    Returns
    -------
    dask.array.Array
        float32 ``(D, *S')``, S' patches along each axis of the level.

    Raises
    ------
    SourceError, CheckpointError, InputError
        If image or model cannot be read, do not fit, or the model has no such level.
    """
    from napari_muvit.inference.features import features as features_lazily

    return features_lazily(source, model, level=level, **options)


def probe(
    source: Source, labels: Source, model: Any, level: float = 1, **options: Any
) -> ProbeScores:
    """One-vs-all ROC-AUC of a linear classifier on frozen features of one level (MuViT, 4.6).

    Parameters
    ----------
    source, labels
        An image and its label image, anything that `open_pyramid` takes.
    model, level
        As of `features`.
    **options
        See `napari_muvit.inference.probe.probe`: ``test=(image, labels)`` judges on another
        image, ``held_out=0.25`` on places of the same one.

    Raises
    ------
    SourceError, CheckpointError, InputError
        If something cannot be read or does not fit, or there are fewer than two classes.
    """
    from napari_muvit.inference.probe import probe as probe_features

    return probe_features(source, labels, model, level, **options)


def evaluate(
    prediction: Source, truth: Source, unlabelled: int | None = None,
    background: int | None = None,
) -> Scores:
    """Per-class Dice and IoU, and the mean Dice of all classes but background. Streams.

    Parameters
    ----------
    prediction, truth
        Label images, anything that `open_pyramid` takes; or lists of as many.
    unlabelled, background
        Label values: truth that is not judged, and what is none of the classes. By default what
        the label stores say; see `napari_muvit.inference.scores.evaluate`.

    Raises
    ------
    SourceError, InputError
        If the images cannot be read, are no labels, or cannot be aligned by their scale.

    Examples
    --------
    >>> import numpy as np
    >>> truth = np.repeat([[1, 1, 2, 2]], 4, axis=0)
    >>> evaluate(np.repeat([[1, 2, 2, 2]], 4, axis=0), truth).mdsc
    0.7333333333333334
    """
    from napari_muvit.inference.scores import evaluate as score

    return score(prediction, truth, unlabelled=unlabelled, background=background)


def export(
    run: str | Path, output: str | Path, format: str = "official", *, name: str | None = None,
    license: str | None = None, authors: Sequence[str] = (),
) -> Path:
    """Write the model in `run` in another project's format; the folder written.

    Parameters
    ----------
    run
        Run folder or model folder.
    output
        Folder to write, new or empty.
    format
        ``official``: the folder that the muvit package reads; of a segmenter the encoder.
        ``bioimageio``: a package for bioimage.io; of an autoencoder the encoder.
    name, license, authors
        For ``bioimageio`` only; the licence of the weights by its SPDX identifier.

    Raises
    ------
    CheckpointError, InputError
        If the format cannot express the model, e.g. its token coordinates; or is unknown.
    """
    given = {"name": name, "license": license, "authors": tuple(authors)}
    about: dict[str, Any] = {field: value for field, value in given.items() if value}
    if format not in ("official", "bioimageio"):
        raise InputError(f"format is {format!r}; known are 'official' and 'bioimageio'.")
    if format == "official" and about:
        raise InputError(f"the official format has no place for {', '.join(about)}; leave it out, "
                         "or pass format='bioimageio'.")
    model: Any = load_model(run)
    if format == "official":
        from napari_muvit.models.official_folder import save_official

        save_official(output, model.encoder if hasattr(model, "head") else model)
    else:
        from napari_muvit.models.bioimageio import About, save_bioimageio

        meta = None if model.meta is None else model.meta.to_dict()
        save_bioimageio(output, model, meta, About(**about))
    return Path(output)
