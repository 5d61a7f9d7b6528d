"""What users call says what goes in: every public name, every argument, every error."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest

import napari_muvit
from napari_muvit import api


def public() -> Iterator[tuple[str, Any]]:
    """Functions and classes of the package and of its verbs."""
    names = [name for name in napari_muvit.__all__ if not name.startswith("__")]
    verbs = [name for name, value in vars(api).items()
             if inspect.isfunction(value) and value.__module__ == api.__name__
             and not name.startswith("_")]
    for name in dict.fromkeys([*names, *verbs]):
        yield name, getattr(napari_muvit if name in names else api, name)


def documents(thing: Any) -> str:
    """The docstring of a function, or of a class and those that it builds upon."""
    if not inspect.isclass(thing):
        return inspect.getdoc(thing) or ""
    own = [base for base in thing.__mro__ if base.__module__.startswith("napari_muvit")]
    return "\n".join(base.__doc__ or "" for base in own)


def arguments(thing: Any) -> list[str]:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(thing).parameters.values()
    return [p.name for p in parameters if p.kind not in kinds and p.name != "self"]


FUNCTIONS = [(name, thing) for name, thing in public() if inspect.isfunction(thing)]
CLASSES = [(name, thing) for name, thing in public() if inspect.isclass(thing)]


@pytest.mark.parametrize(("name", "thing"), [*FUNCTIONS, *CLASSES])
def test_every_public_name_has_a_sentence(name: str, thing: Any) -> None:
    assert (thing.__doc__ or "").strip().splitlines()[0].endswith((".", ":")), name


@pytest.mark.parametrize(("name", "thing"), FUNCTIONS)
def test_functions_name_their_arguments_and_errors(name: str, thing: Any) -> None:
    text = documents(thing)
    head = text.partition("Raises\n")[0]
    missing = [argument for argument in arguments(thing) if argument not in head]
    assert missing == [], name
    assert "Raises\n------\n" in text, name


@pytest.mark.parametrize(("name", "thing"), [
    (name, thing) for name, thing in CLASSES if name.startswith("MuViT")])
def test_official_classes_name_arguments_shapes_errors_and_source(name: str, thing: Any) -> None:
    text = documents(thing)
    assert "(B, " in text or "(L, C, *S)" in text, name
    assert "Raises\n" in text, name
    if name == "MuViTDataset":
        return
    assert "MuViT, section" in text, name
    base = next(b for b in thing.__mro__ if b.__module__.startswith("napari_muvit.models"))
    missing = [argument for argument in arguments(base) if argument not in text]
    assert missing == [], name


@pytest.mark.parametrize(("name", "thing"), CLASSES)
def test_public_methods_have_a_sentence(name: str, thing: Any) -> None:
    for member, value in inspect.getmembers(thing, inspect.isfunction):
        if member.startswith("_") or not value.__module__.startswith("napari_muvit"):
            continue
        assert inspect.getdoc(value), f"{name}.{member}"
