"""Time remaining: within 20 % from a quarter of the run on, on a clock of our own."""

from __future__ import annotations

import pytest
from training_stub import make_engine

from napari_muvit.training import clock as clock_module
from napari_muvit.training.clock import RunClock
from napari_muvit.training.events import StepEvent


class FakeTime:
    """A clock that stands still but for what the parts of a run are said to cost."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(clock_module.time, "perf_counter", lambda: self.now)


@pytest.mark.parametrize(("step", "validation", "checkpoint", "every"), [
    (1.0, 5.0, 2.0, 10), (0.1, 3.0, 1.0, 20), (2.0, 0.5, 0.1, 7), (1.0, 0.0, 0.0, 100),
])
def test_remaining_is_right_from_a_quarter_on(
    tmp_path, monkeypatch, step, validation, checkpoint, every
):
    fake = FakeTime(monkeypatch)
    engine = make_engine(
        tmp_path / "run", steps=100, validate_every=every, checkpoint_every=every,
        preview_every=every)

    def costs(original, seconds):
        def wrapped(*args, **kwargs):
            fake.now += seconds() if callable(seconds) else seconds
            return original(*args, **kwargs)
        return wrapped

    first = iter([20 * step])  # the first step also builds kernels and opens stores
    engine.stepper.step = costs(engine.stepper.step, lambda: next(first, step))
    # The first batch also opens stores.
    batches = iter([5 * validation])
    engine.task.scores = costs(engine.task.scores, lambda: next(batches, validation / 3))
    monkeypatch.setattr(
        "napari_muvit.training.engine.save_state",
        costs(lambda *args: None, checkpoint))
    told = [(event.step, fake.now, event.remaining) for event in engine.events()
            if isinstance(event, StepEvent)]
    end = fake.now
    for number, now, remaining in told:
        if 25 <= number <= 90:
            assert remaining == pytest.approx(end - now, rel=0.2)
    if every < 100:  # else the one validation, at the end, is a guess
        assert told[-1][2] == pytest.approx(end - told[-1][1])


def test_what_was_never_measured_is_guessed():
    clock = RunClock()
    clock.add("step", 2.0)
    assert clock.remaining({"step": 3, "validation": 2}, {"validation": 1.5}) == 9.0
    clock.add("validation", 4.0)  # it also paid for what happens once
    assert clock.remaining({"step": 3, "validation": 2}, {"validation": 1.5}) == 9.0
    clock.add("validation", 2.0)
    assert clock.remaining({"step": 3, "validation": 2}, {"validation": 1.5}) == 10.0
    assert clock.remaining({"checkpoint": 2}, {}) == 0.0


def test_what_happens_now_and_then_counts_by_its_share():
    clock = RunClock()
    assert clock.share("best model", "validation batch") == 0.0
    for _ in range(10):
        clock.add("validation batch", 1.0)
    clock.add("best model", 5.0)
    assert clock.share("best model", "validation batch") == 0.5


def test_the_first_of_a_kind_counts_only_while_it_is_alone():
    clock = RunClock()
    clock.add("step", 60.0)
    assert clock.mean("step") == 60.0
    clock.add("step", 1.0)
    assert clock.mean("step") == 1.0
