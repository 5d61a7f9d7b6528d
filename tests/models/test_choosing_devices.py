"""Devices: what is usable, and a sentence for what is not."""

from __future__ import annotations

import pytest
import torch

from napari_muvit.errors import RunError
from napari_muvit.models.devices import (
    choose_device,
    cuda_problem,
    device_facts,
    is_out_of_memory,
    module_on,
)


def test_the_cpu_is_always_usable():
    assert device_facts()[-1].name == "cpu"
    assert device_facts()[-1].is_usable
    assert choose_device("cpu") == torch.device("cpu")


def test_auto_takes_the_first_usable():
    first = next(fact for fact in device_facts() if fact.is_usable)
    assert str(choose_device("auto")).split(":")[0] == first.name.split(":")[0]


@pytest.mark.parametrize(("built", "available", "words"), [
    (None, False, "built for CPUs only"), ("12.8", False, "finds no GPU"),
])
def test_why_there_is_no_gpu(monkeypatch, built, available, words):
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert words in str(cuda_problem())
    with pytest.raises(RunError, match=f"(?s){words}.*Usable are: auto"):
        choose_device("cuda:1")
    with pytest.raises(RunError, match=words):
        choose_device("cuda")


def test_gpus_are_listed_with_their_memory_and_shared_by_rank(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (2**30, 2**31))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "Card")
    assert device_facts()[1].reason == "Card, 1.0 of 2.0 GB free"
    assert choose_device("auto", local_rank=1) == torch.device("cuda:1")
    assert choose_device("cuda", local_rank=3) == torch.device("cuda:1")
    with pytest.raises(RunError, match="no such device"):
        choose_device("cuda:7")


def test_apple_gpus_are_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(RunError, match="'mps' cannot be used"):
        choose_device("mps")


@pytest.mark.parametrize(("error", "expected"), [
    (torch.OutOfMemoryError("CUDA out of memory"), True), (MemoryError(), True),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
    (RuntimeError("size mismatch"), False), (ValueError("out of memory"), False),
])
def test_out_of_memory_is_recognised(error, expected):
    assert is_out_of_memory(error) is expected


def test_a_module_is_copied_to_another_device_and_stays_where_it_was():
    inner = torch.nn.Linear(3, 3).requires_grad_(False)
    module = torch.nn.Sequential(inner, torch.nn.BatchNorm1d(3), inner)  # one is there twice
    module.meta = {"levels": (1, 4)}
    assert module_on(module, torch.device("cpu")) is module
    other = module_on(module, torch.device("meta"))
    assert {t.device.type for t in other.state_dict().values()} == {"meta"}
    assert {t.device.type for t in module.state_dict().values()} == {"cpu"}
    assert other[0] is other[2]
    assert other.meta == module.meta
    assert [p.requires_grad for p in other.parameters()] == [False, False, True, True]
    assert isinstance(other[1].running_mean, torch.Tensor)
    assert other[1].running_mean.is_meta
