"""The demo's parts: labels from stains, colour baselines, the report's picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from napari_muvit.demo import colour, command, pictures, report, stains


def test_stain_labels_tell_brown_blue_and_white_apart() -> None:
    rgb = np.full((60, 90, 3), 245, np.uint8)
    rgb[:, 30:60] = (130, 80, 40)
    rgb[20:40, 65:85] = (80, 90, 170)
    labels = stains.stain_labels(rgb)
    assert labels[30, 10] == stains.REST
    assert labels[30, 45] == stains.DAB
    assert labels[30, 75] == stains.NUCLEI


def test_logistic_regression_learns_what_colour_decides() -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 3, 600)
    centres = np.array([[200, 10, 10], [10, 200, 10], [10, 10, 200]], np.float32)
    colours = centres[target] + rng.normal(0, 10, (600, 3)).astype(np.float32)
    predicted = colour.logistic_regression(colours[:300], target[:300], colours[300:])
    assert (predicted == target[300:]).mean() > 0.98


def test_majority_is_the_most_frequent_class() -> None:
    assert colour.majority(np.array([0, 2, 2, 1]), 3).tolist() == [2, 2, 2]


def test_the_report_shows_every_panel_and_curve(tmp_path: Path) -> None:
    from PIL import Image

    red = np.zeros((20, 30, 3), np.uint8)
    red[..., 0] = 255
    curves = [("loss", [1.0, 2.0, 3.0], [1.0, 0.5, 0.1])]
    report.write_report(tmp_path / "report.png", "title", [("a", red), ("b", red)],
                        [("chart", curves), ("empty", [])], ["a note"])
    with Image.open(tmp_path / "report.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    is_red = (pixels == (255, 0, 0)).all(-1)
    assert is_red[:, :360].any()
    assert is_red[:, 360:].any()
    blue = tuple(bytes.fromhex(report.CURVE_COLOURS[0].lstrip("#")))
    assert (pixels == blue).all(-1).any()


def test_labels_become_their_colours() -> None:
    picture = report.colour_labels(np.array([[0, 2]]), {2: "#102030"})
    assert picture.tolist() == [[[255, 255, 255], [16, 32, 48]]]


def test_feature_colours_follow_the_strongest_components() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(0, 0.01, (16, 8, 8)).astype(np.float32)
    features[5, :, 4:] += 5
    picture = pictures.feature_colours(features).astype(int)
    left, right = picture[:, :4, -1].mean(), picture[:, 4:, -1].mean()
    assert abs(left - right) > 200


def test_a_second_demo_gets_its_own_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.free_folder(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    assert command.free_folder(tmp_path / "demo") == tmp_path / "demo-2"
    assert "demo-2" in capsys.readouterr().err
