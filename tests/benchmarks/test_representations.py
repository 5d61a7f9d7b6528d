"""Table 7: what probes read from encoders of one to three levels, on real sections."""

from __future__ import annotations

import numpy as np
import pytest
import representations

from napari_muvit import api
from napari_muvit.inference.probe import Samples


def cells(text):
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {line[0]: line[1:] for line in lines[2:]}


@pytest.fixture
def few_sections(real_data, monkeypatch):
    """Two sections of each donor."""
    if not representations.default_data().is_dir():
        pytest.skip(f"no sections of human cortex at {representations.default_data()}")
    donors = tuple((sections[0], sections[-1]) for sections in representations.DONORS)
    monkeypatch.setattr(representations, "DONORS", donors)
    monkeypatch.setattr(representations, "TRAINING", (*donors[0], *donors[1]))
    monkeypatch.setattr(representations, "TEST", donors[2][:1])
    monkeypatch.setitem(representations.TINY, "rates", (1e-3,))


def test_donors_of_the_test_are_never_trained_on(few_sections, tmp_path):
    rows = api.read_cohort(representations.CortexSettings().cohort(tmp_path))
    assert [row.split for row in rows] == ["train", "val", "train", "val"]
    assert not any(row.image.endswith(f"{section}.png")
                   for row in rows for section in representations.DONORS[2])


def test_samples_of_images_stay_in_step():
    parts = [Samples(np.full((n, 2), n, np.float32), np.full(n, n), np.full((n, 2), n))
             for n in (1, 3)]
    joined = representations.join(parts)
    assert joined.classes.tolist() == [1, 3, 3, 3]
    assert joined.features[:, 0].tolist() == joined.places[:, 0].tolist() == [1, 3, 3, 3]


def test_a_row_is_measured_once(few_sections, tmp_path, capsys):
    arguments = ["--tiny", "--rows", "levels_1", "--threads", "1", "--output", str(tmp_path)]
    text = representations.main(arguments)
    found = cells(text)
    layer, donor = map(float, found["MuViT[1], 32 px in view"][:2])
    assert 0 <= layer <= 1
    assert 0 <= donor <= 1
    assert found["MuViT[1,4,16], 512 px in view"][:2] == ["not yet run", "not yet run"]
    capsys.readouterr()
    assert representations.main(arguments) == text
    assert "seed 0" not in capsys.readouterr().out  # nothing was done again


@pytest.mark.slow
def test_small_representations(few_sections, tmp_path):
    found = cells(representations.main(["--tiny", "--threads", "1", "--output", str(tmp_path)]))
    assert len(found) == 3
    assert all("not yet run" not in row for row in found.values())
