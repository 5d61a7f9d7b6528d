"""The test split of a recipe, predicted and scored: one row of Table 5 or 6.

A row is a model; its scores stand in ``result.json`` below the folder of predictions, which is
a table like the others: Dice of each class over the pixels of all test images together, their
mean without background, and the mean over images of what each has by itself.
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

from experiments.table import Column, markdown, place_of, save_result
from napari_muvit import api
from napari_muvit.config import FinetuneConfig, PredictConfig, parse_config
from napari_muvit.data.cohort import CohortRow, resolve_images, write_cohort
from napari_muvit.doors.commands import show_events
from napari_muvit.errors import InputError
from napari_muvit.inference.cohort import store_names

TITLES = {"unetr": "UNETR", "mask2former": "Mask2Former"}


def score_recipe(recipe: Path, changes: dict[str, Any], name: str | None = None) -> str:
    """Predict and score the test images of a recipe; the table with all rows that are there.

    Parameters
    ----------
    recipe
        YAML file with a section ``predict``.
    changes
        Options of prediction in place of the recipe's, such as ``model``.
    name
        What the row is called; by default the model's levels and decoder.

    Raises
    ------
    MuvitError
        If there is no test image, no model, or a prediction stayed incomplete.
    """
    config = parse_config(PredictConfig, recipe).model_copy(update=changes)
    rows = [row for row in resolve_images(config.images) if row.split == "test"]
    if not rows or any(row.labels is None for row in rows):
        raise InputError(f"{config.images[0]} names {len(rows)} test images; each row of the "
                         "split test needs labels. Prepare the set again.")
    run = api.RunFolder(config.model).config()
    title, folder = name or model_title(run), Path(config.output)
    key = re.sub(r"[^0-9a-z]+", "_", title.lower()).strip("_")
    place = place_of(folder, key, run.seed)
    scores = predict_and_score(rows, config, place)
    per_image = {one.name: one.mdsc for one in scores.per_image}
    values = {
        **{f"class_{value}": dice for value, dice in scores.dice.items()},
        "row": title, "mdsc": scores.mdsc, "images": len(rows), "model": config.model,
        "mean_of_images": statistics.mean(per_image.values()), "per_image": per_image,
        "classes": {str(value): named for value, named in scores.classes.items()
                    if value not in scores.background},
    }
    result = save_result(folder, key, run.seed, values, config.device)
    text = table_text(folder, result["classes"])
    (folder / "table.md").write_text(text + "\n", encoding="utf-8")
    return text


def predict_and_score(rows: list[CohortRow], config: PredictConfig, place: Path) -> Any:
    """Scores of the test images against their labels; predictions that are there are kept."""
    place.mkdir(parents=True, exist_ok=True)
    test = place / "test.csv"
    # paths in a table are relative to it, and these images lie elsewhere
    images = [str(Path(row.image).absolute()) for row in rows]
    write_cohort(test, [CohortRow(image, split="test") for image in images])
    wanted = config.model_copy(update={"images": (str(test),), "output": str(place / "labels")})
    if show_events("predict", api.predict_images(wanted)):
        raise InputError(f"the predictions in {place} are not complete. Run again to go on.")
    names = store_names(images)
    outputs = [str(place / "labels" / f"{name}.ome.zarr") for name in names]
    return api.evaluate(outputs, [row.labels for row in rows])


def model_title(run: Any) -> str:
    """Levels and decoder, as the paper's tables name their rows."""
    levels = ",".join(f"{level:g}" for level in run.levels)
    decoder = TITLES.get(run.decoder, run.decoder) if isinstance(run, FinetuneConfig) else "MAE"
    return f"MuViT[{levels}] + {decoder}"


def table_text(folder: Path, classes: dict[str, str]) -> str:
    """Markdown of all rows in `folder`."""
    found = [json.loads(path.read_text(encoding="utf-8")) | {"key": path.parent.name}
             for path in sorted(folder.glob("*_seed*/result.json"))]
    rows = dict.fromkeys((re.sub(r"_seed\d+$", "", one["key"]), one["row"]) for one in found)
    columns = [Column(f"class_{value}", name) for value, name in classes.items()]
    columns += [Column("mdsc", "mDSC"), Column("mean_of_images", "mDSC, mean of images")]
    return markdown(folder, list(rows), columns, "Dice of test images")
