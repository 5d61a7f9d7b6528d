"""Prediction under kills, damage and full disks: the same bytes, or a clear sentence."""

from __future__ import annotations

import errno
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from napari_muvit.data import output as output_module
from napari_muvit.data.lock import WriterLock
from napari_muvit.data.omezarr import create_pyramid
from napari_muvit.data.output import PredictionStore
from napari_muvit.data.pyramid import open_pyramid
from napari_muvit.errors import RunError
from napari_muvit.inference import job
from napari_muvit.inference.events import FinishedEvent, WarningEvent
from napari_muvit.inference.predictor import FunctionPredictor
from napari_muvit.inference.spec import ModelSpec
from napari_muvit.inference.to_store import predict_to_zarr

pytestmark = pytest.mark.faults
CHILD = Path(__file__).with_name("predict_child.py")


def stub():
    """A model that judges every pixel by its own value."""
    from napari_muvit.data.labels import ClassTable, make_classes

    def judge(x, bbox, valid):
        bright = np.clip(x[:, 0, 0], 0, 1)
        return np.stack([1 - bright, bright], axis=1)

    table = ClassTable(make_classes((1, 2)), unlabelled=0)
    return FunctionPredictor(judge, ModelSpec((1,), (32, 32), 2, 1, table, fingerprint="w"))


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(job, "choose_block", lambda step, *_: tuple(2 * s for s in step))


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "image.ome.zarr"
    array, = create_pyramid(path, shape=(260, 230), axes="yx", levels=(1,), dtype=np.float32,
                            chunk=64)
    array[:] = np.random.default_rng(0).random((260, 230)).astype(np.float32)
    return path


def read_files(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def run_child(source, output, pause=0.0):
    return subprocess.Popen(
        [sys.executable, str(CHILD), str(source), str(output), str(pause)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )


def kill_and_resume(source, folder, kills):
    whole, broken = folder / "whole.ome.zarr", folder / "broken.ome.zarr"
    child = run_child(source, whole)
    _, problems = child.communicate(timeout=120)
    assert child.returncode == 0, problems
    chance = random.Random(kills)
    killed = 0
    for _ in range(kills):
        child = run_child(source, broken, pause=0.01)
        lines = chance.randint(1, 60)
        for number, line in enumerate(child.stdout):
            if number >= lines or line.startswith("Finished"):
                break
        killed += child.poll() is None
        child.kill()
        child.communicate()
    child = run_child(source, broken)
    out, problems = child.communicate(timeout=120)
    assert child.returncode == 0, problems
    assert "FinishedEvent" in out
    assert killed
    assert not list(folder.glob(".*"))
    for suffix in ("", "_probabilities"):
        a = read_files(folder / f"whole{suffix}.ome.zarr")
        b = read_files(folder / f"broken{suffix}.ome.zarr")
        assert a.keys() == b.keys()
        assert [name for name in a if a[name] != b[name]] == []


def test_what_a_kill_left_of_an_unborn_store_is_cleared_away(source, tmp_path):
    output = tmp_path / "out.ome.zarr"
    program = (
        "import os, sys; sys.argv = ['', *sys.argv[1:], '0']\n"
        "from napari_muvit.data import output\n"
        "output.os.replace = lambda *_: os.kill(os.getpid(), 9)\n"
        f"import runpy; runpy.run_path({str(CHILD)!r}, run_name='__main__')"
    )
    child = subprocess.run([sys.executable, "-c", program, str(source), str(output)], check=False,
                           capture_output=True, timeout=120)
    assert child.returncode == -9, child.stderr
    assert [path for path in tmp_path.glob(".out_*") if path.is_dir()]
    options = {"tissue": "none", "probabilities": True}
    busy = tmp_path / ".out.ome.zarr.0123abcd"
    busy.mkdir()
    with WriterLock(tmp_path / ".out.ome.zarr.0123abcd.lock"):
        list(predict_to_zarr(str(source), stub(), output, **options))
        assert [path.name for path in tmp_path.glob(".out*") if path.is_dir()] == [busy.name]
    shutil.rmtree(output)
    shutil.rmtree(tmp_path / "out_probabilities.ome.zarr")
    list(predict_to_zarr(str(source), stub(), output, **options))
    assert not list(tmp_path.glob(".out*"))


def test_five_kills_leave_the_bytes_of_an_undisturbed_run(source, tmp_path):
    kill_and_resume(source, tmp_path, 5)


@pytest.mark.slow
def test_thirty_kills_leave_the_bytes_of_an_undisturbed_run(source, tmp_path):
    kill_and_resume(source, tmp_path, 30)


@pytest.mark.usefixtures("small_blocks")
def test_an_unreadable_chunk_costs_its_tiles_and_no_more(source, tmp_path):
    expected = tmp_path / "expected.ome.zarr"
    list(predict_to_zarr(str(source), stub(), expected, tissue="none"))
    chunk = source / "0" / "c" / "2" / "1"
    content = chunk.read_bytes()
    chunk.write_bytes(b"damaged" * 20)
    output = tmp_path / "out.ome.zarr"
    fresh = open_pyramid(str(source)).uncached()
    events = list(predict_to_zarr(fresh, stub(), output, tissue="none"))
    warned = [event for event in events if isinstance(event, WarningEvent)]
    assert warned
    assert "damaged" in warned[0].message
    finished = events[-1]
    assert isinstance(finished, FinishedEvent)
    assert not finished.complete
    assert finished.failed == len(warned)
    found = PredictionStore(output).read((slice(None), slice(None)))
    whole = PredictionStore(expected).read((slice(None), slice(None)))
    assert (found[128:192, 64:128] == 0).all()
    done = found != 0
    np.testing.assert_array_equal(found[done], whole[done])
    assert done[:96].all()
    assert done.mean() > 0.6
    chunk.write_bytes(content)
    again = open_pyramid(str(source)).uncached()
    assert list(predict_to_zarr(again, stub(), output, tissue="none"))[-1].complete
    np.testing.assert_array_equal(PredictionStore(output).read((slice(None), slice(None))), whole)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("place", ["pixels", "journal"])
def test_a_full_disk_is_said_and_the_rest_is_kept(source, tmp_path, monkeypatch, place):
    output = tmp_path / "out.ome.zarr"
    written = 0

    def fill_up(original):
        def write(self, *given):
            nonlocal written
            written += 1
            if written > 6:
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(self, *given)
        return write

    with monkeypatch.context() as patch:
        kind, name = {
            "pixels": (output_module.PredictionStore, "write"),
            "journal": (output_module.Journal, "append"),
        }[place]
        patch.setattr(kind, name, fill_up(getattr(kind, name)))
        with pytest.raises(RunError, match="disk is full"):
            list(predict_to_zarr(str(source), stub(), output, tissue="none"))
    events = list(predict_to_zarr(str(source), stub(), output, tissue="none"))
    assert events[0].done > 0
    assert events[-1].complete
    plain = tmp_path / "plain.ome.zarr"
    list(predict_to_zarr(str(source), stub(), plain, tissue="none"))
    np.testing.assert_array_equal(PredictionStore(output).read((slice(None), slice(None))),
                                  PredictionStore(plain).read((slice(None), slice(None))))
