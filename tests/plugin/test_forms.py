"""Forms say exactly what the option classes say."""

from __future__ import annotations

import shlex

import pytest

from napari_muvit.config import FinetuneConfig, PretrainConfig, parse_config
from napari_muvit.plugin import forms

KINDS = [PretrainConfig, FinetuneConfig]


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_has_a_field(kind: type) -> None:
    fields = {field.name: field for field in forms.form_fields(kind)}
    assert set(fields) == set(kind.model_fields)
    for name, info in kind.model_fields.items():
        assert fields[name].title == info.title
        assert fields[name].tooltip == info.description
        assert fields[name].group


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_typed_again_are_the_defaults(kind: type) -> None:
    required = {"images": ("a.tif",), "output": "run"}
    if kind is FinetuneConfig:
        required["labels"] = ("a_labels.tif",)
    values = dict(required)
    for field in forms.form_fields(kind, skip=required):
        if field.kind in {"text", "list"}:
            values[field.name] = field.from_text(field.to_text(field.default))
        else:
            values[field.name] = field.default
    given = {name: value for name, value in values.items() if value is not None}
    assert parse_config(kind, given) == parse_config(kind, required)
    assert forms.changed_values(kind, values) == required


def test_kinds_and_bounds() -> None:
    fields = {field.name: field for field in forms.form_fields(FinetuneConfig)}
    assert fields["steps"].kind == "whole"
    assert fields["steps"].minimum == 1
    assert fields["decoder"].choices == ("unetr", "mask2former")
    assert fields["freeze_encoder"].kind == "flag"
    assert fields["levels"].kind == "list"
    assert fields["learning_rate"].kind == "text"
    assert fields["crop_size"].unit == "px of the level"


def test_typed_values() -> None:
    fields = {field.name: field for field in forms.form_fields(PretrainConfig)}
    assert fields["levels"].from_text("1, 8, 32") == (1, 8, 32)
    assert fields["learning_rate"].from_text("1e-4") == 1e-4
    assert fields["learning_rate"].from_text(" ") is None
    assert fields["device"].from_text("cuda:1") == "cuda:1"
    assert fields["channels"].from_text("DAPI, 2") == ("DAPI", 2)
    for names in (("DAPI, nuclei", "GFP"), ('12" plate', "a,b"), ("plain", 3)):
        assert fields["channels"].from_text(fields["channels"].to_text(names)) == names


def test_command_is_what_the_door_reads() -> None:
    from napari_muvit.train import build_parser

    values = {"images": ("a b.tif", "c.tif"), "levels": (1, 8), "steps": 5, "flip": False,
              "learning_rate": 1e-4, "output": "run"}
    command = shlex.split(forms.command_line("pretrain", values))
    given = vars(build_parser()[1]["pretrain"].parse_strictly(command[4:]))
    config = parse_config(PretrainConfig, {k: v for k, v in given.items() if k != "config"})
    assert config == parse_config(PretrainConfig, values)
