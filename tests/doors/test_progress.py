"""Events as lines: the last one always, the same one never twice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from napari_muvit.doors.commands import print_areas, show_events
from napari_muvit.doors.progress import ProgressPrinter, finished_text, left, metrics_text
from napari_muvit.doors.shell import duration
from napari_muvit.inference.events import FinishedEvent
from napari_muvit.inference.events import TileEvent as RealTileEvent
from napari_muvit.training.events import FinishedEvent as RunFinished
from napari_muvit.training.events import ValidationEvent


@dataclass
class TileEvent:
    done: int
    total: int
    remaining: float | None


def test_elsewhere_than_on_a_terminal_lines_are_few(capsys: pytest.CaptureFixture[str]) -> None:
    printer = ProgressPrinter("predict")
    for done in range(101):
        printer.show(TileEvent(done, 100, 100.0 - done))
    printer.show(TileEvent(100, 100, 0.0))
    printer.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["predict: 0/100 tiles  100 s left".replace("100 s", "2 min"),
                     "predict: 100/100 tiles"]


def test_what_is_left_out_is_said_once_for_each_image(capsys: pytest.CaptureFixture[str]) -> None:
    printer = ProgressPrinter("predict")
    for name, share in (("a", 0.25), ("b", 0.0), ("c", 0.625)):
        for done in range(3):
            printer.show(RealTileEvent(done, 3, None, name, share))
    printer.close()
    said = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert [line[:26] for line in said] == [
        "predict: 25% of a is left ", "predict: 62% of c is left "]


def test_a_quiet_printer_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    ProgressPrinter("train", is_quiet=True).show(TileEvent(1, 1, 0.0))
    assert capsys.readouterr().err == ""


def test_durations_are_said_as_a_person_would() -> None:
    assert [duration(s) for s in (5, 89, 600, 7200)] == ["5 s", "89 s", "10 min", "2.0 h"]
    assert left(None) == ""


def test_areas_are_printed_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    class FinishedEvent:
        areas: ClassVar = [{"name": "nuclei", "px": 12, "um2": None}]

    print_areas(FinishedEvent())
    assert capsys.readouterr().out == "name\tpx\tum2\nnuclei\t12\t\n"


@pytest.mark.parametrize(("facts", "words", "status"), [
    ({"complete": True}, "finished; wrote o", 0),
    ({"complete": True, "was_complete": True}, "nothing was computed", 0),
    ({"complete": False, "part_complete": True}, "this part is done", 0),
    ({"complete": False, "part_complete": False}, "run again to go on", 1),
])
def test_the_end_of_a_prediction_is_told_as_it_is(
    facts: dict[str, bool], words: str, status: int, capsys: pytest.CaptureFixture[str],
) -> None:
    event = FinishedEvent(Path("o.ome.zarr"), **facts)
    assert words in finished_text(event)
    assert show_events("predict", [event]) == status
    assert words in capsys.readouterr().err


def test_a_failure_is_left_to_the_error_that_follows(capsys: pytest.CaptureFixture[str]) -> None:
    for reason in ("failed", "early"):
        ended = RunFinished(step=3, folder=Path("RUN"), reason=reason, metrics={}, message="why")
        ProgressPrinter("train").show(ended)
    assert capsys.readouterr().err == "train: why\n"


def test_classes_that_cannot_be_scored_are_named_at_the_end(
    capsys: pytest.CaptureFixture[str]
) -> None:
    nan = float("nan")
    ProgressPrinter("finetune").show(ValidationEvent(
        5, {"mdsc": 0.5, "dice_L1": nan, "dice_L2": 0.5, "whole_dice_L3": nan}))
    assert capsys.readouterr().err == (
        "finetune: step 5 validation  mdsc 0.5000  dice_L2 0.5000  (not there to score: L1, L3)\n")
    assert metrics_text({"loss": 1.0}) == "loss 1.0000"
