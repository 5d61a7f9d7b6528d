"""The loop on a stub task: events, exact resume, stop, pause, best and last, averages."""

from __future__ import annotations

import itertools
import math
import threading
import time

import pytest
import torch
from training_stub import Numbers, StubTask, make_engine, run_all, same, weights

from napari_muvit.errors import LockedError, RunError
from napari_muvit.models.kernels import KernelChoice, current_choice
from napari_muvit.training.device import Numerics
from napari_muvit.training.events import (
    CheckpointEvent,
    EpochEvent,
    FinishedEvent,
    PreviewEvent,
    StepEvent,
    ValidationEvent,
    WarningEvent,
)
from napari_muvit.training.folder import RunFolder
from napari_muvit.training.run import Run
from napari_muvit.training.state import load_state
from napari_muvit.training.stepper import Stepper


def of(kind, events):
    return [event for event in events if isinstance(event, kind)]


def test_events_come_in_order_and_at_their_steps(tmp_path):
    events = run_all(make_engine(tmp_path / "run"))
    assert [e.step for e in of(StepEvent, events)] == list(range(1, 13))
    assert [e.step for e in of(ValidationEvent, events)] == [4, 8, 12]
    assert [e.step for e in of(PreviewEvent, events)] == [0, 6, 12]
    assert [e.step for e in of(CheckpointEvent, events)] == [3, 6, 9, 12]
    assert [(e.step, e.epoch) for e in of(EpochEvent, events)] == [(4, 1), (8, 2), (12, 3)]
    assert events[-1].reason == "completed"
    assert events[-1].metrics.keys() == {"loss"}
    assert all(e.path.is_file() for e in of(PreviewEvent, events))


def test_training_lowers_the_loss(tmp_path):
    events = run_all(make_engine(tmp_path / "run", steps=80, learning_rate=3e-2))
    losses = [e.metrics["loss"] for e in of(ValidationEvent, events)]
    assert losses[-1] < 0.3 * losses[0]


def test_folder_tells_what_the_events_told(tmp_path):
    events = run_all(make_engine(tmp_path / "run"))
    folder = RunFolder(tmp_path / "run")
    assert folder.events() == events
    rows = folder.metrics()
    assert [r["step"] for r in rows if r["split"] == "train"] == list(range(1, 13))
    assert [r["loss"] for r in rows if r["split"] == "val"] == [
        e.metrics["loss"] for e in of(ValidationEvent, events)]
    status = folder.status()
    assert (status.state, status.step, status.steps) == ("completed", 12, 12)
    assert folder.previews()[0].name == "step-00000000.png"


def test_same_seed_same_weights(tmp_path):
    engines = [make_engine(tmp_path / name) for name in ("a", "b")]
    for engine in engines:
        torch.rand(5)  # what others draw from the global generator does not matter
        run_all(engine)
    assert same(weights(engines[0]), weights(engines[1]))
    other = make_engine(tmp_path / "c", seed=1)
    run_all(other)
    assert not same(weights(engines[0]), weights(other))


def test_training_leaves_the_global_generator_alone(tmp_path):
    before = torch.random.get_rng_state()
    run_all(make_engine(tmp_path / "run"))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.slow
def test_weights_do_not_depend_on_loader_processes(tmp_path, workers):
    alone, helped = make_engine(tmp_path / "a"), make_engine(tmp_path / "b", workers=workers)
    run_all(alone)
    run_all(helped)
    assert same(weights(alone), weights(helped))


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("cut", range(1, 25, 3))
def test_a_run_left_anywhere_and_resumed_ends_the_same(tmp_path, cut, ema):
    whole = make_engine(tmp_path / "whole", ema=ema)
    events = run_all(whole)
    assert cut < len(events)
    first = make_engine(tmp_path / "cut", ema=ema)
    stream = first.events()
    list(itertools.islice(stream, cut))
    stream.close()  # as if killed: nothing more is written
    again = make_engine(tmp_path / "cut", ema=ema)
    rest = run_all(again)
    assert same(weights(whole), weights(again))
    if ema:
        assert same(whole.average.values, again.average.values)
    redone = [type(e)(**{**vars(e), "seconds": 0, "remaining": 0}) for e in of(StepEvent, rest)]
    expected = [type(e)(**{**vars(e), "seconds": 0, "remaining": 0})
                for e in of(StepEvent, events)][12 - len(redone):]
    assert redone == expected
    kept = [e for e in RunFolder(tmp_path / "cut").events() if isinstance(e, StepEvent)]
    assert [e.step for e in kept] == list(range(1, 13))
    assert whole.progress.best == again.progress.best


