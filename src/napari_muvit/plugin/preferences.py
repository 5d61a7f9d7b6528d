"""The plugin's preferences, from napari's settings (File > Preferences)."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any


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


def _user_cache() -> Path:
    home = Path.home()
    if sys.platform == "darwin":
        return home / "Library" / "Caches"
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
    return Path(os.environ.get("XDG_CACHE_HOME", home / ".cache"))
