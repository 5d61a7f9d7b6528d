"""Pictures of every widget in the light and the dark theme, for the documentation.

Run under a display of 1280 x 800:
``xvfb-run -a -s "-screen 0 1280x800x24" python docs/make_screenshots.py docs/images``.
Trains tiny models for the widgets to show; takes a few minutes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import napari
import numpy as np
from PIL import Image, ImageColor
from qtpy.QtWidgets import QApplication
from skimage.color import rgb2hed
from skimage.data import immunohistochemistry

from napari_muvit import api

SIZE = (1280, 800)
CURVES = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#d55e00")
FLAT, MIXED = 64, 144
"""Colours of a picture: those of most pixels as they are, and some for all others."""
TINY = {
    "levels": (1, 4), "crop_size": (64,), "preset": "tiny", "batch_size": 4, "tissue": "none",
    "val_fraction": 0.2, "validate_every": 20, "preview_every": 20, "seed": 0,
}


def prepare(folder: Path) -> dict[str, str]:
    """The image, its labels, one pretraining and one fine-tuning run; their paths."""
    rgb = immunohistochemistry()
    stains = rgb2hed(rgb)
    labels = np.ones(rgb.shape[:2], np.uint8)
    labels[stains[..., 2] > np.percentile(stains[..., 2], 60)] = 2
    labels[stains[..., 0] > np.percentile(stains[..., 0], 85)] = 3
    names = (api.LabelClass(1, "rest", "#808080"), api.LabelClass(2, "DAB", "#e69f00"),
             api.LabelClass(3, "nuclei", "#56b4e9"))
    table = api.ClassTable(names, background=1)
    paths = {name: str(folder / name) for name in ("tissue.ome.zarr", "labels.ome.zarr")}
    image = api.pyramid_from_arrays([rgb], axes="yxc", pixel_size=(0.5, 0.5), name="colon")
    truth = api.pyramid_from_arrays([labels], axes="yx", pixel_size=(0.5, 0.5), is_labels=True,
                                    name="stains")
    for _ in api.convert(image, paths["tissue.ome.zarr"], levels=(1, 2, 4), chunk=128):
        pass
    for _ in api.convert(truth, paths["labels.ome.zarr"], levels=(1, 2, 4), chunk=128,
                         classes=table):
        pass
    runs = folder / "muvit-runs"
    source = {"images": (paths["tissue.ome.zarr"],)}
    api.pretrain({**TINY, **source, "steps": 60, "output": str(runs / "pretrain-1")}).wait()
    api.finetune({**TINY, **source, "labels": (paths["labels.ome.zarr"],), "steps": 80,
                  "pretrained": str(runs / "pretrain-1"), "output": str(runs / "finetune-1"),
                  }).wait()
    return {"image": paths["tissue.ome.zarr"], "labels": paths["labels.ome.zarr"],
            "runs": str(runs)}


def wait(seconds: float, until: Callable[[], bool] = lambda: False) -> None:
    """Let napari work for a while, or until something is there."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not until():
        QApplication.processEvents()
        time.sleep(0.01)


def show_crops(viewer: Any, widget: Any, paths: dict[str, str]) -> None:
    widget.size.setValue(128)
    widget.levels_edit.setText("1, 2, 4")
    widget.levels_edit.editingFinished.emit()
    wait(2)


def show_pretrain(viewer: Any, widget: Any, paths: dict[str, str]) -> None:
    widget.sources.add_layer.click()
    widget.form.set_values({**TINY, "steps": 60})
    widget.output.line.setText(str(Path(paths["runs"]) / "pretrain-1"))
    widget.view.watch(Path(paths["runs"]) / "pretrain-1")
    widget.tabs.setCurrentIndex(1)
    wait(20, lambda: widget.view.picture is not None)
    wait(1)


def show_finetune(viewer: Any, widget: Any, paths: dict[str, str]) -> None:
    viewer.open(paths["labels"], plugin="napari-muvit", opacity=0.4)
    widget.sources.add_layer.click()
    widget.form.set_values({**TINY, "steps": 80, "pretrained": paths["runs"] + "/pretrain-1"})
    wait(1)