def test_records_past_the_checkpoint_are_marked(tmp_path):
    stream = make_engine(tmp_path / "run").events()
    for event in stream:
        if isinstance(event, StepEvent) and event.step == 5:
            break
    stream.close()
    assert RunFolder(tmp_path / "run").status().state == "interrupted"
    run_all(make_engine(tmp_path / "run"))
    folder = RunFolder(tmp_path / "run")
    everything = of(StepEvent, folder.events(superseded=True))
    assert [e.step for e in everything] == [1, 2, 3, 4, 5, *range(4, 13)]
    assert [e.step for e in of(StepEvent, folder.events())] == list(range(1, 13))
    marked = [r["step"] for r in folder.metrics(superseded=True) if r["superseded"]]
    assert marked == [4, 4, 5]


def test_half_a_record_is_never_seen_and_gone_after_resume(tmp_path):
    stream = make_engine(tmp_path / "run").events()
    list(itertools.islice(stream, 4))
    stream.close()
    for name in ("events.jsonl", "metrics.csv"):
        with (tmp_path / "run" / name).open("a", encoding="utf-8") as file:
            file.write('{"event": "st' if name == "events.jsonl" else "7,0,tra")
    folder = RunFolder(tmp_path / "run")
    assert len(folder.events()) == 4
    assert all(row["split"] == "train" for row in folder.metrics())
    run_all(make_engine(tmp_path / "run"))
    assert [e.step for e in of(StepEvent, folder.events())] == list(range(1, 13))


def test_stop_ends_with_a_checkpoint_and_resume_is_exact(tmp_path):
    whole = make_engine(tmp_path / "whole")
    run_all(whole)
    engine = make_engine(tmp_path / "run")
    run = Run(engine.events(), engine.folder.path, engine.control)
    for event in run:
        if isinstance(event, StepEvent) and event.step == 5:
            run.stop()
    assert event.reason == "stopped"
    assert event.step == 5
    kinds = [type(e).__name__ for e in RunFolder(tmp_path / "run").events()]
    assert kinds[-3:] == ["StoppingEvent", "CheckpointEvent", "FinishedEvent"]
    assert RunFolder(tmp_path / "run").status().state == "stopped"
    again = make_engine(tmp_path / "run")
    assert again.progress.step == 5
    run_all(again)
    assert same(weights(whole), weights(again))


def test_a_stop_at_the_last_step_of_an_epoch_moves_no_epoch(tmp_path):
    whole = of(EpochEvent, run_all(make_engine(tmp_path / "whole")))
    engine = make_engine(tmp_path / "cut")
    told = []
    for event in engine.events():
        told.append(event)
        if isinstance(event, StepEvent) and event.step == 4:
            engine.control.stop()
    assert of(EpochEvent, told) == []
    assert of(EpochEvent, run_all(make_engine(tmp_path / "cut"))) == whole
    assert [e.step for e in whole] == [4, 8, 12]


def test_epochs_may_become_shorter_when_a_run_goes_on(tmp_path):
    run_all(make_engine(tmp_path / "run", steps=8))
    shorter = of(EpochEvent, run_all(make_engine(tmp_path / "run", steps=12, epoch_size=16)))
    assert [e.step for e in shorter] == [9, 10, 12]


def test_a_long_step_is_abandoned_and_has_no_effect(tmp_path):
    task = StubTask()
    engine = make_engine(tmp_path / "run", task=task)
    before = []

    def remember(batch):
        before[:] = [weights(engine)]

    def stop_in_the_middle(*_):
        if engine.progress.step == 4 and task.modules.training:
            assert not same(before[0], weights(engine))  # the batch norm has counted
            engine.control.stop()

    task.before_loss = remember
    task.modules[1].register_forward_hook(stop_in_the_middle)
    events = run_all(engine)
    assert events[-1].reason == "stopped"
    assert events[-1].step == 4
    assert same(before[0], weights(engine))  # running statistics of the batch norm included


def test_a_stop_is_noticed_in_the_backward_pass(tmp_path):
    engine = make_engine(tmp_path / "run")
    first = engine.task.modules[3].weight
    first.register_hook(lambda grad: engine.control.stop())
    events = run_all(engine)
    assert (events[-1].reason, events[-1].step) == ("stopped", 0)


def test_pause_holds_without_the_processor_until_resume(tmp_path):
    engine = make_engine(tmp_path / "run", steps=100_000)
    run = Run(engine.events(), engine.folder.path, engine.control)
    seen: list[int] = []

    def work():
        seen.extend(event.step for event in run)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.2)
    run.pause()
    time.sleep(0.2)
    assert run.is_paused
    length, used = len(seen), time.process_time()
    time.sleep(0.5)
    assert len(seen) == length
    assert time.process_time() - used < 0.1
    run.resume()
    while len(seen) == length:
        time.sleep(0.01)
    run.stop()
    last = run.wait()
    thread.join()
    assert last.reason == "stopped"


