"""Where the features of instant mode are computed, on a graphics card that is only pretended."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from napari_muvit.plugin.devices import DeviceDesk
from napari_muvit.plugin.instant_engine import STARVED, InstantEngine, InstantRequest

FACTS = [SimpleNamespace(name="cuda:0", is_usable=True),
         SimpleNamespace(name="cpu", is_usable=True)]
REQUEST = InstantRequest(0, 1, (0, 0), (8, 8))


class FakeBackend:
    """Notes where the model was sent; the card may have no memory."""

    def __init__(self) -> None:
        self.devices: list[str] = []
        self.failure: Exception | None = None

    def device_facts(self) -> list[Any]:
        return FACTS

    def load_model(self, folder: str) -> Any:
        return SimpleNamespace(to=self.devices.append)

    def InstantPrediction(self, image: Any, store: Any, model: Any) -> Any:
        def predict(*request: Any) -> str:
            if self.failure is not None and self.devices and self.devices[-1] != "cpu":
                raise self.failure
            return "labels"

        return SimpleNamespace(predict=predict)


@pytest.fixture
def desk() -> DeviceDesk:
    return DeviceDesk()


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


SESSION: Any = SimpleNamespace(store=object(), image=SimpleNamespace(pyramid=object()))


def test_features_make_way_for_training(backend: FakeBackend, desk: DeviceDesk) -> None:
    engine = InstantEngine(backend, desk, "auto")
    assert engine.predict(SESSION, "run", REQUEST).text == ""
    release = desk.claim("training", "the run a", "auto")
    said = engine.predict(SESSION, "run", REQUEST)
    assert said.text.startswith(
        "The graphics card is used by the run a; instant prediction runs on the processor")
    assert (said.session, said.result) == (SESSION, "labels")
    release()
    assert engine.predict(SESSION, "run", REQUEST).text == ""
    assert backend.devices == ["cuda:0", "cpu", "cuda:0"]


def test_who_asks_for_the_card_shares_it(backend: FakeBackend, desk: DeviceDesk) -> None:
    desk.claim("training", "the run a", "cuda")
    said = InstantEngine(backend, desk, "cuda").predict(SESSION, "run", REQUEST)
    assert said.text.startswith("Instant prediction shares the graphics card with the run a")
    assert backend.devices == ["cuda:0"]


@pytest.mark.parametrize(("folder", "wanted"), [("", "auto"), ("run", "cpu")])
def test_the_card_is_left_alone(
    folder: str, wanted: str, backend: FakeBackend, desk: DeviceDesk
) -> None:
    desk.claim("training", "the run a", "auto")
    engine = InstantEngine(backend, desk, wanted)
    assert engine.predict(SESSION, folder, REQUEST).text == ""
    assert backend.devices == []


def test_a_full_card_is_left_for_the_processor(backend: FakeBackend, desk: DeviceDesk) -> None:
    backend.failure = RuntimeError("CUDA out of memory.")
    engine = InstantEngine(backend, desk, "auto")
    said = engine.predict(SESSION, "run", REQUEST)
    assert (said.result, said.text) == ("labels", STARVED)
    assert engine.predict(SESSION, "run", REQUEST).text == ""
    assert backend.devices == ["cuda:0", "cpu"]
    backend.failure = RuntimeError("something else")
    with pytest.raises(RuntimeError, match="something else"):
        InstantEngine(backend, desk, "auto").predict(SESSION, "run", REQUEST)
