"""The short-lived files of a training process: what it reads when it starts, what it says.

A process may outlive napari, and needs its files as long as it lives. Whoever sees it end removes
them; those of processes that nobody saw end go when the next one is started.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path

PREFIX = "muvit-run-"
OWNER = "process.txt"


class RunFiles:
    """One folder for the files of one process.

    Attributes
    ----------
    config
        Where the options of the run are written, as YAML.
    messages
        Where the process says what it does, and why it ended.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self.config = self.folder / "config.yaml"
        self.messages = self.folder / "messages.txt"

    def give_to(self, number: int) -> None:
        """They belong to the process of this number, and may go when it has ended."""
        try:
            (self.folder / OWNER).write_text(str(number), encoding="ascii")
        except OSError as error:
            # The process runs: that its files may outlive it is no reason to end it.
            logging.getLogger(__name__).warning("%s is not tidied up: %s", self.folder, error)

    def keep(self) -> None:
        """Leave them for the user to read, who was told where they are."""
        (self.folder / OWNER).unlink(missing_ok=True)

    def remove(self) -> None:
        """Take them away; one that is still held open stays until the next run starts."""
        shutil.rmtree(self.folder, ignore_errors=True)


def remove_left_files() -> None:
    """Take away the files of processes that ended after their napari did."""
    import psutil  # comes with napari

    for owner in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{OWNER}"):
        try:
            number = int(owner.read_text(encoding="ascii"))
        except (OSError, ValueError):
            # Another user's, or just being written: not ours to judge.
            continue
        if not psutil.pid_exists(number):
            shutil.rmtree(owner.parent, ignore_errors=True)