def show_predict(viewer: Any, widget: Any, paths: dict[str, str]) -> None:
    widget.folder.set_path(str(Path(paths["runs"]) / "finetune-1"))
    wait(20, lambda: widget.model is not None)
    widget.view.click()
    wait(120, lambda: widget.job is None)
    wait(1)


def show_live(viewer: Any, widget: Any, paths: dict[str, str]) -> None:
    show_predict(viewer, widget, paths)
    viewer.layers.remove("colon: prediction in view")
    widget.output.set_path(str(Path(paths["runs"]) / "out.ome.zarr"))
    widget.whole.click()
    wait(120, lambda: widget.job is None)
    wait(1)


def show_features(viewer: Any, widget: Any, paths: dict[str, str]) -> None:
    widget.folder.set_path(str(Path(paths["runs"]) / "pretrain-1"))
    wait(20, lambda: widget.model is not None)
    widget.compute.click()
    wait(120, lambda: widget.job is None)
    for layer in viewer.layers:
        layer.visible = not layer.name.startswith("features")
    widget.click.setCurrentText("what it attends to")
    widget.show_attended((128.0, 128.0))
    wait(20, lambda: "attended, level 1" in viewer.layers)
    wait(1)


def show_annotate(viewer: Any, widget: Any, paths: dict[str, str]) -> None:
    widget.here.click()
    wait(1)
    layer = viewer.layers.selection.active
    for value, (row, column), reach in ((2, (150, 90), 40), (1, (330, 200), 45)):
        rows, columns = np.mgrid[row - 12:row + 12, column - reach:column + reach]
        bent = rows + (12 * np.sin(columns / 15)).astype(int)
        layer.data_setitem((bent.ravel(), columns.ravel()), value)
    layer.refresh()
    wait(3)


def show_runs(viewer: Any, widget: Any, paths: dict[str, str]) -> None:
    widget.parent_folder.set_path(paths["runs"])
    wait(20, lambda: widget.view.picture is not None)
    wait(1)


WIDGETS = {
    "MuViT: Crops": show_crops, "MuViT: Pretrain": show_pretrain,
    "MuViT: Fine-tune": show_finetune, "MuViT: Predict": show_live,
    "MuViT: Features": show_features, "MuViT: Annotate": show_annotate, "MuViT: Runs": show_runs,
}


def picture(name: str, theme: str, paths: dict[str, str], output: Path) -> None:
    """One widget in one theme, beside the image it works on."""
    viewer = napari.Viewer(show=True, show_welcome_screen=False)
    viewer.theme = theme
    viewer.window.resize(*SIZE)
    viewer.open(paths["image"], plugin="napari-muvit")
    _, widget = viewer.window.add_plugin_dock_widget("napari-muvit", name)
    WIDGETS[name](viewer, widget, paths)
    file = name.split(": ")[1].lower().replace(" ", "_").replace("-", "_")
    shot = Image.fromarray(viewer.screenshot(canvas_only=False)[..., :3])
    few_colours(shot).save(output / f"{file}_{theme}.png", optimize=True)
    viewer.close()
    wait(0.2)


def few_colours(shot: Image.Image) -> Image.Image:
    """The picture in a palette, so that its file is small; widgets and curves keep theirs."""
    counted = sorted(shot.getcolors(shot.width * shot.height), reverse=True)
    palette = [ImageColor.getrgb(name) for name in CURVES] + [rgb for _, rgb in counted[:FLAT]]
    mixed = shot.quantize(MIXED).getpalette() or []
    values = [value for rgb in palette for value in rgb] + mixed[: 3 * MIXED]
    holder = Image.new("P", (1, 1))
    holder.putpalette(values)
    return shot.quantize(palette=holder, dither=Image.Dither.NONE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--only", nargs="*", help="names of widgets, such as Crops")
    given = parser.parse_args()
    given.output = given.output.absolute()
    given.output.mkdir(parents=True, exist_ok=True)
    # Short paths are read more easily in a picture.
    folder = Path(tempfile.gettempdir(), "muvit-pictures")
    folder.mkdir()
    os.chdir(folder)
    try:
        paths = prepare(Path("slides"))
        for name in WIDGETS:
            if given.only and name.split(": ")[1] not in given.only:
                continue
            for theme in ("dark", "light"):
                picture(name, theme, paths, given.output)
    finally:
        os.chdir(folder.parent)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
