"""The comparison with what others would take, on small sections made here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import alternatives
import numpy as np
import pytest
import torch
from alternatives import Comparison, main, table
from experiments.apart import run_apart
from experiments.contenders import Budget, Job, do_job, prediction_path
from experiments.forest import SCALES, filter_bank
from experiments.measures import measure_section
from experiments.networks import NETWORKS, Autocast, missing_libraries
from experiments.sections import DONORS, UNLABELLED, write_fold
from experiments.table import save_result

from napari_muvit.data.cohort import read_cohort

BUDGET = Budget(
    seconds=8.0, search_share=0.25, trials=2, step_pixels=2 * 32**2, val_pixels=2 * 32**2,
    validations=1, sections=2, speed_steps=1, levels=(1, 2))


def job_of(place: Path, cohort: Path, key: str, choice: dict, verb: str = "train") -> Job:
    place.mkdir(parents=True, exist_ok=True)
    return Job(verb, key, str(cohort), str(place), choice, 0, 3, 1.0, 1, BUDGET)


@pytest.mark.parametrize("tested", [1, 2, 3])
def test_a_tested_donor_neither_trains_nor_validates(sections, tmp_path, tested):
    rows = read_cohort(write_fold(tmp_path, sections, tested, 4))
    by_split = {split: [row for row in rows if row.split == split]
                for split in ("train", "val", "test")}
    assert {row.group for row in by_split["test"]} == {f"donor {tested}"}
    assert len(by_split["test"]) == 4
    others = {f"donor {donor}" for donor in (1, 2, 3)} - {f"donor {tested}"}
    assert {row.group for row in by_split["train"]} == others
    assert {row.group for row in by_split["val"]} == others
    assert len({row.image for row in rows}) == len(rows) == 12


def test_absent_sections_are_said(tmp_path):
    with pytest.raises(SystemExit, match=r"MUVIT_TEST_DATA"):
        write_fold(tmp_path, tmp_path / "nowhere", 3, 4)


def test_every_library_may_be_missing(sections, tmp_path, monkeypatch):
    monkeypatch.setattr(alternatives, "missing_libraries", lambda needs: needs)
    arguments = ["--tiny", "--data", str(sections), "--output", str(tmp_path / "out"),
                 "--rows", "segformer", "swin_unetr", "forest"]
    text = main(arguments)
    assert "| SegFormer | not installed: pip install transformers |" in text
    assert "| Swin UNETR | not installed: pip install monai einops |" in text
    assert "not installed: pip install scikit-learn joblib |" in text
    assert "| U-Net | not yet run |" in text


def test_a_folder_of_other_sizes_is_refused(sections, tmp_path):
    Comparison(tmp_path, sections, BUDGET)
    with pytest.raises(SystemExit, match=r"seconds 8\.0, not 9"):
        Comparison(tmp_path, sections, replace(BUDGET, seconds=9.0))


def test_the_search_takes_the_best_choice_and_the_steps_that_fit(sections, tmp_path, monkeypatch):
    row = next(row for row in alternatives.rows() if row.key == "unet")
    done: list[tuple[Job, Path]] = []

    def run(self, job, place):
        done.append((job, place))
        value = 0.7 if job.choice["rate"] == row.choices[1]["rate"] else 0.4
        return {"val": value, "seconds": 0.5 * job.steps, "steps": job.steps}

    monkeypatch.setattr(Comparison, "_run", run)
    comparison = Comparison(tmp_path, sections, BUDGET)
    cohort = write_fold(tmp_path, sections, 3, 2)
    assert comparison.search(row, 3, cohort) == (row.choices[1], 0.5)
    trials = [job for job, place in done if place.name.startswith("trial")]
    assert [job.steps for job in trials] == [4, 4]  # a quarter of 8 s
    assert {place.name for _, place in done} == {"speed_128", "trial0", "trial1"}
    assert {job.verb for job, _ in done} == {"train"}  # nothing is predicted, tested least


def test_a_network_learns_without_a_background_class(sections, tmp_path):
    cohort = write_fold(tmp_path, sections, 3, 2)
    job = job_of(tmp_path / "unet", cohort, "unet", {"tile": 32, "rate": 1e-3})
    found = do_job(job)
    assert found["steps"] == 3
    assert found["seconds"] > 0
    predicted = do_job(replace(job, verb="predict"))
    assert predicted["values"] == [1, 2]
    assert predicted["seconds_per_mp"] > 0
    name = DONORS[2][0]
    probabilities = np.load(prediction_path(job.place, f"{name}.png"))
    assert probabilities.shape == (2, 128, 128)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)


def test_a_forest_tells_the_bands(sections, tmp_path):
    pytest.importorskip("sklearn")
    cohort = write_fold(tmp_path, sections, 3, 2)
    job = job_of(tmp_path / "forest", cohort, "forest",
                 {"min_samples_leaf": 4, "class_weight": None})
    assert do_job(job)["val"] > 0.95
    assert do_job(replace(job, verb="predict"))["values"] == [1, 2]


def test_filters_of_a_ramp():
    """A ramp has the same gradient everywhere and no Laplacian; away from the border."""
    ramp = np.tile(np.arange(256, dtype=np.float32) / 256, (1, 256, 1))
    bank = filter_bank(ramp)
    assert bank.shape == (5 * len(SCALES), 256, 256)
    smooth, gradient, laplacian, larger, smaller = bank[:5, 100:150, 100:150]
    np.testing.assert_allclose(smooth, ramp[0, 100:150, 100:150], atol=1e-6)
    np.testing.assert_allclose(gradient, 8 / 256, rtol=1e-4)  # Sobel's sum of weights
    np.testing.assert_allclose(laplacian, 0, atol=1e-6)
    assert larger.min() > 1e-6
    np.testing.assert_allclose(smaller, 0, atol=1e-8)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_networks_of_both_sizes_give_logits(name):
    network = NETWORKS[name]
    if missing := missing_libraries(network.needs):
        pytest.skip(f"needs {', '.join(missing)}")
    for options in (network.small, network.large):
        model = network.build(3, 7, **options).eval()
        with torch.no_grad():
            assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 7, 64, 64)


def test_mixed_precision_is_lower_within_and_single_outside():
    torch.manual_seed(0)
    model, x = torch.nn.Conv2d(3, 7, 1), torch.rand(1, 3, 8, 8)
    mixed = Autocast(model, "cpu")(x)
    assert mixed.dtype == torch.float32
    assert not torch.equal(mixed, model(x))
    torch.testing.assert_close(mixed, model(x), atol=0.02, rtol=0.02)


def test_the_table_pools_donors_and_averages_seeds(tmp_path):
    halves = np.repeat(np.array([[1, 2]], np.uint8), 5, axis=1).repeat(10, axis=0)
    sure = np.stack([halves == 1, halves == 2]).astype(np.float32)
    for donor, seed, guess in ((1, 0, sure), (1, 1, sure), (3, 0, sure), (3, 1, sure[::-1]),
                               (3, 2, sure[::-1])):
        one = measure_section("one", f"donor {donor}", guess, (1, 2), halves, UNLABELLED)
        save_result(tmp_path, f"unet_donor{donor}", seed, {
            "sections": [one.to_dict()],
            "trained": {"seconds": 10.0 + donor + seed, "memory": 100.0 * donor},
            "predicted": {"seconds_per_mp": 2.0, "memory": 50.0, "gpu_memory": 7.0},
        }, "cpu")
    (line,) = [line for line in table(tmp_path).splitlines() if line.startswith("| U-Net")]
    cells = line.strip("| ").split(" | ")
    # Seed 2 has no first donor. Seed 0 has mDSC 1; seed 1 half of the pixels, so 0.5.
    assert cells[1] == "0.750 [0.500, 1.000]"
    assert cells[2] == "0.250 [0.000, 0.500]"
    # Seed 1's second donor has the right border, and either class on its wrong side.
    assert cells[3].startswith("0.2 [0.0, 0.5]")
    assert cells[5:] == ["0 %", "12", "2.00", "300", "50 + 7 of the GPU", "1 3", "2"]


def test_a_job_is_done_once(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import json, pathlib, sys\njob = pathlib.Path(sys.argv[2])\n"
        "(job.parent / 'done.json').write_text(job.read_text())", encoding="utf-8")
    assert run_apart(script, {"a": 1}, tmp_path / "job") == {"a": 1}
    assert run_apart(script, {"a": 2}, tmp_path / "job") == {"a": 1}


def test_a_job_that_fails_says_where_its_words_are(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("raise ValueError('too blue')", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"too blue.*log\.txt"):
        run_apart(script, {}, tmp_path / "job")


@pytest.mark.slow
def test_small_alternatives(sections, tmp_path, capsys):
    arguments = ["--tiny", "--data", str(sections), "--output", str(tmp_path), "--threads", "1"]
    main([*arguments, "--rows", "unet", "--donors", "1"])
    text = main(arguments)
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines()}
    ready = [row for row in alternatives.rows() if not missing_libraries(tuple(row.needs))]
    assert len(ready) >= 2
    for row in ready:
        assert "not yet run" not in lines[row.title]
        assert lines[row.title].endswith(f"| {'1 3' if row.key == 'unet' else '3'} | 1 |")
    assert not list(tmp_path.rglob("*.npy"))
    capsys.readouterr()
    assert main(arguments) == text  # seconds and all: nothing was done again
    assert "seed 0" not in capsys.readouterr().out
