"""The commands of `napari-muvit` that are one call of `api` each."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from napari_muvit.doors.options import Parser, add_flags, merge
from napari_muvit.doors.progress import ProgressPrinter
from napari_muvit.doors.shell import say
from napari_muvit.errors import ConfigError


def info(args: Sequence[str]) -> int:
    """Say what an image is: axes, levels, sizes, and what MuViT would read from where."""
    parser = Parser(prog="napari-muvit info", description=info.__doc__)
    parser.add_argument("source", metavar="SOURCE", help="Image file, OME-Zarr folder or URL.")
    parser.add_argument("--levels", nargs="+", type=float, default=None, metavar="N",
                        help="MuViT levels to look up; by default those that suit the image.")
    parser.add_argument("--image", default=None, metavar="X",
                        help="Which image of a file that holds several, by name or number.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    given = parser.parse_strictly(args)
    from napari_muvit import api

    found = api.describe(given.source, levels=given.levels, image=parse_image(given.image))
    text = json.dumps(found.to_dict(), indent=2) if given.json else str(found)
    sys.stdout.write(text + "\n")
    return 0


def convert(args: Sequence[str]) -> int:
    """Write any image as an OME-Zarr pyramid; streams, and continues what is there."""
    parser = Parser(prog="napari-muvit convert", description=convert.__doc__)
    parser.add_argument("source", metavar="SOURCE", help="Anything that can be read.")
    parser.add_argument("output", metavar="OUT.ome.zarr", help="Store to write.")
    parser.add_argument("--levels", nargs="+", type=float, default=[1, 2, 4, 8], metavar="N",
                        help="Downsampling factors of the arrays (default: 1 2 4 8).")
    parser.add_argument("--chunk", type=int, default=512, metavar="PX", help="Side of a chunk.")
    parser.add_argument("--shard", type=int, default=None, metavar="PX",
                        help="Side of a shard, a multiple of the chunk; none by default.")
    parser.add_argument("--format", choices=["0.4", "0.5"], default="0.5", metavar="{0.4,0.5}",
                        help="NGFF version (default: 0.5).")
    parser.add_argument("--labels", action="store_true",
                        help="The source is a label image: keep values, never average.")
    parser.add_argument("--channels", nargs="+", default=None, metavar="X",
                        help="Channels to keep, by number or name; all by default.")
    parser.add_argument("--t", type=int, default=None, metavar="N", help="One time point.")
    parser.add_argument("--z", type=int, default=None, metavar="N", help="One plane.")
    parser.add_argument("--image", default=None, metavar="X",
                        help="Which image of a file that holds several, by name or number.")
    parser.add_argument("--workers", type=int, default=None, metavar="N",
                        help="Threads; one for each core by default.")
    given = parser.parse_strictly(args)
    from napari_muvit import api

    events = api.convert(
        given.source, given.output, levels=given.levels, chunk=given.chunk, shard=given.shard,
        fmt=given.format, as_labels=given.labels, t=given.t, z=given.z,
        image=parse_image(given.image), channels=parse_channels(given.channels),
        workers=given.workers,
    )
    show_events("convert", events)
    say(f"convert: wrote {given.output}")
    return 0


def parse_image(given: str | None) -> int | str | None:
    """The number of an image as a number; its name stays text."""
    return int(given) if given is not None and given.isdecimal() else given


def parse_channels(given: Sequence[str] | None) -> list[int | str] | None:
    """Channel numbers as numbers; names stay text."""
    return None if given is None else [int(c) if c.isdecimal() else c for c in given]


def predict(args: Sequence[str]) -> int:
    """Predict one or many images to OME-Zarr labels; continues what is there."""
    from napari_muvit.config import PredictConfig

    parser = Parser(prog="napari-muvit predict", description=predict.__doc__,
                    usage="%(prog)s IMAGE... --model RUN --output OUT.ome.zarr [OPTION...]")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="Images, or one CSV.")
    parser.add_argument("--config", metavar="YAML", help="Options from a YAML file; flags win.")
    add_flags(parser, PredictConfig, skip=["images"])
    given = vars(parser.parse_strictly(args))
    images, config_file = given.pop("images"), given.pop("config")
    config = merge(PredictConfig, given | ({"images": images} if images else {}), config_file)
    from napari_muvit import api

    return show_events("predict", api.predict_images(config), after=print_areas)


def evaluate(args: Sequence[str]) -> int:
    """Score a prediction against the truth: Dice and IoU of each class, and their mean."""
    parser = Parser(prog="napari-muvit evaluate", description=evaluate.__doc__)
    parser.add_argument("prediction", metavar="PREDICTION", help="Predicted label image.")
    parser.add_argument("truth", metavar="TRUTH", help="True label image.")
    parser.add_argument("--unlabelled", type=int, default=None, metavar="V",
                        help="Value in TRUTH that means not judged; by default what the labels "
                             "say.")
    parser.add_argument("--background", type=int, default=None, metavar="V",
                        help="Value that means none of the classes, not counted in mDSC; by "
                             "default what the labels say, else 0.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    given = parser.parse_strictly(args)
    from napari_muvit import api

    scores = api.evaluate(given.prediction, given.truth, unlabelled=given.unlabelled,
                          background=given.background)
    text = json.dumps(scores.to_dict(), indent=2) if given.json else str(scores)
    sys.stdout.write(text + "\n")
    return 0


def export(args: Sequence[str]) -> int:
    """Write a model in the official project's format, or as a package for bioimage.io."""
    parser = Parser(prog="napari-muvit export", description=export.__doc__)
    parser.add_argument("run", metavar="RUN", help="Run folder or model folder.")
    parser.add_argument("--format", choices=["official", "bioimageio"], required=True,
                        metavar="{official,bioimageio}",
                        help="official: the folder that the muvit package reads; bioimageio: a "
                             "model package for bioimage.io.")
    parser.add_argument("--output", metavar="FOLDER", help="Folder to write; RUN/FORMAT if absent.")
    about = parser.add_argument_group("for bioimageio")
    about.add_argument("--name", default=None, metavar="TEXT", help="What the model is called.")
    about.add_argument("--license", default=None, metavar="SPDX",
                       help="Licence of the weights (default: BSD-3-Clause, that of the code).")
    about.add_argument("--author", dest="authors", action="append", default=[], metavar="NAME",
                       help="Who made the model; may be given several times.")
    given = parser.parse_strictly(args)
    from napari_muvit import api

    output = Path(given.output or Path(given.run) / given.format)
    if output.is_file() or (output.exists() and any(output.iterdir())):
        raise ConfigError(f"{str(output)!r} is not empty; nothing is overwritten. Pass another "
                          "--output.", field="output")
    api.export(given.run, output, format=given.format, name=given.name, license=given.license,
               authors=given.authors)
    say(f"export: wrote {output}")
    if given.format == "bioimageio" and given.license is None:
        say("export: the licence is BSD-3-Clause, that of the code; the weights may owe more to "
            "their training images. Choose with --license.")
    return 0


def show_events(
    name: str, events: Iterable[Any], after: Callable[[Any], None] | None = None
) -> int:
    """Print events until they end, then call `after` with the last one.

    Exit status 1 where the last event says that something of this process is not finished.
    """
    printer = ProgressPrinter(name)
    event = None
    try:
        for event in events:
            printer.show(event)
    finally:
        printer.close()
    if after is not None and event is not None:
        after(event)
    is_done = getattr(event, "complete", True) or getattr(event, "part_complete", False)
    return int(not is_done)


def print_areas(event: Any) -> None:
    """Print the area of each class as tab-separated lines, ready for a spreadsheet."""
    rows = getattr(event, "areas", [])
    if not rows:
        return
    columns = list(rows[0])
    sys.stdout.write("\t".join(columns) + "\n")
    for row in rows:
        cells = ("" if row.get(name) is None else str(row[name]) for name in columns)
        sys.stdout.write("\t".join(cells) + "\n")
