"""From downloaded data to the table: the recipes of Mouse (Table 5) and KPIS (Table 6).

    python benchmarks/recipe.py prepare mouse|kpis DOWNLOAD FOLDER
    python benchmarks/recipe.py train configs/mouse.yaml
    python benchmarks/recipe.py table configs/mouse.yaml

Each goes on where it was interrupted. ``standins.py`` makes small sets to try them on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.prepare import prepare
from experiments.recipe_table import score_recipe

from napari_muvit import api
from napari_muvit.config import FinetuneConfig, PretrainConfig, parse_config
from napari_muvit.doors.shell import run_command, say
from napari_muvit.errors import RunError
from napari_muvit.train import train as train_command

DONE = ("completed", "early")


def train(recipe: Path, only: str | None = None) -> int:
    """Pretrain and fine-tune as a recipe says, each from its beginning or where it stopped.

    Parameters
    ----------
    only
        ``pretrain`` or ``finetune``; both by default.
    """
    for verb, kind in (("pretrain", PretrainConfig), ("finetune", FinetuneConfig)):
        if only not in (None, verb):
            continue
        output = parse_config(kind, recipe).output
        if _state(output) in DONE:
            say(f"{verb}: {output} is complete")
            continue
        begun = _state(output) is not None
        code = train_command(["resume", output] if begun else [verb, "--config", str(recipe)])
        if code or _state(output) not in DONE:
            return code
    return 0


def _state(output: str) -> str | None:
    """Where a run is; None before its first start."""
    try:
        return api.RunFolder(output).status().state
    except RunError:
        return None


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("prepare", help="convert a download and write its table")
    first.add_argument("set", choices=("mouse", "kpis"))
    first.add_argument("download", type=Path)
    first.add_argument("folder", type=Path)
    first.add_argument("--classes", type=Path, help="CSV with value and name of each region")
    first.add_argument("--channels", type=int, nargs="+", help="channels of the images to keep")
    first.add_argument("--pixel-size", type=float, help="um, for images that do not say it")
    second = commands.add_parser("train", help="pretrain and fine-tune")
    second.add_argument("recipe", type=Path)
    second.add_argument("--only", choices=("pretrain", "finetune"))
    third = commands.add_parser("table", help="predict and score the test images")
    third.add_argument("recipe", type=Path)
    third.add_argument("--name", help="what the row is called")
    third.add_argument("--model", help="another run than the recipe's")
    third.add_argument("--device")
    third.add_argument("--overlap", type=float)
    third.add_argument("--threads", type=int)
    return parser.parse_args(argv)


def run(given: argparse.Namespace) -> int:
    """Do what was asked for; the exit status."""
    if given.command == "prepare":
        print(prepare(given.set, given.download, given.folder, given.classes, given.channels,
                      given.pixel_size))
        return 0
    if given.command == "train":
        return train(given.recipe, given.only)
    changes = {name: getattr(given, name) for name in ("model", "device", "overlap", "threads")
               if getattr(given, name) is not None}
    print(score_recipe(given.recipe, changes, given.name))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run one of the commands; its exit status."""
    given = parse(argv)
    return run_command(lambda: run(given))


if __name__ == "__main__":
    sys.exit(main())