def test_stop_ends_a_pause(tmp_path):
    engine = make_engine(tmp_path / "run")
    run = Run(engine.events(), engine.folder.path, engine.control)
    run.pause()
    thread = threading.Timer(0.1, run.stop)
    thread.start()
    assert run.wait().reason == "stopped"
    thread.join()


def test_a_second_thread_cannot_iterate_and_wait_drives_the_run(tmp_path):
    engine = make_engine(tmp_path / "run")
    run = Run(engine.events(), engine.folder.path, engine.control)
    started, may_go_on = threading.Event(), threading.Event()

    def work():
        for _ in run:
            started.set()
            may_go_on.wait()
            break

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    with pytest.raises(RunError, match="another thread"):
        next(run)
    may_go_on.set()
    thread.join()
    assert isinstance(run.wait(), FinishedEvent)
    assert run.is_over
    assert list(run) == []


def test_who_waits_takes_no_event_from_who_iterates(tmp_path):
    engine = make_engine(tmp_path / "run", steps=3)
    run = Run(engine.events(), engine.folder.path, engine.control)
    seen, problems = [], []
    started = threading.Event()

    def work():
        try:
            for event in run:
                seen.append(event)
                started.set()
                time.sleep(0.02)  # between two events nobody holds the engine
        except RunError as error:
            problems.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    last = run.wait()
    thread.join()
    assert problems == []
    assert seen[-1] is last


def test_a_run_goes_on_after_a_thread_that_left_it(tmp_path):
    engine = make_engine(tmp_path / "run")
    run = Run(engine.events(), engine.folder.path, engine.control)
    kept = []

    def work():
        kept.append(iter(run))
        next(kept[0])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert isinstance(run.wait(), FinishedEvent)


def test_who_iterates_may_wait_in_the_same_thread(tmp_path):
    engine = make_engine(tmp_path / "run")
    run = Run(engine.events(), engine.folder.path, engine.control)
    for _ in run:
        assert isinstance(run.wait(), FinishedEvent)


def test_one_process_writes_a_run(tmp_path):
    stream = make_engine(tmp_path / "run").events()
    next(stream)
    assert RunFolder(tmp_path / "run").status().state == "running"
    with pytest.raises(LockedError):
        next(make_engine(tmp_path / "run").events())
    stream.close()
    assert RunFolder(tmp_path / "run").status().state == "interrupted"


def test_best_is_what_validated_best(tmp_path):
    engine = make_engine(tmp_path / "run")
    values = iter([3.0, 1.0, 2.0])
    engine.task.metrics = lambda scores: {"loss": next(values)}
    kept = {}
    for event in engine.events():
        if isinstance(event, ValidationEvent):
            kept[event.step] = (event.is_best, weights(engine))
    assert [kept[s][0] for s in (4, 8, 12)] == [True, True, False]
    folder = RunFolder(tmp_path / "run")
    assert folder.model_folder().name == "model-best"
    best = torch.load(folder.model_folder() / "weights.pt", weights_only=True)
    last = torch.load(folder.model_folder(best=False) / "weights.pt", weights_only=True)
    assert same(best, kept[8][1])
    assert same(last, weights(engine))


def test_early_stopping_counts_validations_without_improvement(tmp_path):
    engine = make_engine(tmp_path / "run", early_stopping=2, steps=100)
    values = iter([1.0, 2.0, 3.0, 0.0])
    engine.task.metrics = lambda scores: {"loss": next(values)}
    events = run_all(engine)
    assert (events[-1].reason, events[-1].step) == ("early", 12)


def test_a_validation_that_scores_nothing_is_said_once_and_waited_for(tmp_path):
    engine = make_engine(tmp_path / "run", early_stopping=2, steps=100, validate_every=1)
    values = iter([math.nan, math.nan, math.nan, 1.0, 2.0, math.nan, 3.0])
    engine.task.metrics = lambda scores: {"loss": next(values)}
    events = run_all(engine)
    assert (events[-1].reason, events[-1].step) == ("early", 7)
    [warning] = of(WarningEvent, events)
    assert warning.step == 1
    assert "the validation gives no loss" in warning.message
    assert [e.step for e in of(ValidationEvent, events) if e.is_best] == [4]
    rows = [r for r in RunFolder(tmp_path / "run").metrics() if r["split"] == "val"]
    assert [row.get("loss") for row in rows] == [None, None, None, 1.0, 2.0, None, 3.0]


