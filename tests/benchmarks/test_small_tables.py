"""A small version of each table: the cheapest ones always, all rows where slow tests run."""

from __future__ import annotations

import json

import ablation
import giveaways
import numpy as np
import pretraining
import pytest
import robustness
import scaling
import synthetic

from napari_muvit.data.rings import rings_image


def read(text: str) -> dict[str, list[str]]:
    """Cells of a Markdown table by the first cell of its line."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {line[0]: line[1:] for line in lines}


def test_synthetic_and_robustness_go_on_where_they_were(tmp_path, capsys):
    arguments = ["--tiny", "--output", str(tmp_path), "--rows", "muvit", "unet", "--threads", "1"]
    text = synthetic.main(arguments)
    table = read(text)
    assert 0 <= float(table["MuViT[1,4] + UNETR"][2]) <= 1
    assert float(table["U-Net"][4]) == 16  # samples
    assert table["like DeepLabV3"][2] == "not yet run"
    rates = json.loads((tmp_path / "search" / "unet" / "rates.json").read_text(encoding="utf-8"))
    assert table["U-Net"][3] == f"{float(max(rates, key=lambda rate: rates[rate])):.5f}"
    assert synthetic.main([*arguments, "--table"]) == text
    capsys.readouterr()
    assert synthetic.main(arguments) == text  # seconds and all: nothing was done again
    assert "seed 0" not in capsys.readouterr().out
    noise = robustness.main([
        "--run", str(tmp_path / "muvit_seed0" / "run"), "--crops", "8", "--sigmas", "0", "64",
        "--cohort", str(tmp_path / "sets" / "rings_256" / "rings.csv"), "--repeats", "2"])
    assert set(read(noise)) == {"sigma, px", "---", "mDSC"}


def test_baselines_go_on_after_an_interruption(tmp_path, monkeypatch):
    arguments = ["--tiny", "--output", str(tmp_path), "--rows", "unet", "--threads", "1"]
    from experiments.plain_loop import PlainTraining

    whole = synthetic.main([*arguments[:2], str(tmp_path / "whole"), *arguments[3:]])
    step, seen = PlainTraining._step, []

    def interrupted(self, batch):
        seen.append(self.progress.step)
        if len(seen) == 8:  # two searches of two steps, then in the fourth step of four
            raise KeyboardInterrupt
        step(self, batch)

    monkeypatch.setattr(PlainTraining, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthetic.main(arguments)
    again = synthetic.main(arguments)
    assert seen[-2:] == [2, 3]  # from the last validation, not from the beginning
    assert read(again)["U-Net"][:4] == read(whole)["U-Net"][:4]


def test_a_single_rate_is_taken_without_a_search(tmp_path):
    text = synthetic.main(["--tiny", "--output", str(tmp_path), "--rows", "unet", "--threads", "1",
                           "--rates", "0.002"])
    assert read(text)["U-Net"][3] == "0.00200"
    assert not (tmp_path / "search").exists()


def test_a_coarse_view_of_all_gives_nothing_away():
    labels = np.zeros((1024, 1024), np.uint8)
    labels[:, :512], labels[:, 512:] = 1, 2  # two halves: half a view tells, the whole does not

    def draw(seed, size):
        return labels, labels

    part = giveaways.mean_dice(*giveaways.guess_classes(draw, 1024, 8, 2, 40)[:2])
    whole = giveaways.mean_dice(*giveaways.guess_classes(draw, 1024, 16, 2, 40)[:2])
    assert whole < 0.4 < 0.6 < part


def test_a_cell_s_side_is_away_from_the_nearest_of_the_other_class():
    labels = np.zeros((8, 8), np.uint8)
    labels[2, 1], labels[2, 5], labels[6, 5] = 1, 2, 2
    sides = giveaways.side_of_line(labels)
    assert sides[2, 1].tolist() == [0, -1]
    assert sides[2, 5].tolist() == [0, 1]
    np.testing.assert_allclose(sides[6, 5], np.array([4, 4]) / np.sqrt(32), rtol=1e-6)


def test_rings_give_little_away():
    """Naive boxes have no short cut: what one large ring would be is in the module's text."""
    true, most, same_side = giveaways.guess_classes(rings_image, 512, 4, 10, 20)
    assert giveaways.mean_dice(true, most) < 0.5
    assert giveaways.mean_dice(true, same_side) < 0.66


@pytest.mark.slow
def test_small_synthetic(tmp_path):
    for task in ("rings", "landmarks"):
        table = read(synthetic.main(["--tiny", "--task", task, "--output", str(tmp_path / task)]))
        assert all("not yet run" not in cells for cells in table.values())


@pytest.mark.slow
def test_small_ablation(tmp_path):
    table = read(ablation.main(["--tiny", "--output", str(tmp_path)]))
    assert len(table) == 12
    assert all("not yet run" not in cells for cells in table.values())


def test_ablation_on_sections_judges_what_is_labelled(tmp_path, sections, monkeypatch):
    monkeypatch.setenv("MUVIT_TEST_DATA", str(sections.parents[1]))
    table = read(ablation.main([
        "--tiny", "--output", str(tmp_path), "--task", "cortex_donor2", "--levels", "1", "2",
        "--rows", "curriculum", "--rates", "0.001"]))
    assert table["plain + curriculum"][6] == "16"
    result = json.loads((tmp_path / "curriculum_seed0" / "result.json").read_text("utf-8"))
    assert set(result["scores"]) == {"class 1", "class 2", "mdsc"}  # 0 is unlabelled, no class


def test_tables_say_which_tasks_they_know(capsys):
    with pytest.raises(SystemExit):
        synthetic.main(["--task", "cortex_donor3"])
    assert "invalid choice: 'cortex_donor3'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reconstruction", "curves"])
def test_small_pretraining(tmp_path, kind):
    table = read(pretraining.main([kind, "--tiny", "--output", str(tmp_path)]))
    assert all("not yet run" not in cells for cells in table.values())
    if kind == "reconstruction":  # rows of one level have no error of the other one
        assert sorted(name for name, cells in table.items() if "–" in cells) == [
            "MuViT[1]", "MuViT[4]"]


@pytest.mark.slow
@pytest.mark.parity
def test_small_scaling():
    pytest.importorskip("muvit")
    table = read(scaling.main(["--sizes", "64", "--levels", "1", "2", "--rounds", "1"]))
    assert float(table["64"][2]) > 0
