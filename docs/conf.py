"""Sphinx configuration; `make docs` builds the site without warnings."""

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
