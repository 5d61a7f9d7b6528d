"""The seven tutorials, walked by real clicks in one napari, and pictures of what they show.

Run under a display of 1280 x 800:
``xvfb-run -a -s "-screen 0 1280x800x24" python docs/make_screenshots.py docs/images``.
Takes a few minutes, most of them for the two small trainings. A step of a tutorial that
cannot be done ends the walk with an error.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("NAPARI_ASYNC", "0")

SIZE = (1280, 800)
BOTH = ("dark", "light")
BOXES = "MuViT crops"
SAMPLE = "Colon tissue, immunohistochemistry (pyramid)"
STROKES = {
    "background": [((95, 336), (140, 350), (175, 362)), ((410, 435), (470, 440))],
    "gland": [((105, 90), (120, 150), (140, 200)), ((330, 300), (400, 330), (470, 330)),
              ((60, 435), (140, 445), (200, 445))],
    "stroma": [((370, 190), (430, 200), (490, 195)), ((250, 240), (290, 225))],
}
"""Places (y, x) that strokes of each class go through."""


def walk_crops(hands: Any, steps: int) -> None:
    hands.menu("File", "Open Sample", "MuViT", SAMPLE)
    widget = hands.open_widget("MuViT: Crops")
    hands.viewer.reset_view()  # the widget took room from the canvas
    hands.viewer.scene.camera.zoom *= 0.85  # and the names of the boxes need some
    hands.type(widget.levels_edit, "1, 2, 4")
    hands.type(widget.size, "128")
    hands.click_image(220, 200)
    hands.rest(2)
    hands.shoot("crops", BOTH)
    hands.press(widget.sample)
    hands.wait(lambda: widget.note.text().startswith("Training sample"))
    hands.rest(1)
    hands.shoot("crops_sampled")
    hands.viewer.layers.remove(BOXES)


def fill_form(hands: Any, widget: Any, **options: str) -> None:
    """Type the options into a training form."""
    for name, text in options.items():
        editor = widget.form.editors[name]
        hands.choose(editor, text) if name == "preset" else hands.type(editor, text)


def train(hands: Any, widget: Any, name: str) -> None:
    """Press Start, wait for the end, and take a picture of the curves."""
    hands.press(widget.start)
    seconds = hands.wait(lambda: widget.control is None, 600)
    hands.wait(lambda: widget.view.picture is not None and not widget.view.picture.is_running)
    hands.rest(1)
    if "completed" not in widget.view.headline.text().lower():
        raise RuntimeError(widget.view.headline.text())
    print(f"{name}: {seconds:.0f} s")  # noqa: T201
    hands.shoot(name, BOTH)


def walk_pretrain(hands: Any, steps: int) -> None:
    widget = hands.open_widget("MuViT: Pretrain")
    hands.press(widget.sources.add_layer)
    fill_form(hands, widget, levels="1, 4", crop_size="64", preset="tiny", steps=str(steps))
    hands.wait(lambda: bool(widget.advice.text()))
    hands.shoot("pretrain_options")
    train(hands, widget, "pretrain")


def walk_annotate(hands: Any, steps: int) -> None:
    widget = hands.open_widget("MuViT: Annotate")
    rows = widget.classes.rows
    hands.rename_cell(rows, 1, 1, "gland")
    hands.press(widget.classes.add)
    hands.rename_cell(rows, 2, 1, "stroma")
    hands.press(widget.here)
    for line, strokes in enumerate(STROKES.values()):
        hands.click_cell(rows, line, 1)
        for stroke in strokes:
            hands.stroke(*stroke)
    hands.wait(lambda: all(rows.item(line, 2).text() for line in range(3)))
    hands.rest(1)
    hands.shoot("annotate", BOTH)
    hands.press(widget.instant.switch)
    hands.wait(lambda: any("instant" in layer.name for layer in hands.viewer.layers))
    hands.scroll_to(widget.instant)
    hands.rest(1)
    hands.shoot("annotate_instant")
    hands.press(widget.instant.switch)


def walk_finetune(hands: Any, steps: int) -> None:
    widget = hands.open_widget("MuViT: Fine-tune")
    hands.press(widget.sources.add_layer)
    runs = Path(widget.output.path).parent
    fill_form(hands, widget, levels="1, 4", crop_size="64", preset="tiny",
              steps=str(max(1, steps // 2)), pretrained=str(runs / "pretrain-1"))
    hands.wait(lambda: bool(widget.advice.text()))
    hands.shoot("fine_tune_options")
    train(hands, widget, "fine_tune")


def walk_predict(hands: Any, steps: int) -> None:
    viewer = hands.viewer
    widget = hands.open_widget("MuViT: Predict")
    runs = find_runs()
    hands.type(widget.folder.line, str(runs / "finetune-1"))
    hands.wait(lambda: widget.model is not None)
    for layer in viewer.layers:
        layer.mode = "pan_zoom"  # no brush in the pictures
    viewer.layers.selection.active = viewer.layers[0]
    show_image_alone(viewer)
    hands.press(widget.live)
    name = f"{viewer.layers[0].name}: live prediction"
    hands.wait(lambda: name in viewer.layers)
    hands.rest(4)
    hands.shoot("predict_live")
    hands.press(widget.live)
    hands.press(widget.whole)
    hands.wait(lambda: widget.job is None)
    hands.rest(1)
    hands.shoot("predict", BOTH)


def walk_features(hands: Any, steps: int) -> None:
    viewer = hands.viewer
    image = viewer.layers[0].name
    show_image_alone(viewer)
    widget = hands.open_widget("MuViT: Features")
    hands.type(widget.folder.line, str(find_runs() / "pretrain-1"))
    hands.wait(lambda: widget.model is not None)
    hands.press(widget.compute)
    hands.wait(lambda: widget.job is None and bool(widget.maps))
    hands.rest(1)
    hands.shoot("features", BOTH)
    hands.click_image(400, 320)
    hands.wait(lambda: "alike, level 1" in viewer.layers)
    for layer in viewer.layers:
        layer.visible = layer.name in {image, "alike, level 1"}
    hands.shoot("features_alike")
    hands.choose(widget.click, "what it attends to")
    hands.click_image(400, 320)
    hands.wait(lambda: "attended, level 1" in viewer.layers)
    for layer in viewer.layers:
        layer.visible = layer.name in {image, "attended, level 4", "attended, level 1"}
    hands.rest(1)
    hands.shoot("features_attended")


def walk_runs(hands: Any, steps: int) -> None:
    show_image_alone(hands.viewer)
    widget = hands.open_widget("MuViT: Runs")
    hands.type(widget.parent_folder.line, str(find_runs()))
    hands.wait(lambda: widget.list.count() == 2 and widget.view.picture is not None)
    hands.choose(widget.other, "pretrain-1")
    hands.rest(1)
    hands.shoot("runs", BOTH)
    hands.press(widget.use)
    hands.rest(1)


WALKS = (walk_crops, walk_pretrain, walk_annotate, walk_finetune, walk_predict, walk_features,
         walk_runs)


def show_image_alone(viewer: Any) -> None:
    """Hide what earlier tutorials have made."""
    for layer in list(viewer.layers)[1:]:
        layer.visible = False


def find_runs() -> Path:
    """The folder of the runs, beside the sample image."""
    return Path(os.environ["XDG_CACHE_HOME"]) / "napari-muvit" / "samples" / "muvit-runs"


def walk(output: Path, steps: int) -> list[str]:
    """Walk all tutorials; names of the pictures."""
    import napari
    from hands import Hands

    viewer = napari.Viewer(show=True, show_welcome_screen=False)
    viewer.theme = "dark"
    viewer.window.resize(*SIZE)
    hands = Hands(viewer, output)
    hands.rest(1)
    try:
        for step in WALKS:
            step(hands, steps)
    finally:
        viewer.close()
        hands.rest(0.5)
    return hands.pictures


@contextmanager
def own_home() -> Iterator[str]:
    """A short-lived home: the user's settings stay out of the pictures, and paths are short."""
    home = Path(tempfile.gettempdir()) / "ada"
    home.mkdir()
    try:
        yield str(home)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=300, help="of the pretraining")
    given = parser.parse_args()
    output = given.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    with own_home() as home:
        os.environ |= {"HOME": home, "XDG_CACHE_HOME": home, "XDG_CONFIG_HOME": f"{home}/config",
                       "XDG_DATA_HOME": f"{home}/data"}
        os.chdir(home)
        walk(output, given.steps)
        os.chdir(output)


if __name__ == "__main__":
    main()