class Listener:
    def __init__(self):
        self.heard = []

    def __call__(self, event):
        self.heard.append(event)

    def close(self):
        self.heard.append("closed")


@pytest.mark.parametrize("end", ["completed", "left", "failed"])
def test_watchers_are_closed_however_a_run_ends(tmp_path, end):
    engine = make_engine(tmp_path / "run")
    engine.watchers = (Listener(),)
    run = Run(engine.events(), engine.folder.path, engine.control)
    if end == "failed":
        engine.task.metrics = lambda scores: {}[0]
    try:
        for event in run:
            if end == "left" and isinstance(event, StepEvent):
                run.close()
                break
    except KeyError:
        assert end == "failed"
    assert engine.watchers[0].heard[-1] == "closed"
    assert engine.watchers[0].heard.count("closed") == 1


def test_a_stop_is_noticed_while_a_picture_is_made(tmp_path):
    task = StubTask()
    engine = make_engine(tmp_path / "run", task=task)
    task.preview = lambda batch: task.modules(batch["x"].repeat(2, 1))
    task.modules[1].register_forward_pre_hook(lambda *_: engine.control.stop())
    events = run_all(engine)
    assert (events[-1].reason, events[-1].step) == ("stopped", 0)
    assert of(PreviewEvent, events) == []


def test_averaged_weights_are_validated_and_saved_but_not_trained_on(tmp_path):
    plain, averaged = make_engine(tmp_path / "a"), make_engine(tmp_path / "b", ema=0.9)
    run_all(plain)
    run_all(averaged)
    assert same(weights(plain), weights(averaged))
    saved = torch.load(tmp_path / "b" / "model" / "weights.pt", weights_only=True)
    name = "0.weight"
    assert torch.equal(saved[name], averaged.average.values[name])
    assert not torch.equal(saved[name], weights(plain)[name])
    assert plain.progress.metrics != averaged.progress.metrics


