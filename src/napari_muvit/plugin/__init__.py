"""The napari plugin: the only folder that knows napari and Qt.

For napari's console: `show_crops`, `open_annotation_window`, `live_prediction`, `lazy_labels`,
`show_features`, `show_attention`; a viewer goes in, layers come out. They are loaded when they
are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "napari_muvit.plugin.features_layers": ("show_features", "show_attention"),
    "napari_muvit.plugin.console": (
        "show_crops", "open_annotation_window", "live_prediction", "lazy_labels"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = list(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
