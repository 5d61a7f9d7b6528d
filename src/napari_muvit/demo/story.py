"""The demo's steps: pretrain, fine-tune, predict, score and report, on one real image."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_muvit.demo import colour, pictures, prepare, stains
from napari_muvit.doors.progress import ProgressPrinter
from napari_muvit.doors.shell import duration, say
from napari_muvit.errors import InputError

SHARED = {"preset": "tiny"}
PRETRAIN = {"crop_size": 64, "batch_size": 32, "num_layers_decoder": 2}
"""Many small crops: on so small an image a tiny model then learns structure in minutes."""
FINETUNE = {"crop_size": 128, "batch_size": 8, "encoder_rate": 0.5}
LARGEST_WHOLE = 4096
"""Side, px of the finest level, up to which the demo predicts the whole image."""
HONEST_WORDS = (
    "These labels were made from colour (stain separation), so colour alone can score as well: "
    "the demo shows that everything works.",
    "Why several levels matter is shown by the rings example, where a pixel's colour says nothing.",
)


@dataclass(frozen=True)
class DemoOptions:
    """What `napari-muvit demo` was asked for; `steps` are those of the two trainings."""

    output: Path
    image: str | None = None
    labels: str | None = None
    levels: tuple[float, ...] = (1, 4)
    steps: tuple[int, ...] = (400, 150)
    seed: int = 0


def run_demo(options: DemoOptions) -> list[str]:
    """Run the whole demo; the paths that napari should open."""
    began = time.monotonic()
    options.output.mkdir(parents=True)
    if options.image is None:
        shown = _own_story(options)
    elif options.labels is None:
        shown = _image_story(options)
    else:
        shown = _labelled_story(options)
    say(f"demo: done in {duration(time.monotonic() - began)}; "
        f"everything lies in {options.output}, begin with report.png")
    return shown


def _own_story(options: DemoOptions) -> list[str]:
    """The built-in image: labels from colour, scores on the part that was not trained on."""
    folder = options.output
    say("demo 1/6: writing the image and labels of its left part as OME-Zarr")
    image, rgb = prepare.write_image(folder)
    labels, held_out, truth = prepare.write_labels(folder, rgb)
    say("demo 2/6: pretraining on the image without labels (masked autoencoder)")
    pretraining = _train("pretrain", options, str(image))
    say("demo 3/6: fine-tuning on the labelled part (UNETR head)")
    finetuning = _train("finetune", options, str(image), labels=str(labels),
                        pretrained=str(pretraining))
    say("demo 4/6: predicting the whole image, lazily and to OME-Zarr")
    prediction, values = _predict(options, str(image), finetuning)
    say("demo 5/6: scoring the part that was not trained on")
    scores = _score(prediction, held_out, rgb, truth)
    say("demo 6/6: drawing report.png")
    table = prepare.class_table()
    shown_labels = np.where(np.arange(rgb.shape[1]) < prepare.TRAIN_COLUMNS, truth, 0)
    pictures.report(
        folder / "report.png", "MuViT demo: immunohistochemistry", rgb,
        [("labels it trained on", shown_labels), ("prediction", values)],
        table, [pretraining, finetuning], HONEST_WORDS, scores=scores,
    )
    return [str(image), str(prediction)]


def _image_story(options: DemoOptions) -> list[str]:
    """A user's image without labels: pretraining and a picture of its features."""
    from napari_muvit import api

    image = str(options.image)
    say("demo 1/3: pretraining on the image (masked autoencoder)")
    pretraining = _train("pretrain", options, image)
    say("demo 2/3: features of the encoder in the middle of the image")
    pyramid = api.open_pyramid(image)
    feature_maps = api.features(image, str(pretraining), level=options.levels[-1])
    say("demo 3/3: drawing report.png")
    pictures.report(
        options.output / "report.png", f"MuViT demo: {pyramid.name}", pictures.overview(pyramid),
        [], None, [pretraining], ["No labels were given: pretraining and features only."],
        extra=[("features (three principal components)", pictures.feature_colours(feature_maps))],
    )
    return [image]


def _labelled_story(options: DemoOptions) -> list[str]:
    """A user's image and labels: the same job, scored on the blocks kept for validation."""
    from napari_muvit import api

    image, labels = str(options.image), str(options.labels)
    say("demo 1/4: pretraining on the image without labels (masked autoencoder)")
    pretraining = _train("pretrain", options, image)
    say("demo 2/4: fine-tuning on the labels (UNETR head), a fifth kept for validation")
    finetuning, note = _finetune_with_validation(options, image, labels, pretraining)
    say("demo 3/4: predicting to OME-Zarr")
    prediction, values = _predict(options, image, finetuning)
    say("demo 4/4: drawing report.png")
    pyramid = api.open_pyramid(image)
    model: Any = api.load_model(finetuning)
    pictures.report(
        options.output / "report.png", f"MuViT demo: {pyramid.name}", pictures.overview(pyramid),
        [("prediction", values)], api.ClassTable.from_dict(model.meta.classes),
        [pretraining, finetuning], [note],
    )
    return [image, str(prediction)]


