"""A table's folder: what was measured is kept, shown as mean and spread, and never mixed."""

from __future__ import annotations

import json

import pytest
from experiments.command import PRESETS
from experiments.experiment import Experiment, share_scores
from experiments.table import Column, load_result, markdown, save_result

COLUMNS = [Column("mdsc", "mDSC"), Column("samples", "samples", 0)]


def test_mean_and_spread_over_seeds(tmp_path):
    save_result(tmp_path, "a", 0, {"mdsc": 0.9, "samples": 10}, "cpu")
    save_result(tmp_path, "a", 1, {"mdsc": 0.8, "samples": 10}, "cpu")
    save_result(tmp_path, "b", 0, {"mdsc": 0.5, "samples": 10}, "cpu")
    lines = markdown(tmp_path, [("a", "A"), ("b", "B"), ("c", "C")], COLUMNS).splitlines()
    assert lines[0] == "| row | mDSC | samples | seeds |"
    assert lines[2] == "| A | 0.850 ± 0.071 | 10 ± 0 | 2 |"
    assert lines[3] == "| B | 0.500 | 10 | 1 |"


def test_what_was_not_run_is_said_so(tmp_path):
    assert markdown(tmp_path, [("c", "C")], COLUMNS).splitlines()[2] == (
        "| C | not yet run | not yet run | 0 |")


def test_results_carry_date_and_hardware(tmp_path):
    save_result(tmp_path, "a", 3, {"mdsc": 0.9}, "cpu")
    found = load_result(tmp_path, "a", 3)
    assert found is not None
    assert found["seed"] == 3
    stamp = f"{found['date']}, {found['hardware']}"
    assert "torch" in stamp
    assert stamp in markdown(tmp_path, [("a", "A")], COLUMNS)


def test_a_folder_of_other_sizes_is_refused(tmp_path):
    settings = {**vars(PRESETS["cpu"]), "steps": 7}
    (tmp_path / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(SystemExit, match=f"steps 7, not {PRESETS['cpu'].steps}"):
        Experiment(tmp_path, PRESETS["cpu"])


def test_scores_at_shares_of_the_samples():
    curve = [(10, 0.1), (25, 0.2), (50, 0.3), (75, 0.4), (100, 0.5)]
    assert share_scores(curve, 100) == {
        "val_10": 0.1, "val_25": 0.2, "val_50": 0.3, "val_75": 0.4, "val_100": 0.5}


def test_a_short_last_interval_leaves_no_share_out():
    curve = [*((step, step / 1600) for step in range(133, 1600, 133)), (1600, 1.0)]
    assert share_scores(curve, 1600).keys() == {f"val_{n}" for n in (10, 25, 50, 75, 100)}


def test_shares_before_the_first_validation_are_left_out(tmp_path):
    found = share_scores([(40, 0.1), (60, 0.2), (80, 0.3), (100, 0.4)], 100)
    assert found == {"val_50": 0.1, "val_75": 0.3, "val_100": 0.4}
    save_result(tmp_path, "a", 0, found, "cpu")
    columns = [Column("val_10", "10 %"), Column("val_50", "50 %")]
    assert markdown(tmp_path, [("a", "A")], columns).splitlines()[2] == "| A | – | 0.100 | 1 |"
