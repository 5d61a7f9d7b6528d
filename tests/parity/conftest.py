"""The official package, where it is installed (extra ``bench``)."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def official() -> SimpleNamespace:
    """The official classes by name; tests that need them skip where muvit is absent."""
    if sys.version_info >= (3, 13):
        pytest.skip("the official muvit needs classmethod properties, which Python 3.13 removed")
    os.environ.setdefault("WANDB_MODE", "disabled")
    names = SimpleNamespace()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for room in ("encoders", "decoders", "mae"):
                module = importlib.import_module(f"muvit.{room}")
                for name in vars(module):
                    if name.startswith("MuViT"):
                        setattr(names, name, getattr(module, name))
    except ImportError as error:
        pytest.skip(f"the official muvit cannot be imported: {error}")
    return names


@pytest.fixture(autouse=True)
def _ignore_official_warnings() -> Iterator[None]:
    """Whatever the official code warns about is not ours to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
