"""The headless doors: thin commands over `api`. Nothing here knows Qt or napari."""
