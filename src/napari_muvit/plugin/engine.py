"""The engine that widgets, readers and samples use unless they are given another."""

from __future__ import annotations

from typing import Any


def default_backend() -> Any:
    """The verbs of ``napari_muvit.api``; imported when the first of them is needed."""
    import napari_muvit.api as api

    return api
