"""The whole job from the command line, small, on real sections split by donor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from napari_muvit import api
from napari_muvit.__main__ import main

TRAIN, TEST = ("151507", "151669"), "151673"
SMALL = ["--levels", "1", "4", "--crop-size", "64", "--preset", "tiny", "--batch-size", "2",
         "--num-layers", "2", "--dim", "64", "--heads", "2", "--seed", "0"]


@pytest.fixture(scope="module")
def sections(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three sections of human cortex and their labels, converted; 0 is unlabelled."""
    folder = tmp_path_factory.mktemp("sections")
    source = real_data / "segmentation" / "human_cortex_layers"
    stores = {}
    for name in (*TRAIN, TEST):
        for kind, flags in (("images", []), ("labels", ["--labels"])):
            stores[f"{name} {kind}"] = folder / f"{name}_{kind}.ome.zarr"
            args = ["convert", str(source / kind / f"{name}.png"), str(folder / f"{name}_{kind}"
                    ".ome.zarr"), "--levels", "1", "4", "--chunk", "256", *flags]
            assert main(args) == 0
    return stores


@pytest.fixture(scope="module")
def story(sections: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which every command left its result."""
    folder = tmp_path_factory.mktemp("story")
    images = [str(sections[f"{name} images"]) for name in TRAIN]
    labels = [str(sections[f"{name} labels"]) for name in TRAIN]
    test = str(sections[f"{TEST} images"])
    run, run2, out = (str(folder / name) for name in ("RUN", "RUN2", "out.ome.zarr"))
    assert main(["train", "pretrain", "--images", *images, *SMALL, "--steps", "3",
                 "--output", run]) == 0
    assert main(["train", "finetune", "--images", *images, "--labels", *labels, "--unlabelled",
                 "0", *SMALL, "--steps", "3", "--pretrained", run, "--output", run2]) == 0
    assert main(["predict", test, "--model", run2, "--output", out]) == 0
    return folder


def test_the_prediction_lies_on_the_image_and_holds_the_classes(
    story: Path, sections: dict[str, Path]
) -> None:
    prediction = api.open_pyramid(story / "out.ome.zarr")
    image = api.open_pyramid(sections[f"{TEST} images"])
    assert prediction.spatial_shape == image.spatial_shape
    values = set(np.unique(prediction.level_image(1)).tolist())
    table = api.read_class_table(prediction)
    assert table is not None
    assert values <= set(table.values) | {0}
    assert set(table.values) == set(range(1, 8))


def test_the_lazy_prediction_equals_the_one_on_disk(
    story: Path, sections: dict[str, Path]
) -> None:
    lazy = api.predict(sections[f"{TEST} images"], story / "RUN2")
    written = api.open_pyramid(story / "out.ome.zarr").level_image(1)[0]
    np.testing.assert_array_equal(lazy.compute(scheduler="sync"), written)


def test_scores_leave_unlabelled_pixels_out(
    story: Path, sections: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    truth = str(sections[f"{TEST} labels"])
    assert main(["evaluate", str(story / "out.ome.zarr"), truth, "--unlabelled", "0",
                 "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert 0 <= scores["mdsc"] <= 1
    assert main(["evaluate", truth, truth, "--unlabelled", "0", "--json"]) == 0
    same = json.loads(capsys.readouterr().out)
    assert same["mdsc"] == 1
    assert "0" not in same["dice"]


def test_a_run_folder_that_exists_is_not_overwritten(
    story: Path, sections: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (story / "RUN" / "config.yaml").read_bytes()
    image = str(sections[f"{TEST} images"])
    assert main(["train", "pretrain", "--images", image, *SMALL, "--output",
                 str(story / "RUN")]) == 2
    text = capsys.readouterr().err
    assert "RUN" in text
    assert text.count("\n") == 1
    assert (story / "RUN" / "config.yaml").read_bytes() == before


def test_labels_of_another_shape_are_refused(
    sections: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in api.convert(np.ones((50, 70), np.uint8), tmp_path / "l.ome.zarr", levels=(1,)):
        pass
    args = ["train", "finetune", "--images", str(sections[f"{TEST} images"]), "--labels",
            str(tmp_path / "l.ome.zarr"), *SMALL, "--output", str(tmp_path / "run")]
    assert main(args) == 2
    text = capsys.readouterr().err
    assert "50" in text
    assert "600" in text
    assert not (tmp_path / "run").exists()


def test_a_coarse_crop_mostly_outside_the_image_is_a_warning_that_names_better_levels(
    sections: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["train", "pretrain", "--images", str(sections[f"{TEST} images"]), *SMALL, "--levels",
            "1", "32", "--steps", "1", "--output", str(tmp_path / "run")]
    assert main(args) == 0
    text = capsys.readouterr().err
    assert "warning" in text
    assert "levels" in text
