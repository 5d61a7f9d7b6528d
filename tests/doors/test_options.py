"""Flags come from the option classes and refuse in one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from napari_muvit.config import FinetuneConfig, PretrainConfig
from napari_muvit.doors.options import Parser, add_flags, flag_of, merge, parse_some
from napari_muvit.errors import ConfigError


def pretrain_parser() -> Parser:
    parser = Parser(prog="test")
    add_flags(parser, PretrainConfig)
    return parser


def parse(*args: str) -> PretrainConfig:
    return merge(PretrainConfig, vars(pretrain_parser().parse_strictly(args)), None)


@pytest.mark.parametrize("kind", [PretrainConfig, FinetuneConfig])
def test_every_option_is_a_flag_with_its_description(kind: type) -> None:
    parser = Parser(prog="test")
    add_flags(parser, kind)
    text = " ".join(parser.format_help().split())
    for name, field in kind.model_fields.items():
        assert flag_of(name) in text
        assert (field.description or "")[:40] in text


def test_flags_are_converted_by_the_config() -> None:
    config = parse(
        "--images", "a", "b", "--output", "o", "--levels", "1", "8", "32", "--crop-size", "64",
        "--no-flip", "--learning-rate", "1e-3", "--channels", "0", "DAPI",
    )
    assert config.images == ("a", "b")
    assert config.levels == (1, 8, 32)
    assert config.crop_size == (64,)
    assert config.flip is False
    assert config.learning_rate == 1e-3
    assert config.channels == (0, "DAPI")


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("images: [a]\noutput: o\nsteps: 7\nseed: 5\n")
    given = vars(pretrain_parser().parse_strictly(["--steps", "9"]))
    config = merge(PretrainConfig, given, str(path))
    assert (config.steps, config.seed) == (9, 5)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--levls", "1"], "Did you mean '--levels'"),
        (["--images", "a", "--output", "o", "--steps", "abc"], "steps is 'abc'"),
        (["--images", "a", "--output", "o", "stray"], "stray"),
        (["--images", "a", "--output", "o", "--levels", "4", "1"], "ascending"),
        (["--images", "a", "--output", "o", "--crop-size", "100"], "multiple of patch_size"),
        (["--steps"], "--steps"),
        ([], "images is missing"),
    ],
)
def test_bad_flags_are_one_sentence(args: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(*args)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_key_in_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("images: [a]\noutput: o\nlevls: [1]\n")
    with pytest.raises(ConfigError, match="Did you mean 'levels'"):
        merge(PretrainConfig, {}, str(path))


def in_new_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


HEAVY = "sorted({'torch','napari','qtpy','PyQt6','zarr','ome_zarr','skimage'} & set(sys.modules))"


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert in_new_process(f"import sys, napari_muvit; print({HEAVY})") == "[]"


def test_some_options_are_judged_as_in_a_whole_config() -> None:
    given = {"steps": "7", "device": "cpu", "workers": "2"}
    assert parse_some(PretrainConfig, given) == {"steps": 7, "device": "cpu", "workers": 2}
    for name, text, words in (("steps", "0", "steps is '0'; it must be greater"),
                              ("steps", "many", "steps is 'many'; it must be a valid integer"),
                              ("device", "gpu", "device is 'gpu'; allowed is: auto, cpu")):
        with pytest.raises(ConfigError, match=words) as caught:
            parse_some(PretrainConfig, {name: text})
        assert caught.value.field == name


def test_resume_changes_what_may_change_and_refuses_the_rest(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari_muvit import api, train

    asked = []
    monkeypatch.setattr(api, "resume", lambda folder, **changes: asked.append((folder, changes)))
    monkeypatch.setattr(train, "follow", lambda name, run: 0)
    train.train(["resume", "RUN"])
    train.train(["resume", "RUN", "--steps", "9", "--device", "cpu"])
    assert asked == [("RUN", {}), ("RUN", {"steps": 9, "device": "cpu"})]
    with pytest.raises(ConfigError, match=r"'--step'. Did you mean '--steps'\?"):
        train.train(["resume", "RUN", "--step", "9"])
    shown = train.build_parser()[1]["resume"].format_help()
    assert "--threads" in shown
    assert "default" not in shown.replace("by default", "")


@pytest.mark.parametrize("command", ["pretrain", "finetune", "resume"])
def test_help_loads_nothing_heavy(command: str) -> None:
    code = (
        "import sys\nfrom napari_muvit.train import train\n"
        f"try:\n    train([{command!r}, '--help'])\nexcept SystemExit as stop:\n"
        f"    print('exit', stop.code, {HEAVY})"
    )
    assert in_new_process(code).endswith("exit 0 []")
