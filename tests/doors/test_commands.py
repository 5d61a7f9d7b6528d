"""The headless doors: good input does its work, bad input is one sentence and exit status 2."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from napari_muvit import api
from napari_muvit.__main__ import COMMANDS, main, usage
from napari_muvit.config import FinetuneConfig, PretrainConfig, parse_config
from napari_muvit.doors.doctor import examine
from napari_muvit.doors.init import config_text
from napari_muvit.doors.shell import run_command
from napari_muvit.errors import ConfigError, MuvitWarning


@pytest.fixture
def image(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (3, 96, 128), np.uint8)
    path = tmp_path / "image.ome.zarr"
    for _ in api.convert(pixels, path, levels=(1, 2), chunk=64):
        pass
    return path


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """What the last command said on stderr: one line, no traceback."""
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["evalute"], "Did you mean 'evaluate'"),
        (["info"], "SOURCE"),
        (["info", "nowhere.ome.zarr"], "nowhere.ome.zarr"),
        (["info", "x", "--jsn"], "Did you mean '--json'"),
        (["convert", "nowhere.tif", "out.ome.zarr"], "nowhere.tif"),
        (["evaluate", "nowhere.ome.zarr", "there.ome.zarr"], "nowhere.ome.zarr"),
        (["predict", "nowhere.ome.zarr", "--output", "o.ome.zarr"], "model"),
        (["train", "pretrian"], "pretrain"),
        (["train", "resume", "nowhere"], "nowhere"),
        (["demo", "--labels", "x"], "--image"),
        (["init", "pretrain", "nowhere.tif"], "nowhere.tif"),
    ],
)
def test_bad_input_is_a_sentence(
    args: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    assert words in sentence(capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_ome_zarr_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    assert main(["info", str(tmp_path / "folder")]) == 2
    assert "folder" in sentence(capsys)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"  {name}" in usage()
    args = [name, "--help"]
    if name == "train":
        assert main(args) == 0
    else:
        with pytest.raises(SystemExit) as stop:
            main(args)
        assert stop.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_info_says_what_an_image_is(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(image), "--levels", "1", "4"]) == 0
    text = capsys.readouterr().out
    assert "OME-Zarr" in text
    assert "averaged" in text
    assert main(["info", str(image), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


def test_info_and_convert_choose_an_image(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "raw.zarr"
    zarr.create_group(root).attrs["ome"] = {"version": "0.5", "bioformats2raw.layout": 3}
    for name in ("0", "1"):
        shutil.copytree(image, root / name)
    assert main(["info", str(root)]) == 2
    assert "--image 0" in capsys.readouterr().err
    for name in ("1", "0"):
        assert main(["info", str(root), "--image", name]) == 0
        assert "y=96 x=128" in capsys.readouterr().out
    assert main(["convert", str(root), str(tmp_path / "one.zarr"), "--image", "1"]) == 0
    assert api.open_pyramid(tmp_path / "one.zarr").shape == (3, 96, 128)


def test_convert_keeps_pixels_and_averages(image: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.ome.zarr"
    assert main(["convert", str(image), str(output), "--levels", "1", "4", "--format", "0.4"]) == 0
    before, after = api.open_pyramid(image), api.open_pyramid(output)
    assert after.factors == ((1.0, 1.0), (4.0, 4.0))
    np.testing.assert_array_equal(before.level_image(1), after.level_image(1))
    np.testing.assert_allclose(before.level_image(4), after.level_image(4), atol=1)


def test_convert_keeps_the_chosen_channels(image: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.ome.zarr"
    assert main(["convert", str(image), str(output), "--levels", "1", "--channels", "2"]) == 0
    before, after = api.open_pyramid(image), api.open_pyramid(output)
    np.testing.assert_array_equal(before.level_image(1)[2:], after.level_image(1))


@pytest.mark.parametrize(("kind", "config"), [("pretrain", PretrainConfig),
                                              ("finetune", FinetuneConfig)])
def test_init_writes_a_config_that_is_valid_and_explains_every_option(
    kind: str, config: type, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    assert main(["init", kind, str(image), "--output", str(path)]) == 0
    parsed = parse_config(config, path)
    assert parsed.images == (str(image),)
    text = path.read_text()
    for name in config.model_fields:
        assert f"\n{name}:" in text
    capsys.readouterr()
    assert main(["init", kind, str(image), "--output", str(path)]) == 2
    assert "nothing is overwritten" in sentence(capsys)
    assert config_text(kind, [str(image)], None) == text


def test_the_doctor_names_every_part() -> None:
    subjects = [finding.subject for finding in examine()]
    assert {"Python", "torch", "Qt", "Codecs", "Display"} <= set(subjects)


def test_export_writes_a_package_and_says_which_licence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    from napari_muvit.models.checkpoint import ModelMeta, save_model
    from napari_muvit.models.encoder import Encoder

    sizes = {"in_channels": 1, "levels": (1, 4), "patch_size": 4, "num_layers": 1, "dim": 48}
    save_model(tmp_path / "model", Encoder(**sizes, heads=2), ModelMeta("encoder"))
    model, package = str(tmp_path / "model"), tmp_path / "package"
    assert main(["export", model, "--format", "bioimageio", "--output", str(package)]) == 0
    assert "licence is BSD-3-Clause" in capsys.readouterr().err
    assert main(["export", model, "--format", "bioimageio", "--output", str(package)]) == 2
    assert "not empty" in sentence(capsys)
    assert main(["export", model, "--format", "bioimageio", "--license", "CC-BY-4.0", "--author",
                 "Ada", "--author", "Grace", "--name", "Cells in fog"]) == 0
    assert "licence" not in capsys.readouterr().err
    rdf = yaml.safe_load((tmp_path / "model" / "bioimageio" / "rdf.yaml").read_text())
    assert (rdf["license"], rdf["name"]) == ("CC-BY-4.0", "Cells in fog")
    assert [author["name"] for author in rdf["authors"]] == ["Ada", "Grace"]
    assert main(["export", model, "--format", "official", "--license", "MIT"]) == 2
    assert "no place for license" in sentence(capsys)
    assert main(["export", model, "--format", "official"]) == 0
    assert (tmp_path / "model" / "official" / "model.pth").is_file()


@pytest.mark.parametrize(
    ("number", "words", "status"),
    [
        (errno.ENOSPC, "Free some space", 1), (errno.EROFS, "choose another output", 2),
        (errno.EACCES, "Check the permissions", 2), (errno.ENOTDIR, "Check the path", 2),
    ],
)
def test_what_the_system_refuses_is_a_sentence_with_a_remedy(
    number: int, words: str, status: int, capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> int:
        raise OSError(number, os.strerror(number), "out.ome.zarr")

    assert run_command(fail) == status
    text = sentence(capsys)
    assert words in text
    assert "(out.ome.zarr)" in text


def test_export_does_not_replace_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    there = tmp_path / "notes.txt"
    there.write_text("mine", encoding="utf-8")
    assert main(["export", "RUN", "--format", "official", "--output", str(there)]) == 2
    assert "nothing is overwritten" in sentence(capsys)
    assert there.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_each_group_of_a_new_config_stands_in_one_piece(kind: str, image: Path) -> None:
    heads = [line for line in config_text(kind, [str(image)], None).splitlines()
             if line.startswith("# ----")]
    assert len(heads) == len(set(heads)) > 5


def test_a_new_config_says_which_labels_do_not_exist(image: Path) -> None:
    guessed = image.with_name("image_annotations.ome.zarr")
    text = config_text("finetune", [str(image)], None)
    assert f"bring outlines: napari-muvit annotate IMAGE GEOJSON\n#   {guessed}\n" in text
    assert f"labels: [{guessed}]" in " ".join(text.split())
    assert "do not exist" not in config_text("finetune", [str(image)], [str(image)])
    assert "do not exist" not in config_text("pretrain", [str(image)], None)


def test_a_new_config_takes_a_volume_plane_by_plane(image: Path, tmp_path: Path) -> None:
    list(api.convert(api.pyramid_from_arrays([np.zeros((4, 96, 96), np.uint8)], axes="zyx"),
                     tmp_path / "volume.ome.zarr", levels=(1,)))
    assert "\nz: all\n" in config_text("pretrain", [str(tmp_path / "volume.ome.zarr")], None)
    assert "\nz: null\n" in config_text("pretrain", [str(image)], None)


def test_a_new_config_takes_labels_that_lie_beside_the_image(image: Path) -> None:
    for name in ("image_annotations.ome.zarr", "image_labels.ome.zarr"):
        labels = image.with_name(name)
        labels.mkdir()
        text = config_text("finetune", [str(image)], None)
        assert f"labels: [{labels}]" in " ".join(text.split())
        assert "do not exist" not in text


def test_a_new_config_takes_the_labels_of_the_first_time_point(tmp_path: Path) -> None:
    path = tmp_path / "film.ome.tif"
    tifffile.imwrite(path, np.zeros((3, 96, 96), np.uint8), metadata={"axes": "TYX"}, ome=True)
    first = tmp_path / "film_t0_annotations.ome.zarr"
    assert f"\n#   {first}\n" in config_text("finetune", [str(path)], None)
    with api.open_annotations(path):
        pass
    assert f"labels: [{first}]" in " ".join(config_text("finetune", [str(path)], None).split())


def test_a_missing_codec_is_one_sentence_and_nothing_follows_it(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 9, (512, 512), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, compression="lzw", tile=(32, 32))
    program = ("import sys; sys.modules['imagecodecs'] = None; import napari_muvit.__main__ as m; "
               "sys.exit(m.main(['convert', 'a.tif', 'out.ome.zarr']))")
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True,
                         text=True, check=False)
    *_, last = lines = ran.stderr.splitlines()
    assert ran.returncode == 2
    assert "needs package imagecodecs" in last
    assert "pip install --upgrade imagecodecs" in last
    assert all(line.startswith("convert: ") for line in lines[:-1])


def test_a_full_disk_as_numpy_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise OSError("24576 requested and 10208 written")

    assert run_command(fail) == 1
    assert "Free some space" in sentence(capsys)


def test_a_warning_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    def warn() -> int:
        for number in (1, 1, 2):
            with warnings.catch_warnings():  # as libraries do, which forgets what was shown
                warnings.simplefilter("always")
                warnings.warn(f"plane {number}", MuvitWarning, stacklevel=1)
        return 0

    assert run_command(warn) == 0
    assert capsys.readouterr().err.splitlines() == ["warning: plane 1", "warning: plane 2"]


def test_the_demo_opens_its_labels_before_it_trains(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "demo"
    assert main(["demo", "--image", str(image), "--labels", str(tmp_path / "nowhere.tif"),
                 "--output", str(output)]) == 2
    assert "nowhere.tif" in sentence(capsys)
    assert not output.exists()


def test_the_demo_refuses_labels_of_another_shape_before_it_trains(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    labels, output = tmp_path / "labels.ome.zarr", tmp_path / "demo"
    list(api.convert(np.ones((40, 300), np.uint8), labels, levels=(1,), as_labels=True))
    assert main(["demo", "--image", str(image), "--labels", str(labels),
                 "--output", str(output)]) == 2
    assert "(40, 300)" in capsys.readouterr().err.splitlines()[-1]
    assert not output.exists()


@pytest.mark.parametrize("given", ["1", "8"])
def test_numbers_to_choose_from_may_be_text(given: str) -> None:
    from napari_muvit.config import PredictConfig, parse_config

    config = parse_config(PredictConfig, {
        "images": ["a"], "model": "m", "output": "o", "average": given})
    assert config.average == int(given)
    with pytest.raises(ConfigError, match="1, 2, 4 or 8"):
        parse_config(PredictConfig, {**config.model_dump(), "average": "3"})
