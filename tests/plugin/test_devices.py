"""Two who want one graphics card: what is decided, and what is said."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from napari_muvit.plugin import checks, devices

CARD = SimpleNamespace(name="cuda:0", is_usable=True)
BROKEN = SimpleNamespace(name="cuda", is_usable=False)
CPU = SimpleNamespace(name="cpu", is_usable=True)


def backend(*facts: Any) -> Any:
    return SimpleNamespace(device_facts=lambda: list(facts))


@pytest.fixture
def desk() -> devices.DeviceDesk:
    return devices.DeviceDesk()


def test_resolve() -> None:
    assert devices.resolve([CARD, CPU], "auto") == "cuda:0"
    assert devices.resolve([CARD, CPU], "cuda") == "cuda:0"
    assert devices.resolve([BROKEN, CPU], "auto") == "cpu"
    assert devices.resolve([BROKEN, CPU], "cuda") == "cuda"
    assert devices.resolve([CARD, CPU], "cuda:1") == "cuda:1"


@pytest.mark.parametrize("trained_on", ["auto", "cuda", "cuda:0"])
def test_live_prediction_makes_way_for_training(
    trained_on: str, desk: devices.DeviceDesk
) -> None:
    both = backend(CARD, CPU)
    assert devices.place_live(both, desk, "auto") == devices.Placement("auto")
    release = desk.claim("training", "the run finetune-1", trained_on)
    placed = devices.place_live(both, desk, "auto")
    assert placed.device == "cpu"
    assert "used by the run finetune-1; live prediction runs on the processor" in placed.text
    shared = devices.place_live(both, desk, "cuda")
    assert shared.device == "cuda"
    assert "shares the graphics card with the run finetune-1" in shared.text
    assert devices.place_live(both, desk, "cpu") == devices.Placement("cpu")
    release()
    release()
    assert devices.place_live(both, desk, "auto") == devices.Placement("auto")


def test_processors_are_not_fought_over(desk: devices.DeviceDesk) -> None:
    desk.claim("training", "the run a", "auto")
    assert devices.place_live(backend(BROKEN, CPU), desk, "auto") == devices.Placement("auto")
    other = devices.DeviceDesk()
    other.claim("training", "the run b", "cpu")
    assert devices.place_live(backend(CARD, CPU), other, "auto") == devices.Placement("auto")


def test_another_card_is_no_rival(desk: devices.DeviceDesk) -> None:
    second = SimpleNamespace(name="cuda:1", is_usable=True)
    desk.claim("training", "the run a", "cuda:1")
    assert devices.place_live(backend(CARD, second, CPU), desk, "auto").text == ""
    assert devices.training_words(backend(CARD, second, CPU), desk, "auto") == []


def test_words_before_training(desk: devices.DeviceDesk) -> None:
    both = backend(CARD, CPU)
    assert devices.training_words(both, desk, "auto") == []
    desk.claim("live", "Live prediction of colon", "auto")
    assert devices.training_words(both, desk, "cuda") == [
        "Live prediction of colon moves to the processor while this run trains."]
    assert devices.training_words(both, desk, "cpu") == []
    desk.claim("live", "Live prediction of liver", "cuda")
    desk.claim("training", "the run a", "auto")
    words = " ".join(devices.training_words(both, desk, "auto"))
    assert "Live prediction of liver shares the graphics card with this run" in words
    assert "used by the run a already: both are slower" in words


def test_words_stand_in_the_advice(desk: devices.DeviceDesk) -> None:
    from napari_muvit.config import PretrainConfig

    desk.claim("live", "Live prediction of colon", "auto")
    config = PretrainConfig(images=("list.csv",), output="run", device="cuda")
    said = checks.advise(backend(CARD, CPU), config, desk)
    assert said.endswith("colon moves to the processor while this run trains.")


def test_the_desk_tells_of_changes(desk: devices.DeviceDesk) -> None:
    told: list[int] = []
    desk.changed.connect(lambda: told.append(len(desk.uses())))
    release = desk.claim("training", "the run a", "auto")
    release()
    release()
    assert told == [1, 0]
