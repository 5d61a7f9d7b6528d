"""Run folders: made whole or not at all, read while written, asked from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_stub import make_engine, run_all

from napari_muvit.data.lock import _try_lock
from napari_muvit.errors import CheckpointError, ConfigError, RunError, RunExistsError
from napari_muvit.training.control import Control
from napari_muvit.training.events import (
    CheckpointEvent,
    EpochEvent,
    FinishedEvent,
    PreviewEvent,
    StepEvent,
    StoppingEvent,
    ValidationEvent,
    WarningEvent,
    event_from_record,
    event_to_record,
)
from napari_muvit.training.folder import LOCK, RunFolder, check_output, create_run, find_model
from napari_muvit.training.records import append, read_events, whole_lines
from napari_muvit.training.run import Run

EVENTS = [
    StepEvent(1, 10, 0.5, 1e-4, 0.1, 9.0), EpochEvent(2, 1, 0.4),
    ValidationEvent(3, {"loss": 0.3}, True), WarningEvent(4, "schön"),
]


@pytest.mark.parametrize("event", EVENTS)
def test_events_survive_their_record(event, tmp_path):
    assert event_from_record(event_to_record(event, tmp_path), tmp_path) == event


def test_paths_in_records_move_with_the_folder(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for event in (PreviewEvent(1, here / "previews" / "a.png"),
                  CheckpointEvent(1, here / "checkpoint" / "state.pt", False),
                  FinishedEvent(1, here, "completed")):
        moved = event_from_record(event_to_record(event, here), there)
        assert moved.__dict__ == {
            k: there / v.relative_to(here) if hasattr(v, "parts") else v
            for k, v in vars(event).items()}


def test_losses_that_are_no_numbers_are_still_json(tmp_path):
    record = event_to_record(StepEvent(1, 2, float("nan"), 0.0, 0.0, float("inf")), tmp_path)
    assert record["loss"] is None
    assert event_from_record(record, tmp_path).loss != event_from_record(record, tmp_path).loss


def test_unknown_events_of_later_versions_are_left_out(tmp_path):
    assert event_from_record({"event": "applause", "step": 1}, tmp_path) is None


@given(st.text(alphabet="ab\n\u2028", max_size=30), st.integers(0, 30))
def test_readers_take_whole_lines_only(text, cut):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lines"
        path.write_bytes(text[:cut].encode())
        assert whole_lines(path) == text[:cut].split("\n")[:-1]


def test_reading_while_writing_never_sees_half_a_record(tmp_path):
    path = tmp_path / "events.jsonl"
    over = threading.Event()

    def write():
        for step in range(400):
            append(path, f'{{"event": "step", "step": {step}, "text": "{"x" * 300}"}}\n')
        over.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not over.is_set():
        records = read_events(path)
        assert [r["step"] for r in records] == list(range(len(records)))
    thread.join()
    assert len(read_events(path)) == 400


def test_status_reads_the_end_of_a_long_file_only(tmp_path, monkeypatch):
    from napari_muvit.training import folder as module

    folder = create_run(tmp_path / "run", None, {"kind": "fit", "steps": 9})
    steps = [StepEvent(n, 9, 0.5, 1e-4, 0.1, 9.0) for n in range(1, 5)]
    for event in steps:
        append(folder.path / "events.jsonl",
               json.dumps(event_to_record(event, folder.path)) + "\n")
    sizes = []
    original = module.read_events
    monkeypatch.setattr(module, "TAIL", 200)
    monkeypatch.setattr(module, "read_events", lambda path, size=None: (
        sizes.append(size) or original(path, size)))
    assert folder.status().step == 4
    assert sizes == [200]
    for _ in range(5):
        append(folder.path / "events.jsonl",
               json.dumps({"event": "warning", "step": 4, "message": "x" * 90}) + "\n")
    assert folder.status().step == 4
    assert sizes == [200, 200, None]


def test_a_folder_is_made_in_one_move(tmp_path, monkeypatch):
    from napari_muvit.training import folder

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "write_whole", fail)
    with pytest.raises(RunError, match="cannot be made: No space left"):
        create_run(tmp_path / "run", None, {"kind": "fit", "steps": 1})
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_may_be_the_output(tmp_path):
    (tmp_path / "run").mkdir()
    path = check_output(tmp_path / "run")
    create_run(path, None, {"kind": "fit", "steps": 1})
    with pytest.raises(RunExistsError, match="go on with `resume`"):
        check_output(path)


def test_a_run_without_a_config_says_so(tmp_path):
    folder = create_run(tmp_path / "run", None, {"kind": "fit", "steps": 1})
    with pytest.raises(RunError, match=r"\.fit\(\)"):
        folder.config()
    with pytest.raises(CheckpointError, match="has not saved a model yet"):
        folder.model_folder()


def test_no_run_is_said_plainly(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        RunFolder(tmp_path / "none")
    with pytest.raises(RunError, match="holds no run"):
        RunFolder(tmp_path)
    assert find_model(tmp_path) == tmp_path


def test_a_config_of_a_newer_version_is_refused_by_name(tmp_path):
    folder = create_run(tmp_path / "run", None, {"kind": "pretrain", "steps": 1})
    (folder.path / "config.yaml").write_text("schema_version: 99\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="schema_version 99"):
        folder.config()


def test_another_process_can_pause_and_stop_a_run(tmp_path):
    control = Control(tmp_path / "run" / "control")
    engine = make_engine(tmp_path / "run", steps=1_000_000, control=control)
    assert engine.folder.control_path == tmp_path / "run" / "control"
    run = Run(engine.events(), engine.folder.path, control)
    thread = threading.Thread(target=run.wait)
    thread.start()

    def ask(action):
        code = (f"from napari_muvit.training import RunFolder; "
                f"RunFolder({str(tmp_path / 'run')!r}).ask({action!r})")
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

    ask("pause")
    while not run.is_paused:
        threading.Event().wait(0.01)
    ask("stop")
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert RunFolder(tmp_path / "run").status().state == "stopped"
    assert not engine.folder.control_path.exists()


def test_a_look_at_the_status_does_not_keep_a_run_from_starting(tmp_path):
    engine = make_engine(tmp_path / "run")
    looking = os.open(engine.folder.path / LOCK, os.O_RDONLY | os.O_CREAT)
    assert _try_lock(looking, is_shared=True)  # as `status` holds it for a moment
    threading.Timer(0.3, os.close, (looking,)).start()
    assert run_all(engine)[-1].reason == "completed"


def test_a_look_at_the_status_leaves_the_lock_of_a_run_that_was_killed(tmp_path):
    folder = make_engine(tmp_path / "run").folder
    owner = {"host": "elsewhere", "pid": 7}
    (folder.path / LOCK).write_text(json.dumps(owner))
    assert folder.status().state == "running"
    os.utime(folder.path / LOCK, (0, 0))
    assert folder.status().state == "interrupted"
    assert json.loads((folder.path / LOCK).read_text()) == owner


def test_the_ending_of_a_run_is_its_last_event(tmp_path):
    stream = make_engine(tmp_path / "run").events()
    folder = RunFolder(tmp_path / "run")
    assert folder.ending() is None
    next(stream)
    assert folder.ending() is None
    last = list(stream)[-1]
    assert folder.ending() == last


def test_a_stop_stays_for_every_process_until_the_run_has_ended(tmp_path):
    file = tmp_path / "control"
    owner, other = Control(file), Control(file, is_owner=False)
    file.write_text("pause", encoding="utf-8")
    assert not other.is_asked_to_stop()
    assert (file.exists(), other.is_paused) == (True, False)
    assert not owner.is_asked_to_stop()
    assert (file.exists(), owner.is_paused) == (False, True)
    file.write_text("stop", encoding="utf-8")
    for control in (owner, other):
        control._polled = 0.0
        assert control.is_asked_to_stop()
    other.close()
    assert file.exists()
    owner.close()
    assert not file.exists()


def test_what_is_asked_while_a_run_ends_is_late(tmp_path):
    engine = make_engine(tmp_path / "run")
    run = Run(engine.events(), engine.folder.path, engine.control)
    for event in run:
        if isinstance(event, StepEvent) and event.step == 5:
            run.stop()
        if isinstance(event, (StoppingEvent, CheckpointEvent)) and event.step == 5:
            run.stop()  # Ctrl-C once more
            run.pause()
    assert event.reason == "stopped"
    assert not run.is_paused


def test_a_line_that_the_disk_took_in_part_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "events.jsonl"
    append(path, '{"step": 1}\n')
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, content: write(handle, content[:4]))
    with pytest.raises(OSError, match="No space left"):
        append(path, '{"step": 2}\n')
    monkeypatch.undo()
    append(path, '{"step": 3}\n')
    assert read_events(path) == [{"step": 1}, {"step": 3}]


def test_zeros_that_a_network_disk_shows_are_no_record(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"step": 1}\n' + bytes(20) + b'p": 2}\n{"step": 3}\n' + bytes(9))
    assert read_events(path) == [{"step": 1}, {"step": 3}]


def test_reading_a_run_needs_no_torch(tmp_path):
    run_all(make_engine(tmp_path / "run"))
    code = (
        "import sys; from napari_muvit.training import RunFolder\n"
        f"folder = RunFolder({str(tmp_path / 'run')!r})\n"
        "assert folder.status().state == 'completed' and folder.metrics() and folder.events()\n"
        "assert 'torch' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
