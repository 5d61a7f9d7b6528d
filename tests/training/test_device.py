"""How a run computes on its device."""

from __future__ import annotations

import os

import pytest
import torch

from napari_muvit.errors import RunError
from napari_muvit.models.kernels import KernelChoice, current_choice
from napari_muvit.training.device import CUBLAS, Numerics, check_precision, torch_settings


def test_bf16_is_refused_where_the_card_lacks_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda d: "Old Card")
    with pytest.raises(RunError, match="Old Card"):
        check_precision(torch.device("cuda:0"), "bf16")
    check_precision(torch.device("cpu"), "bf16")


def test_numerics_hold_within_a_pass_only():
    numerics = Numerics(torch.device("cpu"), "fp32", KernelChoice(linear="convolution"))
    with numerics():
        assert current_choice().linear == "convolution"
    assert current_choice().linear == "torch"


def test_cublas_is_told_to_be_deterministic_unless_the_user_did(monkeypatch):
    name, value = CUBLAS
    monkeypatch.setenv(name, ":16:8")
    with torch_settings(threads=None, deterministic=True):
        assert os.environ[name] == ":16:8"
    monkeypatch.delenv(name)
    with torch_settings(threads=None, deterministic=False):
        assert name not in os.environ
    with torch_settings(threads=None, deterministic=True):
        assert os.environ[name] == value
