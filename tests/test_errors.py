"""The family of errors: one root, builtin parents, facts as attributes."""

from __future__ import annotations

import inspect

from napari_muvit import errors


def test_all_errors_are_of_one_family() -> None:
    kinds = [k for _, k in inspect.getmembers(errors, inspect.isclass) if issubclass(k, Exception)]
    own = [k for k in kinds if not issubclass(k, Warning)]
    assert len(own) > 8
    assert all(issubclass(kind, errors.MuvitError) for kind in own)


def test_children_are_what_a_caller_would_expect() -> None:
    assert issubclass(errors.SourceNotFoundError, FileNotFoundError)
    assert issubclass(errors.RunExistsError, FileExistsError)
    assert issubclass(errors.ChannelError, RuntimeError)
    assert issubclass(errors.ConfigError, ValueError)


def test_nearest_name() -> None:
    assert errors.nearest_name("levls", ["levels", "steps"]) == "levels"
    assert errors.nearest_name("zzz", ["levels", "steps"]) is None


def test_a_missing_extra_names_the_pip_command() -> None:
    error = errors.require_extra("distributed", "cluster", "Prediction on a cluster")
    assert isinstance(error, ImportError)
    assert "pip install 'napari-muvit[cluster]'" in str(error)
