"""Training and prediction on a device that is not the CPU, where no GPU is at hand.

A process of its own, since the pretended device stays in the process that made it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
FALLBACK = "PYTORCH_ENABLE_MPS_FALLBACK"


@pytest.mark.parametrize(("platform", "given", "wanted"), [
    ("darwin", None, "1"), ("darwin", "0", "0"), ("linux", None, "None"),
])
def test_what_an_apple_gpu_lacks_is_left_to_the_cpu(platform, given, wanted):
    environment = {name: value for name, value in os.environ.items() if name != FALLBACK}
    environment |= {} if given is None else {FALLBACK: given}
    code = (f"import os, sys; sys.platform = {platform!r}; import napari_muvit; "
            f"assert 'torch' not in sys.modules; print(os.environ.get({FALLBACK!r}))")
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == wanted


@pytest.mark.parametrize("has_float64", [True, False], ids=["like a GPU", "like an Apple GPU"])
def test_everything_computes_on_another_device(has_float64):
    if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip(f"torch {torch.__version__} knows no devices that are written in Python")
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:napari",
         "-p", "no:pytest-qt", "-p", "no:xvfb", str(HERE / "on_pretend.py")],
        env={**os.environ, "PYTHONPATH": path, "PRETEND_FLOAT64": str(int(has_float64))},
        capture_output=True, text=True, timeout=600, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
