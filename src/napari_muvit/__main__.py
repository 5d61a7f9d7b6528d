"""``napari-muvit COMMAND`` and ``python -m napari_muvit COMMAND``: the headless front door."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from napari_muvit import __version__
from napari_muvit.doors import annotate, commands, doctor, init, probe
from napari_muvit.doors.shell import run_command
from napari_muvit.errors import ConfigError, nearest_name

Command = Callable[[Sequence[str]], int]


def _train(args: Sequence[str]) -> int:
    """Pretrain, fine-tune or resume; the same as python -m napari_muvit.train."""
    from napari_muvit.train import train

    return train(args)


def _demo(args: Sequence[str]) -> int:
    """Run the main job on a real image: pretrain, fine-tune, predict, score, report."""
    from napari_muvit.demo.command import demo

    return demo(args)


COMMANDS: dict[str, Command] = {
    "demo": _demo,
    "info": commands.info,
    "convert": commands.convert,
    "annotate": annotate.annotate,
    "init": init.init,
    "train": _train,
    "predict": commands.predict,
    "evaluate": commands.evaluate,
    "probe": probe.probe,
    "export": commands.export,
    "doctor": doctor.doctor,
}


def usage() -> str:
    """The list of commands with the first line of each one's help."""
    width = max(map(len, COMMANDS))
    lines = [
        f"  {name:<{width}}  {(command.__doc__ or '').splitlines()[0]}"
        for name, command in COMMANDS.items()
    ]
    return "\n".join([
        f"napari-muvit {__version__}: multi-resolution vision transformers for microscopy", "",
        "usage: napari-muvit COMMAND [ARGUMENT...]", "", *lines, "",
        "napari-muvit COMMAND --help says more.",
    ])


def dispatch(args: Sequence[str]) -> int:
    """Run the command that `args` name; its exit status."""
    if not args or args[0] in {"-h", "--help", "help"}:
        sys.stdout.write(usage() + "\n")
        return 0
    if args[0] == "--version":
        sys.stdout.write(__version__ + "\n")
        return 0
    if args[0] not in COMMANDS:
        near = nearest_name(args[0], COMMANDS)
        hint = f"Did you mean {near!r}?" if near else f"Known are {', '.join(COMMANDS)}."
        raise ConfigError(f"unknown command {args[0]!r}. {hint}")
    return COMMANDS[args[0]](args[1:])


def main(args: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    given = sys.argv[1:] if args is None else list(args)
    return run_command(lambda: dispatch(given))


if __name__ == "__main__":
    sys.exit(main())
