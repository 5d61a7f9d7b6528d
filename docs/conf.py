"""Sphinx configuration; `make docs` builds the site without warnings."""

import re
from typing import Any

from napari_muvit import __version__

project = "napari-muvit"
author = "napari-muvit maintainers"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"napari-muvit {release}"
myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_mock_imports = ["napari", "qtpy", "magicgui", "superqt", "pyqtgraph"]
exclude_patterns = ["_build"]


def escape_stars(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Shapes such as (C, *S) are no emphasis."""
    lines[:] = [re.sub(r"(?<![*\w])\*(?=\w+'?[),\]])", r"\\*", line) for line in lines]


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", escape_stars)
