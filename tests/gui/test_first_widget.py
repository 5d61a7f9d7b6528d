"""Opening widgets loads no torch, so the first one is there at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CODE = """
import sys
import napari
from qtpy.QtWidgets import QApplication
viewer = napari.Viewer(show=True, show_welcome_screen=False)
for name in ("Crops", "Pretrain", "Annotate", "Fine-tune", "Predict", "Features", "Runs"):
    viewer.window.add_plugin_dock_widget("napari-muvit", f"MuViT: {name}")
    QApplication.processEvents()
    print(name, "torch" in sys.modules)
viewer.close()
"""


def test_no_widget_loads_torch_when_it_opens(tmp_path: Path) -> None:
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True,
                         text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) == 7
    assert all(line.endswith(" False") for line in lines), lines
