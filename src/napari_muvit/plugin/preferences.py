"""The plugin's preferences, from napari's settings (File > Preferences)."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

DEFAULT_CACHE_GB = 4.0


def preference(name: str, default: Any) -> Any:
    """One preference of the manifest's ``general`` configuration, or `default`."""
    try:
        from napari.settings import get_plugin_settings

        return getattr(get_plugin_settings("napari-muvit").general, name)
    except (ImportError, KeyError, AttributeError):
        # An older napari, or one in which the plugin is not registered (console, tests).
        return default


def cache_folder() -> Path:
    """Where samples and live predictions are kept; the user's cache folder unless set."""
    chosen = str(preference("cache_folder", "")).strip()
    return Path(chosen).expanduser() if chosen else _user_cache() / "napari-muvit"


def cache_bytes() -> int:
    """How much the live predictions that are kept may take on disk."""
    return int(float(preference("cache_size", DEFAULT_CACHE_GB)) * 2**30)


def default_levels() -> tuple[float, ...] | None:
    """The levels that widgets start with; None where they are chosen for each image."""
    text = str(preference("levels", "")).replace(";", ",")
    try:
        return tuple(float(part) for part in text.split(",") if part.strip()) or None
    except ValueError:
        return None


def preferred_options() -> dict[str, Any]:
    """Options of a run that the preferences name."""
    levels = default_levels()
    chosen: dict[str, Any] = {"device": str(preference("device", "auto"))}
    return chosen if levels is None else {**chosen, "levels": levels}


def _user_cache() -> Path:
    home = Path.home()
    if sys.platform == "darwin":
        return home / "Library" / "Caches"
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
    return Path(os.environ.get("XDG_CACHE_HOME", home / ".cache"))
