"""The arguments of `napari-muvit demo`, and what happens after it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from napari_muvit.demo.story import DemoOptions, fine_tuning, run_demo
from napari_muvit.doors.options import Parser
from napari_muvit.doors.shell import say
from napari_muvit.errors import ConfigError


def demo(args: Sequence[str]) -> int:
    """Run the main job on a real image: pretrain, fine-tune, predict, score, report."""
    parser = Parser(prog="napari-muvit demo", description=demo.__doc__)
    parser.add_argument("--image", metavar="SOURCE", help="Your own image; the built-in one "
                        "(immunohistochemistry, 512 x 512) if absent.")
    parser.add_argument("--labels", metavar="SOURCE", help="Labels of your image; without them "
                        "the demo pretrains and shows features.")
    parser.add_argument("--output", default="muvit-demo", metavar="FOLDER",
                        help="Folder to create (default: muvit-demo; numbered if it exists).")
    parser.add_argument("--levels", nargs="+", type=float, default=[1, 4], metavar="N",
                        help="MuViT levels (default: 1 4).")
    parser.add_argument("--steps", nargs=2, type=int, default=[400, 150], metavar="N",
                        help="Steps of pretraining and of fine-tuning (default: 400 150).")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="Random seed.")
    parser.add_argument("--no-view", action="store_true", help="Do not open napari afterwards.")
    given = parser.parse_strictly(args)
    if given.labels and not given.image:
        raise ConfigError("--labels was given without --image. Pass both, or neither.", "labels")
    check_sources(given.image, given.labels, given.levels)
    folder = free_folder(Path(given.output))
    options = DemoOptions(folder, given.image, given.labels, tuple(given.levels),
                          tuple(given.steps), given.seed)
    shown = run_demo(options)
    viewing = ["--plugin", "napari-muvit", *shown]
    say(f"demo: open the result with: {' '.join([napari_command(), *viewing])}")
    if has_screen() and not given.no_view:
        subprocess.run([sys.executable, "-m", "napari", *viewing], check=False)
    return 0


def napari_command() -> str:
    """How a shell starts the napari of this environment, activated or not."""
    beside = Path(sys.executable).with_name("napari")
    is_hidden = shutil.which("napari") is None and beside.exists()
    return os.path.relpath(beside) if is_hidden else "napari"


def check_sources(image: str | None, labels: str | None, levels: Sequence[float]) -> None:
    """Open what was given before anything is trained, so that a wrong path costs no minutes.

    Labels are given to a fine-tuning that is not run: what it would refuse after the
    pretraining, labels of another shape for example, is refused now.
    """
    from napari_muvit import api

    if image is not None:
        api.open_pyramid(image)
    if image is not None and labels is not None:
        with tempfile.TemporaryDirectory() as folder:
            options = fine_tuning(image, levels, labels=labels, kernels="torch")
            api.finetune({**options, "output": str(Path(folder) / "check")}).close()


def free_folder(folder: Path) -> Path:
    """`folder`, or the first of folder-2, folder-3, ... that does not exist."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    if free != folder:
        say(f"demo: {folder} is there from an earlier time; writing to {free}")
    return free


def has_screen() -> bool:
    """Whether napari is installed and there is a screen and a person to open it for."""
    if importlib.util.find_spec("napari") is None or os.environ.get("CI"):
        return False
    if platform.system() == "Linux":
        return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return sys.stdout.isatty()
