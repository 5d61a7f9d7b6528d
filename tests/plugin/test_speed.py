"""Steps that are measured before a run, and what is said about them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from napari_muvit.config import FinetuneConfig, PretrainConfig
from napari_muvit.plugin import remembered, speed

CONFIG = PretrainConfig(images=("a.tif",), output="run", steps=1000, batch_size=4)


class FakeRun:
    """Steps of 9, 2, 2, 2, ... seconds; writes nothing."""

    def __init__(self, config: Any) -> None:
        self.config, self.is_stopped, self.is_closed = config, False, False

    def __iter__(self) -> Iterator[Any]:
        yield SimpleNamespace(message="a warning")
        for number in range(100):
            if self.is_stopped:
                return
            yield SimpleNamespace(learning_rate=0.1, seconds=9.0 if number == 0 else 2.0)

    def stop(self) -> None:
        self.is_stopped = True

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def backend() -> Any:
    made: list[FakeRun] = []

    def pretrain(config: Any) -> FakeRun:
        made.append(FakeRun(config))
        return made[-1]

    return SimpleNamespace(pretrain=pretrain, made=made)


def test_the_first_step_does_not_count(backend: Any) -> None:
    check = speed.SpeedCheck(backend, "pretrain", CONFIG)
    assert list(check.steps()) == [1, 2, 3, 4]
    assert check.crops_per_second == 2.0
    run = backend.made[0]
    assert run.is_closed
    assert run.config.output != CONFIG.output
    assert not Path(run.config.output).parent.exists()


def test_a_stop_ends_it_without_a_result(backend: Any) -> None:
    check = speed.SpeedCheck(backend, "pretrain", CONFIG)
    steps = check.steps()
    assert next(steps) == 1
    check.stop()
    assert list(steps) == []
    assert check.crops_per_second is None
    assert backend.made[0].is_closed


def test_a_stop_while_the_model_is_built(backend: Any) -> None:
    check = speed.SpeedCheck(backend, "pretrain", CONFIG)
    check.stop()
    assert list(check.steps()) == []
    assert backend.made[0].is_closed


@pytest.mark.parametrize(("seconds", "said"), [
    (20, "about 20 s"), (600, "about 10 min"), (36_000, "about 10 h"), (864_000, "10.0 days"),
])
def test_spans(seconds: float, said: str) -> None:
    assert said in speed.span_text(seconds)


def test_time_of_a_run() -> None:
    assert speed.time_text(CONFIG, 2.0) == (
        "2 crops per second on this computer: about 33 min for 1000 steps, validation not counted.")


def test_a_measurement_is_known_for_runs_like_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "cache_folder", lambda: tmp_path)
    assert speed.known_speed("pretrain", CONFIG) is None
    speed.keep_speed("pretrain", CONFIG, 2.5)
    longer = CONFIG.model_copy(update={"steps": 5, "output": "other"})
    assert speed.known_speed("pretrain", longer) == 2.5
    assert speed.known_speed("pretrain", CONFIG.model_copy(update={"preset": "tiny"})) is None
    tuned = FinetuneConfig(images=("a.tif",), labels=("l.tif",), output="run", batch_size=4)
    assert speed.known_speed("finetune", tuned) is None