def _finetune_with_validation(
    options: DemoOptions, image: str, labels: str, pretraining: Path
) -> tuple[Path, str]:
    """A fine-tuning that keeps a fifth of the image apart where it is large enough; a note."""
    given = {"labels": labels, "pretrained": str(pretraining)}
    try:
        run = _train("finetune", options, image, **given, val_fraction=0.2)
    except InputError as error:
        if (options.output / "finetune").exists():
            raise
        say(f"demo: training on everything instead: {error}")
        return _train("finetune", options, image, **given), (
            "The image is too small to keep a part for validation; nothing was scored.")
    return run, "Scores in validation blocks are in the run's metrics.csv."


def fine_tuning(image: str, levels: Sequence[float], **more: Any) -> dict[str, Any]:
    """What decides whether `image` and its labels can be learnt from."""
    return {**SHARED, "images": [image], "levels": list(levels), **FINETUNE, **more}


def _train(kind: str, options: DemoOptions, image: str, **more: Any) -> Path:
    """Run one training of the demo; its run folder."""
    from napari_muvit import api

    steps = options.steps[0] if kind == "pretrain" else options.steps[1]
    every = max(steps // 4, 1)
    values: dict[str, Any] = {
        **SHARED, "images": [image], "levels": list(options.levels), "steps": steps,
        "seed": options.seed, "learning_rate": 1e-3, "checkpoint_every": every,
        "preview_every": every, "validate_every": every, "output": str(options.output / kind),
        **(PRETRAIN if kind == "pretrain" else FINETUNE), **more,
    }
    run = getattr(api, kind)(values)
    for _ in _shown(kind, run):
        pass
    return Path(run.folder)


def _shown(name: str, events: Iterable[Any]) -> Iterator[Any]:
    """`events`, each printed on its way."""
    printer = ProgressPrinter(name)
    try:
        for event in events:
            printer.show(event)
            yield event
    finally:
        printer.close()


def _predict(options: DemoOptions, image: str, run: Path) -> tuple[Path, NDArray[np.integer]]:
    """Predict to OME-Zarr; the store, and the labels of a view of at most `LARGEST_WHOLE` px."""
    from napari_muvit import api

    lazy = api.predict(image, str(run), overlap=0.25)
    start = [max(0, (n - LARGEST_WHOLE) // 2) for n in lazy.shape]
    stop = [min(n, first + LARGEST_WHOLE) for n, first in zip(lazy.shape, start, strict=True)]
    is_whole = max(lazy.shape) <= LARGEST_WHOLE
    roi = None if is_whole else np.array([start, stop]) * float(options.levels[0]) - 0.5
    output = options.output / "prediction.ome.zarr"
    for _ in _shown("predict", api.predict_to_zarr(image, str(run), output, roi=roi)):
        pass
    size = [last - first for first, last in zip(start, stop, strict=True)]
    written = api.open_pyramid(output).read(0, start, size)[0]
    corner = tuple(slice(first, min(first + 128, last))
                   for first, last in zip(start, stop, strict=True))
    same = written[tuple(slice(0, c.stop - c.start) for c in corner)]
    if not np.array_equal(np.asarray(lazy[corner]), same):
        say("demo: warning: the lazy prediction and the one on disk differ")
    return output, written


def _score(
    prediction: Path, held_out: Path, rgb: NDArray[np.uint8], truth: NDArray[np.uint8]
) -> list[list[str]]:
    """Rows of held-out Dice by class: the model, colour alone, the majority class."""
    from napari_muvit import api

    columns = prepare.TRAIN_COLUMNS
    train_colours = rgb[:, :columns].reshape(-1, 3).astype(np.float32)
    train_target = truth[:, :columns].reshape(-1).astype(np.int64)
    test_colours = rgb.reshape(-1, 3).astype(np.float32)
    rows = {
        "MuViT": api.evaluate(prediction, held_out),
        "colour alone": api.evaluate(
            _as_image(colour.logistic_regression(train_colours, train_target, test_colours), truth),
            held_out),
        "majority class": api.evaluate(
            _as_image(colour.majority(train_target, truth.size), truth), held_out),
    }
    names = {value: name for value, name, _ in stains.CLASSES}
    table = [["held-out Dice", *names.values()]]
    table += [
        [row, *(f"{scores.dice.get(value, float('nan')):.3f}" for value in names)]
        for row, scores in rows.items()
    ]
    for cells in table:
        say(f"{cells[0]:<16}" + "".join(f"{cell:>14}" for cell in cells[1:]))
    for line in HONEST_WORDS:
        say(line)
    return table


def _as_image(flat: NDArray[np.int64], like: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return flat.reshape(like.shape).astype(np.uint8)
