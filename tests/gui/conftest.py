"""Real viewers under a real display, and a small engine in the place of the real one."""

from __future__ import annotations

import gc
import importlib
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from napari_muvit import geometry
from napari_muvit.data.labels import ClassTable, LabelClass
from napari_muvit.data.levels import suggest_crops, suggest_levels
from napari_muvit.data.memory import shared_cache
from napari_muvit.plugin import engine, remembered, stored_images


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = __file__.rsplit("conftest", 1)[0]
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.gui)
    items[:] = [item for item in items if not (is_once(item) and is_proxied(item))]


def is_once(item: pytest.Item) -> bool:
    """Whether a test is worth one kind of viewer only."""
    return item.get_closest_marker("one_viewer") is not None


def is_proxied(item: pytest.Item) -> bool:
    """Whether a test has the viewer that forbids layer access from workers."""
    call = getattr(item, "callspec", None)
    return call is not None and call.params.get("make_viewer") == "proxy"


class StubPyramid:
    """A (C, y, x) array that crops itself by nearest pixel; full resolution alone."""

    is_rgb, axes = False, "cyx"

    def __init__(self, image: np.ndarray, name: str = "stub", source: str | None = None) -> None:
        self.image, self.name, self.source = image, name, source
        self.shape, self.dtype, self.ndim = image.shape, image.dtype, 2
        self.spatial_shape = image.shape[1:]
        self.shapes, self.factors = [image.shape[1:]], [(1.0, 1.0)]
        self.pixel_size, self.spacing, self.origin = None, (1.0, 1.0), (0.0, 0.0)
        self.extent = np.array([[-0.5, -0.5], np.subtract(image.shape[1:], 0.5)])

    def read(self, array_index: int, start: Any, size: Any) -> np.ndarray:
        (y, x), (height, width) = start, size
        return self.image[:, y : y + height, x : x + width]

    def crop(self, center: Any = None, *, levels: Any, size: int) -> Any:
        boxes = geometry.place_boxes(geometry.crop_extents(levels, size, 2), center=center)
        images, valids = [], []
        for (y, x), level in zip(boxes[:, 0], levels, strict=True):
            rows = np.round(y + (np.arange(size) + 0.5) * level).astype(int)
            columns = np.round(x + (np.arange(size) + 0.5) * level).astype(int)
            height, width = self.spatial_shape
            inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
            pixels = self.image[:, rows.clip(0, height - 1)[:, None], columns.clip(0, width - 1)]
            images.append(np.where(inside, pixels, 0))
            valids.append(inside)
        return SimpleNamespace(image=np.stack(images), bbox=boxes, valid=np.stack(valids))


@dataclass(frozen=True)
class StubTile:
    done: int
    total: int
    remaining: float


class StubBackend:
    """The verbs of ``napari_muvit.api`` that widgets use, small and without torch."""

    ClassTable = ClassTable
    suggest_crops = staticmethod(suggest_crops)
    suggest_levels = staticmethod(suggest_levels)

    def __init__(self) -> None:
        self.stores: dict[str, np.ndarray] = {}
        self.failure: Exception | None = None
        self.hold = threading.Event()
        self.hold.set()

    def open_pyramid(self, path: Any, **options: Any) -> StubPyramid:
        if str(path) not in self.stores:
            raise FileNotFoundError(path)
        return StubPyramid(self.stores[str(path)][None], source=str(path))

    def load_model(self, folder: Any) -> Any:
        if self.failure is not None:
            raise self.failure
        classes = ClassTable((LabelClass(1, "dark", "#ff0000"), LabelClass(2, "bright", "#00ff00")))
        meta = SimpleNamespace(classes=classes.to_dict(), crop_size=(64, 64))
        encoder = SimpleNamespace(levels=(1, 4), in_channels=1)
        return SimpleNamespace(meta=meta, encoder=encoder, num_classes=2)

    def predict(self, pyramid: StubPyramid, model: Any, **options: Any) -> Any:
        import dask.array as da

        def label(block: np.ndarray) -> np.ndarray:
            self.hold.wait(60)
            if self.failure is not None:
                raise self.failure
            return (1 + (block > 127)).astype(np.uint8)

        return da.from_array(pyramid.image[0], chunks=256).map_blocks(
            label, meta=np.empty((0, 0), np.uint8))

    def predict_to_zarr(
        self, pyramid: StubPyramid, model: Any, output: Any, **options: Any
    ) -> Any:
        for done in range(1, 5):
            self.hold.wait(60)
            if self.failure is not None:
                raise self.failure
            yield StubTile(done, 4, 4.0 - done)
        self.stores[str(output)] = (1 + (pyramid.image[0] > 127)).astype(np.uint8)

    def pyramid_from_arrays(self, arrays: list[Any], *, axes: str, **options: Any) -> StubPyramid:
        image = np.asarray(arrays[0][...])
        image = np.moveaxis(image, -1, 0) if axes == "yxc" else image
        return StubPyramid(image if image.ndim == 3 else image[None], options.get("name", ""))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "one_viewer: trains in a process of its own, which can touch no layer; run in "
        "the plain viewer only, others in both")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "make_viewer" in metafunc.fixturenames:
        metafunc.parametrize("make_viewer", ["plain", "proxy"], indirect=True)