def test_out_of_memory_halves_the_batch_and_keeps_the_step(tmp_path):
    sizes = []

    def too_large(batch):
        sizes.append(len(batch["x"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    task = StubTask()
    task.before_loss = too_large
    engine = make_engine(tmp_path / "run", task=task, validate=False)
    events = run_all(engine)
    warnings = of(WarningEvent, events)
    assert [w.message.split(";")[0] for w in warnings] == [
        "memory ran out with 8 samples at a time", "memory ran out with 4 samples at a time"]
    assert sizes == [8, 4] + [2] * 48
    assert engine.progress.accumulate == 4


def test_out_of_memory_with_one_sample_stops_with_advice(tmp_path):
    task = StubTask()

    def always(batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    task.before_loss = always
    engine = make_engine(tmp_path / "run", task=task)
    events = []
    with pytest.raises(RunError, match=r"one sample at a time.*smaller crop_size"):
        events.extend(engine.events())
    assert RunFolder(tmp_path / "run").status().state == "failed"


def test_a_loss_that_is_not_finite_names_the_sample_and_keeps_the_checkpoint(tmp_path):
    class Spoilt(Numbers):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            if index == 5 * 8 + 2:
                sample["x"][3] = float("nan")
            return sample

    engine = make_engine(tmp_path / "run")
    engine.training.dataset = Spoilt()
    with pytest.raises(RunError, match=r"step 6 is not finite.*sample 42"):
        list(engine.events())
    assert make_engine(tmp_path / "run").progress.step == 3
    status = RunFolder(tmp_path / "run").status()
    assert status.state == "failed"
    assert "sample 42" in status.message


def test_clip_bounds_the_gradient(tmp_path):
    norms = {}
    for clip in (1e-3, 1e9):
        engine = make_engine(tmp_path / str(clip), clip=clip, steps=1, weight_decay=0.0)
        parameters = list(engine.task.modules.parameters())
        step = engine.stepper.optimizer.step

        def spy(parameters=parameters, step=step, clip=clip):
            norms[clip] = float(torch.stack([p.grad.norm() for p in parameters]).norm())
            step()

        engine.stepper.optimizer.step = spy
        run_all(engine)
    assert norms[1e-3] == pytest.approx(1e-3, rel=1e-3)
    assert norms[1e9] > 0.1


@pytest.mark.parametrize(("device", "is_fused"), [("cpu", True), ("cuda", True), ("mps", False)])
def test_the_optimizer_is_one_kernel_where_there_is_one(tmp_path, device, is_fused):
    before = make_engine(tmp_path / "run")
    other = make_engine(tmp_path / "run")
    numerics = Numerics(torch.device(device))
    stepper = Stepper(
        other.task, other.settings, numerics, other.parallel, other.control)
    assert [g["fused"] for g in stepper.optimizer.param_groups] == [is_fused]
    run_all(before)
    stepper.load_optimizer(load_state(before.folder.state_path).optimizer)
    assert [g["fused"] for g in stepper.optimizer.param_groups] == [is_fused]


def test_a_run_goes_on_without_the_fused_kernel(tmp_path, monkeypatch):
    final = {}
    for kinds in (("cpu", "cpu"), ("cpu", ""), ("", "cpu")):
        path = tmp_path / "-".join(kinds)
        for steps, kind in zip((6, 12), kinds, strict=True):
            monkeypatch.setattr("napari_muvit.training.stepper.FUSED", {kind})
            engine = make_engine(path, steps=steps, warmup=0.0)
            assert engine.stepper.optimizer.param_groups[0]["fused"] == (kind == "cpu")
            run_all(engine)
        final[kinds] = weights(engine)
    whole = final["cpu", "cpu"]
    for others in final.values():
        assert all(torch.allclose(others[k], whole[k], rtol=1e-4, atol=1e-6) for k in whole)


def test_accumulation_equals_the_whole_batch(tmp_path):
    class Plain(StubTask):
        def __init__(self):
            super().__init__()
            with torch.random.fork_rng():
                torch.manual_seed(3)
                self.modules = torch.nn.Linear(8, 1)

    engines = [make_engine(tmp_path / str(n), task=Plain(), accumulate=n) for n in (1, 3)]
    for engine in engines:
        run_all(engine)
    a, b = (weights(engine) for engine in engines)
    assert all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)


def test_weight_decay_shrinks_weights(tmp_path):
    sizes = []
    for decay in (0.0, 1.0):
        engine = make_engine(tmp_path / str(decay), weight_decay=decay, steps=40)
        run_all(engine)
        sizes.append(float(engine.task.modules[0].weight.detach().norm()))
    assert sizes[1] < sizes[0]


def test_remaining_time_falls_to_zero(tmp_path):
    events = of(StepEvent, run_all(make_engine(tmp_path / "run")))
    assert events[2].remaining > 0
    assert events[-1].remaining >= 0


def test_threads_and_deterministic_mode_hold_within_the_run_only(tmp_path):
    seen = []
    task = StubTask()
    task.before_loss = lambda batch: seen.append(
        (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()))
    before = torch.get_num_threads()
    run_all(make_engine(tmp_path / "run", task=task, threads=1, deterministic=True, steps=2))
    assert set(seen) == {(1, True)}
    assert torch.get_num_threads() == before
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_torch_cannot_do_deterministically_is_a_sentence(tmp_path):
    task = StubTask()

    def refused(batch):
        raise RuntimeError("upsample does not have a deterministic implementation, but you set")

    task.before_loss = refused
    with pytest.raises(RunError, match=r"deterministic is on.*upsample.*start anew without it"):
        list(make_engine(tmp_path / "run", task=task, deterministic=True).events())
    with pytest.raises(RuntimeError, match=r"^upsample"):  # of somebody else's making
        list(make_engine(tmp_path / "other", task=task).events())


def test_bf16_runs_the_model_in_half_precision(tmp_path):
    seen = []
    task = StubTask()
    task.before_loss = lambda batch: seen.append(current_choice().precision)
    numerics = Numerics(torch.device("cpu"), "bf16", KernelChoice(precision="bf16"))
    run_all(make_engine(tmp_path / "run", task=task, numerics=numerics, steps=2))
    assert set(seen) == {"bf16"}
    assert current_choice().precision == "fp32"


def test_a_read_that_hangs_does_not_hold_up_a_stop(tmp_path):
    hangs, released = threading.Event(), threading.Event()

    class Hanging(Numbers):
        def __getitem__(self, index):
            if index >= 3 * 8:
                hangs.set()
                released.wait(20)
            return super().__getitem__(index)

    engine = make_engine(tmp_path / "run")
    engine.training.dataset = Hanging()
    engine.training.interrupt = engine.control.check
    thread = threading.Thread(target=lambda: hangs.wait(20) and engine.control.stop())
    thread.start()
    events = run_all(engine)
    assert not released.is_set()
    # Only daemons may be left: the end of the process would wait for others.
    left = [t for t in threading.enumerate() if t.name == "muvit-reader"]
    assert left
    assert all(t.daemon for t in left)
    released.set()
    thread.join()
    assert events[-1].reason == "stopped"
    assert events[-1].step in {2, 3}  # the third step may have been under way
