"""Sample numbers, parts of batches, and what loader processes' errors become."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._utils import ExceptionWrapper
from training_stub import Numbers

from napari_muvit.errors import RunError, SourceError, SourceNotFoundError
from napari_muvit.training import loader as loader_module
from napari_muvit.training.loader import (
    SampleLoader,
    StepSampler,
    _worker_errors,
    dead_loader,
    move_batch,
    next_batch,
    split_batch,
)
from napari_muvit.training.parallel import Parallel


@given(st.integers(0, 20), st.integers(1, 20), st.integers(1, 12), st.integers(1, 5))
def test_processes_share_every_global_batch(first, count, batch_size, world):
    seen = [list(StepSampler(first, first + count, batch_size, Parallel(r, world)))
            for r in range(world)]
    flat = sorted(n for rank in seen for numbers in rank for n in numbers)
    assert flat == list(range(first * batch_size, (first + count) * batch_size))


def test_a_limit_leaves_out_later_samples():
    assert list(StepSampler(0, 3, 4, Parallel(), limit=6)) == [[0, 1, 2, 3], [4, 5]]


@given(st.integers(1, 20), st.integers(1, 30))
def test_parts_of_a_batch_are_all_of_it(size, parts):
    batch = {"x": torch.arange(size), "y": torch.arange(size)[:, None]}
    pieces = split_batch(batch, parts)
    assert len(pieces) == min(size, parts)
    assert torch.equal(torch.cat([p["x"] for p in pieces]), batch["x"])
    assert max(len(p["x"]) for p in pieces) - min(len(p["x"]) for p in pieces) <= 1


def test_batches_begin_where_they_are_asked_to():
    loader = SampleLoader(Numbers(), 4, 0, Parallel())
    assert [b["index"].tolist() for b in loader.batches(2, 4)] == [[8, 9, 10, 11], [12, 13, 14, 15]]


@pytest.mark.parametrize("kind", [SourceError, SourceNotFoundError])
def test_an_error_in_a_loader_process_is_its_own_sentence_again(kind):
    try:
        raise kind("image 'a': chunk 3 is damaged. Copy it again.")
    except kind:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(kind) as caught, _worker_errors():
        wrapped.reraise()
    assert str(caught.value) == "image 'a': chunk 3 is damaged. Copy it again."


def test_only_dead_loaders_are_called_dead():
    found = dead_loader(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."))
    assert "loader process died" in str(found)
    assert dead_loader(RuntimeError("size mismatch")) is None


@pytest.mark.parametrize("problem", [
    ConnectionResetError(104, "reset by peer"), EOFError(), FileNotFoundError(2, "gone")])
def test_a_connection_that_breaks_means_a_dead_loader(problem, monkeypatch):
    monkeypatch.setattr(loader_module, "NOTICE_SECONDS", 0.0)
    with pytest.raises(RunError, match=r"loader process died .* resume"), _worker_errors():
        next_batch(raising(problem))


def test_a_connection_that_breaks_within_a_loader_is_its_own_error():
    try:
        raise ConnectionResetError("bucket 'a': connection reset.")
    except ConnectionResetError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(ConnectionResetError, match="bucket 'a'"):
        next_batch(calling(wrapped.reraise))


def raising(error):
    raise error
    yield


def calling(function):
    yield function()


def test_boxes_keep_their_precision_on_the_way_to_a_device():
    batch = {"img": torch.zeros(1), "bbox": torch.zeros(1, dtype=torch.float64)}
    moved = move_batch(batch, torch.device("meta"))
    assert moved["bbox"].dtype == torch.float64
    assert moved["img"].device.type == "meta"
    assert move_batch(batch, torch.device("cpu")) is batch
