"""Live prediction beside training on a graphics card that is only pretended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from napari_muvit.data.labels import ClassTable, LabelClass
from napari_muvit.plugin import live, preferences
from napari_muvit.plugin.devices import DeviceDesk
from napari_muvit.plugin.image_choices import image_choices
from napari_muvit.plugin.layers import resolve_image
from napari_muvit.plugin.live import LiveSession
from napari_muvit.plugin.predict import LoadedModel

pytestmark = pytest.mark.faults
WAIT_MS = 60_000
TABLE = ClassTable((LabelClass(1, "dark", "#ff0000"), LabelClass(2, "bright", "#00ff00")))


class FakeLive:
    """Takes the device that it is told."""

    scale, offset, class_table, plane_axes = (1.0, 1.0), (0.0, 0.0), TABLE, ""

    def __init__(self, pyramid: Any, model: Any, **options: Any) -> None:
        self.options, self.devices = options, [options["device"]]
        self.arrays, self.confidence_arrays = ([np.zeros((64, 64), np.uint8)] for _ in range(2))
        self.on_update, self.on_warning = options["on_update"], options["on_warning"]
        self.is_closed = False

    def set_view(self, box: Any, level: int, plane: Any) -> None: ...

    def use_device(self, device: str) -> None:
        self.devices.append(device)

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def desk() -> DeviceDesk:
    return DeviceDesk()


@pytest.fixture
def start(
    viewer: Any, backend: Any, desk: DeviceDesk, qtbot: Any, tmp_path: Path
) -> Iterator[Any]:
    """Starts live prediction with a device; the session, its engine and what it says."""
    engines: list[FakeLive] = []
    sessions: list[LiveSession] = []

    def make(*arguments: Any, **options: Any) -> FakeLive:
        engines.append(FakeLive(*arguments, **options))
        return engines[-1]

    backend.LivePrediction = make
    backend.device_facts = lambda: [SimpleNamespace(name="cuda:0", is_usable=True),
                                    SimpleNamespace(name="cpu", is_usable=True)]
    viewer.add_image(np.zeros((64, 64), np.uint8), name="board")

    def begin(device: str) -> Any:
        choice = image_choices(viewer.layers)[0]
        image = resolve_image(choice, backend, viewer.dims.point)
        model = LoadedModel(str(tmp_path), (1.0,), (32, 32), TABLE, 1)
        session = LiveSession(viewer, backend, image, choice.layers, model, device=device,
                              cache=tmp_path, desk=desk)
        sessions.append(session)
        said: list[str] = []
        session.warned.connect(said.append)
        session.start()
        qtbot.waitUntil(lambda: session.layer is not None, timeout=WAIT_MS)
        return SimpleNamespace(session=session, engine=engines[-1], said=said)

    yield begin
    for session in sessions:
        session.release()


def test_training_first(start: Any, desk: DeviceDesk, qtbot: Any) -> None:
    release = desk.claim("training", "the run finetune-1", "auto")
    found = start("auto")
    assert found.engine.devices == ["cpu"]
    assert "live prediction runs on the processor until that ends" in found.said[0]
    release()
    qtbot.waitUntil(lambda: found.engine.devices == ["cpu", "auto"], timeout=WAIT_MS)
    qtbot.waitUntil(lambda: len(found.said) == 2, timeout=WAIT_MS)
    assert found.said[1] == "Live prediction is back on the graphics card."


def test_live_first(start: Any, desk: DeviceDesk, qtbot: Any) -> None:
    found = start("auto")
    assert found.engine.devices == ["auto"]
    assert [use.who for use in desk.uses("live")] == ["Live prediction of board"]
    desk.claim("training", "the run pretrain-1", "cuda")
    qtbot.waitUntil(lambda: found.engine.devices == ["auto", "cpu"], timeout=WAIT_MS)
    qtbot.waitUntil(lambda: bool(found.said), timeout=WAIT_MS)
    assert "used by the run pretrain-1" in found.said[0]
    found.session.stop()
    assert desk.uses("live") == []
    qtbot.waitUntil(lambda: found.engine.is_closed, timeout=WAIT_MS)


def test_a_card_that_was_asked_for_is_shared(start: Any, desk: DeviceDesk, qtbot: Any) -> None:
    found = start("cuda")
    desk.claim("training", "the run pretrain-1", "auto")
    qtbot.waitUntil(lambda: bool(found.said), timeout=WAIT_MS)
    assert "shares the graphics card with the run pretrain-1" in found.said[0]
    assert found.engine.devices == ["cuda"]


def test_no_memory_left_on_the_card(start: Any, desk: DeviceDesk, qtbot: Any) -> None:
    found = start("cuda")
    found.engine.on_warning("tile (0, 0) cannot be predicted: CUDA out of memory.")
    qtbot.waitUntil(lambda: found.engine.devices == ["cuda", "cpu"], timeout=WAIT_MS)
    assert len(found.said) == 1
    assert "goes on on the processor" in found.said[0]
    qtbot.waitUntil(lambda: found.session._placed.device == "cpu", timeout=WAIT_MS)
    found.engine.on_warning("out of memory on the processor, too")
    qtbot.waitUntil(lambda: len(found.said) == 2, timeout=WAIT_MS)
    assert found.engine.devices == ["cuda", "cpu"]


def test_the_cache_is_as_large_as_the_preference_says(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "cache_bytes", lambda: 12345)
    assert start("cpu").engine.options["max_bytes"] == 12345


@pytest.mark.one_viewer
def test_preferences_are_those_of_the_manifest(viewer: Any) -> None:
    from napari.settings import get_plugin_settings

    general = get_plugin_settings("napari-muvit").general
    assert preferences.cache_bytes() == int(preferences.DEFAULT_CACHE_GB * 2**30)
    before = general.cache_size, general.levels, general.device
    try:
        general.cache_size, general.levels, general.device = 0.5, "1, 8; 32", "cpu"
        assert preferences.cache_bytes() == 2**29
        assert preferences.preferred_options() == {"device": "cpu", "levels": (1.0, 8.0, 32.0)}
        general.levels = "one"
        assert preferences.default_levels() is None
    finally:
        general.cache_size, general.levels, general.device = before
