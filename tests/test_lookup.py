"""Lazily found names: imported at first use, kept, listed, and refused where unknown."""

from __future__ import annotations

import subprocess
import sys

import pytest

from napari_muvit.lookup import lazy_names


def test_a_name_is_found_once_and_kept() -> None:
    namespace: dict[str, object] = {"__name__": "here", "own": 1}
    find, names = lazy_names(namespace, {"math": ("pi", "tau")})
    assert names() == ["__name__", "own", "pi", "tau"]
    assert find("pi") == pytest.approx(3.14159, abs=1e-5)
    assert "pi" in namespace
    assert "tau" not in namespace


def test_an_unknown_name_is_refused_in_the_modules_words() -> None:
    find, _ = lazy_names({"__name__": "here"}, {"math": ("pi",)})
    with pytest.raises(AttributeError, match="module 'here' has no attribute 'pie'"):
        find("pie")


def test_the_home_is_imported_at_first_use() -> None:
    code = (
        "import sys, napari_muvit as m\n"
        "before = 'napari_muvit.official' in sys.modules\n"
        "m.MuViTEncoder2d\n"
        "print(before, 'napari_muvit.official' in sys.modules, 'MuViTEncoder2d' in vars(m))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "True", "True"]
