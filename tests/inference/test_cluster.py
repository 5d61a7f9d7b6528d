"""Several processes give the bytes of one, and a killed worker costs nothing but time."""

from __future__ import annotations

import itertools
import os
import signal

import numpy as np
import pytest
from dask import config
from distributed import Client, Nanny, Scheduler, SpecCluster

from napari_muvit.config import PredictConfig, parse_config
from napari_muvit.data.omezarr import create_pyramid
from napari_muvit.errors import ConfigError, InputError
from napari_muvit.inference import cluster as room
from napari_muvit.inference import job
from napari_muvit.inference.events import TileEvent, WarningEvent
from napari_muvit.inference.lazy import predict
from napari_muvit.inference.model_source import ModelSource
from napari_muvit.inference.to_store import predict_to_zarr

from .models import make_model, save
from .stubs import PixelModel, make_spec

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(job, "choose_block", lambda step, *_: tuple(2 * s for s in step))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(make_model(), tmp_path_factory.mktemp("run") / "model")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "image.ome.zarr"
    array, = create_pyramid(path, shape=(140, 120), axes="yx", levels=(1,), dtype=np.float32)
    array[:] = np.random.default_rng(0).random((140, 120)).astype(np.float32)
    return str(path)


def read_files(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_a_cluster_gives_the_bytes_of_one_process_through_a_kill(
    folder, source, tmp_path, monkeypatch
):
    options = {"tissue": "none", "device": "cpu", "threads": 1, "kernels": "torch"}
    single = predict(source, folder, probabilities=True, **options)
    expected = single.compute(scheduler="sync")
    list(predict_to_zarr(source, folder, tmp_path / "one.ome.zarr", **options))
    clients = []
    connect = room.connect

    def watch(*given):
        clients.append(connect(*given)[0])
        return clients[-1], [clients[-1], clients[-1].cluster]

    monkeypatch.setattr(room, "connect", watch)
    killed = 0
    events = predict_to_zarr(source, folder, tmp_path / "many.ome.zarr", cluster="local:2",
                             **options)
    finished = None
    for event in events:
        if isinstance(event, TileEvent) and event.done and not killed:
            client = clients[0]
            lazy = predict(source, folder, probabilities=True, **options)
            found = client.compute(lazy[:, 20:60, 30:90]).result()
            assert found.tobytes() == expected[:, 20:60, 30:90].tobytes()
            killed = client.submit(os.getpid, pure=False).result()
            os.kill(killed, signal.SIGKILL)
        finished = event
    assert killed
    assert finished.complete
    one, many = read_files(tmp_path / "one.ome.zarr"), read_files(tmp_path / "many.ome.zarr")
    assert one.keys() == many.keys()
    assert [name for name in one if one[name] != many[name]] == []


def test_workers_get_neighbours_and_finish_what_others_left():
    units = [(0, (i,)) for i in range(100)]
    stretches = room.Stretches(units)
    taken = {"a": [], "b": []}
    for _ in range(30):
        for worker in "ab":
            taken[worker].append(stretches.take(worker))
    assert taken["a"] == units[:30]
    assert taken["b"] == units[50:80]
    late = [stretches.take("c") for _ in range(10)]  # a was killed; c came
    assert late == units[40:50]
    rest = []
    while stretches:
        rest.append(stretches.take("b"))
    assert sorted([*taken["a"], *taken["b"], *late, *rest]) == units
    assert stretches.take("b") is None
    assert stretches.take("new") is None


def test_a_worker_takes_half_of_the_work_not_of_the_blocks():
    units = [(0, (i,)) for i in range(6)]
    stretches = room.Stretches(units, [10, 10, 1, 10, 10, 1])
    assert stretches.take("a") == units[0]
    assert stretches.take("b") == units[3]


def test_refuses_a_model_that_cannot_travel(tmp_path):
    with pytest.raises(InputError, match="from its folder"):
        predict_to_zarr(np.zeros((64, 64), np.uint8), PixelModel(make_spec()),
                        tmp_path / "o.ome.zarr", tissue="none", cluster="local")


def test_a_scheduler_that_is_not_there_is_told(folder, source, tmp_path):
    with (
        config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(InputError, match=r"no dask scheduler at tcp://127.0.0.1:9 .*Start one"),
    ):
        list(predict_to_zarr(source, folder, tmp_path / "a.ome.zarr", cluster="tcp://127.0.0.1:9",
                             tissue="none", device="cpu", threads=1, kernels="torch"))


def test_a_worker_that_is_late_is_waited_for_and_said_so(folder, source, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "PATIENCE_S", 0.2)
    scheduler = {"cls": Scheduler, "options": {
        "host": room.LOCAL_HOST, "port": 0, "dashboard": False, "dashboard_address": ":0"}}
    options = {"nthreads": 1, "host": room.LOCAL_HOST}
    with SpecCluster(scheduler=scheduler, worker={"cls": Nanny, "options": options}) as cluster:
        events = predict_to_zarr(
            source, folder, tmp_path / "a.ome.zarr", cluster=cluster.scheduler_address,
            tissue="none", device="cpu", threads=1, kernels="torch")
        for event in events:
            if isinstance(event, WarningEvent):
                assert "no worker" in event.message
                cluster.scale(1)
    assert event.complete


def test_two_runs_share_a_cluster_and_leave_nothing_there(folder, source, tmp_path):
    scheduler = {"cls": Scheduler, "options": {
        "host": room.LOCAL_HOST, "port": 0, "dashboard": False, "dashboard_address": ":0"}}
    options = {"nthreads": 1, "host": room.LOCAL_HOST}
    workers = {0: {"cls": Nanny, "options": options}}
    with SpecCluster(scheduler=scheduler, workers=workers) as cluster:
        given = {"cluster": cluster.scheduler_address, "tissue": "none", "device": "cpu",
                 "threads": 1, "kernels": "torch"}
        runs = [predict_to_zarr(source, folder, tmp_path / f"{name}.ome.zarr", **given)
                for name in "ab"]
        last = {}
        for turn in itertools.zip_longest(*runs):
            for name, event in zip("ab", turn, strict=True):
                assert not isinstance(event, WarningEvent)
                last[name] = event or last[name]
        assert last["a"].complete
        assert last["b"].complete
        with Client(cluster.scheduler_address, set_as_default=False) as client:
            assert client.submit(_num_writers, pure=False).result() == 0


def _num_writers():
    from napari_muvit.inference import cluster

    return len(cluster._WRITERS)


@pytest.mark.parametrize("cluster", ["local:0", "slurm:0", "elsewhere"])
def test_a_cluster_has_a_worker(cluster):
    with pytest.raises(ConfigError, match=f"cluster is '{cluster}'"):
        parse_config(PredictConfig, {
            "images": ["a"], "model": "m", "output": "o", "cluster": cluster})


@pytest.mark.parametrize(("visible", "wanted"), [
    (None, ["0", "1", "0"]), ("2,3", ["2", "3", "2"]),
    ("MIG-a, GPU-b", ["MIG-a", "GPU-b", "MIG-a"]),
])
def test_local_workers_share_the_gpus_of_this_process(monkeypatch, visible, wanted):
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("distributed.SpecCluster", lambda workers, **_: workers)
    workers = room.make_local_cluster(3, ModelSource("", device="cuda"))
    found = [workers[i]["options"]["env"]["CUDA_VISIBLE_DEVICES"] for i in range(3)]
    assert found == wanted