@pytest.fixture(autouse=True, scope="session")
def _frozen_imports() -> None:
    """Libraries are loaded once and for all: collecting after each viewer need not walk them."""
    for name in ("torch", "dask.array", "napari._qt.qt_main_window"):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is remembered in a test is forgotten after it."""
    monkeypatch.setattr(remembered, "cache_folder", lambda: tmp_path / "remembered")
    monkeypatch.setattr(stored_images, "cache_folder", lambda: tmp_path / "copies")


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> StubBackend:
    stub = StubBackend()
    monkeypatch.setattr(engine, "default_backend", lambda: stub)
    return stub


@pytest.fixture
def make_viewer(request: pytest.FixtureRequest) -> Any:
    """Makes viewers: plain ones, and ones that forbid layer access from workers."""
    kinds = {"plain": "make_napari_viewer", "proxy": "make_napari_viewer_proxy"}
    return request.getfixturevalue(kinds[request.param])


@pytest.fixture
def viewer(make_viewer: Any) -> Any:
    return make_viewer(show=True, strict_qt="raise")


@pytest.fixture
def open_widget(viewer: Any) -> Any:
    """Opens a dock widget by its name in the plugin menu."""

    def open_by_name(name: str) -> Any:
        _, widget = viewer.window.add_plugin_dock_widget("napari-muvit", name)
        return widget

    return open_by_name


@pytest.fixture
def notices(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every notification that napari is asked to show."""
    from napari.utils import notifications

    said: list[str] = []

    def remember(notification: Any) -> None:
        said.append(notification.message)

    monkeypatch.setattr(notifications.notification_manager, "dispatch", remember)
    return said


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A real image, its labels, and a tiny fine-tuned run: ``image``, ``labels``, ``run``."""
    import torch

    from napari_muvit import api

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    rows = np.arange(192)[:, None] // 48 + np.arange(256) // 48
    image = np.where(rows % 2, 200, 40).astype(np.uint8)
    paths = SimpleNamespace(
        image=folder / "board.ome.zarr", labels=folder / "labels.ome.zarr", run=folder / "run"
    )
    names = (LabelClass(1, "dark", "#ff0000"), LabelClass(2, "bright", "#00ff00"))
    pyramid = api.pyramid_from_arrays([image], axes="yx", pixel_size=(0.5, 0.5), name="board")
    for _ in api.convert(pyramid, paths.image, levels=(1, 2, 4), chunk=64):
        pass
    labels = (1 + rows % 2).astype(np.uint8)
    for _ in api.convert(labels, paths.labels, chunk=64, classes=ClassTable(names)):
        pass
    config = {
        "images": (str(paths.image),), "labels": (str(paths.labels),), "levels": (1, 4),
        "crop_size": (32,), "preset": "tiny", "steps": 3, "batch_size": 2, "tissue": "none",
        "threads": 1, "device": "cpu", "output": str(paths.run),
    }
    api.finetune(config).wait()
    return paths


@pytest.fixture
def board(trained: SimpleNamespace, viewer: Any, tmp_path: Path) -> Path:
    """A copy of the image of `trained`, open in the viewer, to be deleted."""
    path = Path(shutil.copytree(trained.image, tmp_path / "board.ome.zarr"))
    viewer.open(str(path), plugin="napari-muvit")
    return path


@pytest.fixture
def nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small an image would be read once; a large one is read piece by piece."""
    monkeypatch.setattr(shared_cache, "takes", lambda nbytes: False)
