"""Training without a display: python -m napari_muvit.train pretrain, finetune or resume."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from napari_muvit.config import FinetuneConfig, Options, PretrainConfig
from napari_muvit.doors.options import Parser, add_flags, merge, parse_some
from napari_muvit.doors.progress import ProgressPrinter
from napari_muvit.doors.shell import run_command, say
from napari_muvit.errors import ConfigError

CONFIGS: dict[str, type[Options]] = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}
RESUMABLE = ("steps", "device", "workers", "threads")
"""Options that may change when a run is resumed."""

USAGE = {
    "pretrain": "[--config YAML] --images IMAGE... --output RUN [OPTION...]",
    "finetune": "[--config YAML] --images IMAGE... --labels LABELS... --output RUN [OPTION...]",
}


def build_parser() -> tuple[Parser, dict[str, Parser]]:
    """The parser of this door, and the parsers of its commands by name."""
    parser = Parser(prog="python -m napari_muvit.train", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    parsers: dict[str, Parser] = {}
    for name, kind in CONFIGS.items():
        text = (kind.__doc__ or "").splitlines()[0]
        parsers[name] = commands.add_parser(
            name, help=text, description=text, usage=f"%(prog)s {USAGE[name]}",
        )
        parsers[name].add_argument("--config", metavar="YAML", help="Options from a YAML file; "
                                   "flags given here win.")
        add_flags(parsers[name], kind)
    text = "Go on with a run from its last checkpoint."
    parsers["resume"] = commands.add_parser("resume", help=text, description=text)
    parsers["resume"].add_argument("run", metavar="RUN", help="The run folder.")
    add_flags(parsers["resume"], PretrainConfig, only=RESUMABLE)
    return parser, parsers


def train(args: Sequence[str]) -> int:
    """Run one training command with its arguments; its exit status."""
    parser, parsers = build_parser()
    if not args or args[0] in {"-h", "--help"}:
        parser.print_help()
        return 0
    name = args[0]
    if name not in parsers:
        raise ConfigError(f"unknown command {name!r}. Known are {', '.join(parsers)}.")
    given = vars(parsers[name].parse_strictly(args[1:]))
    if name == "resume":
        from napari_muvit.api import resume

        folder = given.pop("run")
        return follow(name, resume(folder, **parse_some(PretrainConfig, given)))
    from napari_muvit import api

    config_file = given.pop("config")
    config = merge(CONFIGS[name], given, config_file)
    return follow(name, getattr(api, name)(config))


def follow(name: str, run: Any) -> int:
    """Print the events of `run` until it ends; exit status 0 where it did its work.

    Of several processes the first one prints.
    """
    is_first = os.environ.get("RANK", "0") == "0"
    printer = ProgressPrinter(name, is_quiet=not is_first)
    with run.stopping_on_signals():
        reason = _show_all(printer, run)
    if is_first:
        say(f"{name}: {reason}; the run folder is {run.folder}")
    return 1 if reason == "failed" else 0


def _show_all(printer: ProgressPrinter, events: Iterable[Any]) -> str:
    reason = "completed"
    try:
        for event in events:
            printer.show(event)
            reason = getattr(event, "reason", reason)
    finally:
        printer.close()
    return reason


def main(args: Sequence[str] | None = None) -> int:
    """Entry point; see the module's docstring."""
    given = sys.argv[1:] if args is None else list(args)
    return run_command(lambda: train(given))


if __name__ == "__main__":
    sys.exit(main())
