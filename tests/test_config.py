"""Options: one spec, and errors that name field, given value and rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from napari_muvit.config import (
    FinetuneConfig,
    Options,
    PredictConfig,
    PretrainConfig,
    parse_config,
    write_config,
)
from napari_muvit.errors import ConfigError

MINIMAL = {"images": "a.ome.zarr", "output": "run"}


@pytest.mark.parametrize("kind", [PretrainConfig, FinetuneConfig])
def test_every_field_has_title_text_and_group(kind: type[Options]) -> None:
    for name, field in kind.model_fields.items():
        assert field.title, name
        assert field.description, name
        assert isinstance(field.json_schema_extra, dict), name
        assert field.json_schema_extra["group"], name


def test_one_path_is_a_tuple_of_one() -> None:
    assert parse_config(PretrainConfig, MINIMAL).images == ("a.ome.zarr",)


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"levls": [1]}, "levls", "Did you mean 'levels'"),
        ({"levels": [4, 1]}, "levels", "ascending"),
        ({"crop_size": 100}, None, "Take 96 or 104"),
        ({"steps": 0}, "steps", "steps is 0"),
        ({"device": "gpu"}, "device", "'gpu'"),
        ({"images": None}, "images", "images is None"),
        ({"schema_version": 99}, "schema_version", "99"),
        ({"images": []}, "images", r"images is \[\]; it must hold at least 1\."),
        ({"images": 5}, "images", "images is 5; it must be a valid string"),
        ({"learning_rate": "nan"}, "learning_rate", "it must be greater than 0"),
        ({"levels": ["4", "1"]}, "levels", r"^levels are \(4, 1\); they must be ascending"),
        ({"labels": ["l.ome.zarr"]}, "labels", "belongs to finetune"),
        ({"device": "gpu"}, "device", "allowed is: auto, cpu"),
        ({"crop_size": 0}, "crop_size", "it must be greater than 0"),
        ({"crop_size": [-8]}, "crop_size", "it must be greater than 0"),
        ({"crop_size": []}, "crop_size", "at least 1"),
        ({"patch_size": 0}, "patch_size", "it must be greater than 0"),
        ({"scaled_axes": []}, "scaled_axes", "at least 1"),
        ({"percentiles": [60, 40]}, None, r"^percentiles are \(60\.0, 40\.0\); they must ascend"),
        ({"percentiles": [-1, 40]}, None, "between 0 and 100"),
    ],
)
def test_errors_name_field_value_and_rule(
    change: dict[str, object], field: str | None, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        parse_config(PretrainConfig, MINIMAL | change)
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("roi", "good"), [
    ([0, 0, 9], False), ([0, 0, 9, 9], True), ([0, 0, 0, 9, 9, 9], True), ([5], False),
])
def test_a_region_has_two_corners(roi: list[float], good: bool) -> None:
    given = {"images": "a.tif", "model": "m", "output": "o", "roi": roi}
    if good:
        assert parse_config(PredictConfig, given).roi == tuple(roi)
        return
    with pytest.raises(ConfigError, match="lower corner, then the upper one"):
        parse_config(PredictConfig, given)


@pytest.mark.parametrize(("text", "words"), [
    ("", "holds nothing"), ("- a\n", "holds a list"), ("a: 1\nb: [\n", "line 3"),
])
def test_a_file_that_is_no_config_says_what_it_is(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        parse_config(PretrainConfig, path)


def test_what_is_no_config_at_all_is_refused() -> None:
    for given in (5, None, ["a"]):
        with pytest.raises(ConfigError, match="must be a dict of options"):
            parse_config(PretrainConfig, given)  # type: ignore[arg-type]


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ConfigError, match="output is missing"):
        parse_config(PretrainConfig, {"images": "a"})


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = parse_config(FinetuneConfig, MINIMAL | {"labels": "l", "levels": [1, 8], "dim": 64})
    write_config(config, tmp_path / "config.yaml", version="1")
    assert parse_config(FinetuneConfig, tmp_path / "config.yaml") == config
    assert parse_config(FinetuneConfig, str(tmp_path / "config.yaml")) == config


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "\x00"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        parse_config(PretrainConfig, path)


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("images: [a]\nsteps: 3\noutput: run\nsteps: 4\n")
    with pytest.raises(ConfigError, match="in line 4: 'steps' is given twice"):
        parse_config(PretrainConfig, path)


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        parse_config(PretrainConfig, "nowhere.yaml")


RECIPE = """
common: {levels: [1, 8], images: [a], masking_ratio: 0.5}
pretrain: {output: one, steps: 3}
finetune: {output: two, labels: [l], levels: [1]}
"""


def test_a_recipe_holds_a_whole_job(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    pretrain = parse_config(PretrainConfig, path)
    finetune = parse_config(FinetuneConfig, path)
    assert (pretrain.output, pretrain.levels, pretrain.masking_ratio) == ("one", (1, 8), 0.5)
    assert (finetune.output, finetune.levels, finetune.images) == ("two", (1,), ("a",))


@pytest.mark.parametrize(
    ("text", "words"),
    [("finetune: {output: o}", "no section 'pretrain'"), ("pretrain: 3", "no section of a recipe"),
     ("pretrain: {output: o}\nsteps: 3", "'steps'"), ("pretrain: {stepz: 3}", "'steps'")],
)
def test_a_recipe_that_is_wrong_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        parse_config(PretrainConfig, path)


def test_own_sizes_replace_the_presets() -> None:
    config = parse_config(PretrainConfig, MINIMAL | {"preset": "tiny", "dim": 64, "patch_size": 4})
    sizes = config.model_sizes()
    assert sizes["dim"] == 64
    assert sizes["patch_size"] == (4,)
    assert sizes["num_layers"] == 4


@pytest.mark.parametrize("recipe", ["synthetic", "mouse", "kpis"])
@pytest.mark.parametrize("kind", [PretrainConfig, FinetuneConfig, PredictConfig])
def test_the_recipes_are_valid(recipe: str, kind: type[Options]) -> None:
    path = Path(__file__).parents[1] / "configs" / f"{recipe}.yaml"
    assert parse_config(kind, path)


@pytest.mark.parametrize("given", [0, "0", ["0"], "DAPI"])
def test_channels_are_given_alike_to_every_verb(given: object) -> None:
    expected = ("DAPI",) if given == "DAPI" else (0,)
    predict = parse_config(
        PredictConfig, {"images": "a", "model": "m", "output": "o", "channels": given})
    assert predict.channels == expected
    assert parse_config(PretrainConfig, MINIMAL | {"channels": given}).channels == expected
