"""Files that models are made of: safe YAML, and writing that survives a crash."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import yaml
from torch import Tensor, nn

from napari_muvit.errors import CheckpointError
from napari_muvit.renaming import rename_over


class _SafeTupleLoader(yaml.SafeLoader):
    """PyYAML's safe loader that also knows tuples, as official configs hold them."""


def _construct_tuple(loader: yaml.SafeLoader, node: yaml.Node) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(cast(yaml.SequenceNode, node), deep=True))


_SafeTupleLoader.add_constructor("tag:yaml.org,2002:python/tuple", _construct_tuple)


class OfficialDumper(yaml.SafeDumper):
    """Writes tuples with the tag that the official project writes and reads."""


OfficialDumper.add_representer(
    tuple, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:python/tuple", value)
)


def read_safe_yaml(text: str, path: Path) -> dict[str, Any]:
    """The mapping in YAML text of plain values and tuples.

    Raises
    ------
    CheckpointError
        If it is something else, e.g. names a Python object to be built.
    """
    try:
        values = yaml.load(text, Loader=_SafeTupleLoader) if text else {}
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{str(path)!r} is no YAML of plain values: {reason}.") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{str(path)!r} holds {type(values).__name__}, not options.")
    return values


def read_text(path: Path) -> str:
    """The text of a file.

    Raises
    ------
    CheckpointError
        If it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error}.") from None


def load_state(model: nn.Module, state: Mapping[str, Tensor], folder: Path) -> None:
    """Put weights into a model.

    Raises
    ------
    CheckpointError
        If names or shapes do not fit.
    """
    try:
        model.load_state_dict(dict(state))
    except (RuntimeError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"the weights in {str(folder)!r} do not fit: {reason}") from None


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place, force it to disk, then rename it into place."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(beside)
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        rename_over(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def filled_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, whose files are at `path` only when all of them are whole.

    A full disk then leaves nothing, neither a part of a folder nor an empty one.
    """
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        beside.mkdir()
        yield beside
        if path.exists():
            for made in beside.iterdir():
                rename_over(made, path / made.name)
        else:
            rename_over(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def plain_values(value: Any) -> Any:
    """Number-likes as numbers; lists and tuples stay what they are."""
    if isinstance(value, Mapping):
        return {str(k): plain_values(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain_values(v) for v in value)
    return value.item() if hasattr(value, "item") else value


def as_lists(value: Any) -> Any:
    """Tuples as lists, as plain YAML holds them."""
    if isinstance(value, Mapping):
        return {k: as_lists(v) for k, v in value.items()}
    return [as_lists(v) for v in value] if isinstance(value, (list, tuple)) else value


def as_tuples(value: Any) -> Any:
    """Lists as tuples, as constructors take them."""
    if isinstance(value, Mapping):
        return {k: as_tuples(v) for k, v in value.items()}
    return tuple(as_tuples(v) for v in value) if isinstance(value, list) else value
