"""What every test shares: pinned threads, the real data's place, the slow switch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "2")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow; run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


def _shared(name: str, variable: str) -> Path:
    fallback = Path(__file__).resolve().parents[2] / "shared" / name
    return Path(os.environ.get(variable, fallback))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images; tests that need it skip where it is absent."""
    folder = _shared("data", "MUVIT_TEST_DATA")
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}; set MUVIT_TEST_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of golden files made with the official implementation."""
    folder = _shared("reference", "MUVIT_TEST_REFERENCE")
    if not folder.is_dir():
        pytest.skip(f"no golden files at {folder}; set MUVIT_TEST_REFERENCE to their folder")
    return folder
