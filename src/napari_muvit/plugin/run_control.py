"""Who trains: a thread of napari, a process that outlives it, or anybody that writes a run folder.

Knows no Qt. All three are asked the same things: pause, resume, stop.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import yaml

from napari_muvit.config import RunConfig
from napari_muvit.errors import RunError
from napari_muvit.plugin import engine
from napari_muvit.plugin.priority import lower_process, lower_thread
from napari_muvit.plugin.run_files import RunFiles, remove_left_files

_STARTED: list[subprocess.Popen[bytes]] = []
"""Processes that may outlive the widget that started them, kept so that they can be reaped."""

Verb = Literal["pretrain", "finetune"]
Action = Literal["pause", "resume", "stop"]


class RunControl(Protocol):
    """A run that this widget started."""

    folder: Path

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def stop(self) -> None: ...


class ThreadRun:
    """A run in a thread of napari: quick to start, gone when napari closes.

    Parameters
    ----------
    make
        Makes the ``Run``; called in the thread that iterates over `events`, because checking
        the images takes its time.
    folder
        The run folder.
    """

    def __init__(self, make: Callable[[], Any], folder: Path) -> None:
        self.folder = folder
        self._make = make
        self._run: Any = None
        self._wishes: list[str] = []

    def events(self) -> Iterator[Any]:
        """The run's events; to be iterated in a thread, which gives way to the viewer's."""
        lower_thread()
        self._run = self._make()
        for wish in self._wishes:
            getattr(self._run, wish)()
        yield from self._run

    def pause(self) -> None:
        self._ask("pause")

    def resume(self) -> None:
        self._ask("resume")

    def stop(self) -> None:
        self._ask("stop")

    def _ask(self, wish: str) -> None:
        """Pass on a wish, or keep it until the run is there."""
        if self._run is None:
            self._wishes.append(wish)
        else:
            getattr(self._run, wish)()


class ProcessRun:
    """A run in its own process, which outlives napari.

    Parameters
    ----------
    arguments
        What follows ``python -m napari_muvit.train``.
    folder
        The run folder.
    config
        What ``--config`` is to give the process, as YAML; None where nothing is.

    Raises
    ------
    RunError
        If the process cannot be started.
    """

    def __init__(self, arguments: list[str], folder: Path, config: str | None = None) -> None:
        self.folder = folder
        self._wish: Action | None = None
        self._is_ended = False
        self._failure: RunError | None = None
        remove_left_files()
        try:
            self._files: RunFiles | None = RunFiles()
            self._process = self._start(self._files, arguments, config)
        except OSError as error:
            raise RunError(f"the training process cannot be started: {error}.") from error
        lower_process(self._process.pid)
        _STARTED[:] = [*(each for each in _STARTED if each.poll() is None), self._process]

    @staticmethod
    def _start(
        files: RunFiles, arguments: list[str], config: str | None
    ) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "napari_muvit.train", *arguments]
        try:
            if config is not None:
                files.config.write_text(config, encoding="utf-8")
                command += ["--config", str(files.config)]
            with files.messages.open("wb") as messages:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=messages, stderr=messages,
                    start_new_session=True,
                )
        except OSError:
            files.remove()
            raise
        files.give_to(process.pid)
        return process

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def error(self) -> RunError | None:
        """Why the process ended, None where it did its work or still does.

        What the process said is read once; its files go then.
        """
        status, files = self._process.poll(), self._files
        if status is not None and files is not None:
            self._files = None
            self._failure = self._judge(status, files)
            if self._failure is not None and str(files.messages) in str(self._failure):
                files.keep()
            else:
                files.remove()
        return self._failure

    def _judge(self, status: int, files: RunFiles) -> RunError | None:
        """What a process that ended with `status` ended of."""
        if not status or self._is_ended:
            return None
        lines = files.messages.read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        if said:
            return RunError(said[-1])
        if status in {-9, 137}:
            return RunError(
                "the training process was killed, most likely because memory ran out. Take a "
                "smaller batch size or crop size, and resume the run."
            )
        if (self.folder / "config.yaml").exists():
            return None
        return RunError(f"the training process ended with status {status}; see {files.messages}.")

    def pause(self) -> None:
        self._wish = "pause"
        self.tell()

    def resume(self) -> None:
        self._wish = "resume"
        self.tell()

    def stop(self) -> None:
        """Ask the run to write a checkpoint and end."""
        self._wish = "stop"
        self.tell()

    def tell(self) -> None:
        """Pass on what was asked for, as soon as the run listens; to be called now and then.

        Asked through the run folder, as on every system a process can be. Before the run has
        begun there is nothing to save, and the process is ended.
        """
        if self._wish is None or not self.is_running:
            return
        if ask_run(self.folder, self._wish) or self._wish == "resume":
            self._wish = None
        elif self._wish == "stop":
            self._wish, self._is_ended = None, True
            self._process.terminate()

    def wait(self, seconds: float) -> None:
        """Wait until the process has ended."""
        self._process.wait(seconds)


class AttachedRun:
    """A run that somebody else trains: an earlier napari, a script, a cluster.

    Parameters
    ----------
    folder
        The run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def is_running(self) -> bool:
        return is_trained(self.folder)

    def error(self) -> None:
        """Nothing: what a run of somebody else ended with stands in its folder."""

    def pause(self) -> None:
        ask_run(self.folder, "pause")

    def resume(self) -> None:
        ask_run(self.folder, "resume")

    def stop(self) -> None:
        """Ask the run to write a checkpoint and end."""
        ask_run(self.folder, "stop")

    def tell(self) -> None:
        """Nothing: a run that is attached to listens."""


def is_trained(folder: Path) -> bool:
    """Whether somebody trains the run in `folder` now."""
    if not (folder / "run.json").is_file():
        return False
    return bool(engine.default_backend().RunFolder(folder).is_writing())


def find_trained(folder: Path) -> tuple[Path, bool] | None:
    """A run folder, and whether somebody trains it; None if it is none (runs in a thread)."""
    if not (folder / "run.json").is_file():
        return None
    return folder, is_trained(folder)


def device_of(folder: Path) -> str:
    """The device that the run in `folder` was told to use; ``auto`` where that is not known."""
    try:
        values = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return "auto"
    return str(values.get("device", "auto")) if isinstance(values, dict) else "auto"


def ask_run(folder: Path, action: Action) -> bool:
    """Ask whoever trains the run in `folder`; False while nobody does."""
    if not is_trained(folder):
        return False
    engine.default_backend().RunFolder(folder).ask(action)
    return True


def start_process(verb: Verb, config: RunConfig) -> ProcessRun:
    """Start a run in its own process."""
    return ProcessRun([verb], Path(config.output), config_text(config))


def config_text(config: RunConfig) -> str:
    """Every option of a run as YAML, which ``--config`` and ``api`` take."""
    values = config.model_dump(mode="json")
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def resume_process(folder: Path) -> ProcessRun:
    """Go on with a run in its own process."""
    return ProcessRun(["resume", str(folder)], folder)
