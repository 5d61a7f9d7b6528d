"""What was chosen for an image, so that it comes back when napari is opened again on it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from napari_muvit.plugin.preferences import cache_folder

FILE = "choices.json"
MOST_IMAGES = 500
ANY_IMAGE = "*"


def remember(image: str | None, **choices: Any) -> None:
    """Keep `choices` for the image at a path; None keeps them for any image.

    A disk that cannot be written costs the memory, never the work at hand.
    """
    known = _read()
    key = image or ANY_IMAGE
    entry = {**known.pop(key, {}), **choices}
    kept = dict(list(known.items())[-MOST_IMAGES + 1 :])
    path = _path()
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({**kept, key: entry}), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        logging.getLogger(__name__).warning("choices are not remembered: %s", error)


def recall(image: str | None, name: str) -> Any:
    """What was last chosen under `name` for the image, else for any; None if nothing was."""
    known = _read()
    own = known.get(image or ANY_IMAGE, {})
    return own.get(name, known.get(ANY_IMAGE, {}).get(name))


def recall_own(image: str | None, name: str) -> Any:
    """What was last chosen under `name` for the image itself; None if nothing was."""
    return _read().get(image or ANY_IMAGE, {}).get(name)


def _path() -> Path:
    return cache_folder() / FILE


def _read() -> dict[str, dict[str, Any]]:
    try:
        known = json.loads(_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # Nothing remembered yet, or a file that was cut short: begin anew.
        return {}
    return known if isinstance(known, dict) else {}
