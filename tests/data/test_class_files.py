"""Class tables as files."""

from __future__ import annotations

from pathlib import Path

import pytest

from napari_muvit.data.class_files import read_classes, write_classes
from napari_muvit.data.labels import ClassTable, LabelClass
from napari_muvit.errors import InputError, SourceError

TABLE = ClassTable(
    (LabelClass(1, "background", "#808080"), LabelClass(5, "Drüse, \"fein\"", "#ff0000")), 0, 1
)


@pytest.mark.parametrize("name", ["classes.csv", "classes.yaml", "classes.yml"])
@pytest.mark.parametrize("table", [TABLE, ClassTable((LabelClass(3, "a", "#00ff00"),))])
def test_table_comes_back(tmp_path: Path, name: str, table: ClassTable) -> None:
    path = tmp_path / name
    write_classes(path, table)
    assert read_classes(path) == table
    assert [f.name for f in tmp_path.iterdir()] == [name]


def test_value_and_name_are_enough(tmp_path: Path) -> None:
    path = tmp_path / "hand.csv"
    path.write_text("value,name\n1,gland\n2,stroma\n")
    table = read_classes(path)
    assert table.names == ("gland", "stroma")
    assert len({item.color for item in table.classes}) == 2
    path = tmp_path / "hand.yaml"
    path.write_text("classes:\n- {value: 4, name: gland}\nbackground: 4\n")
    assert read_classes(path).background == 4


@pytest.mark.parametrize(("name", "text"), [
    ("a.csv", ""), ("a.csv", "value,name\n"), ("a.csv", "name\nx\n"), ("a.csv", "value\nx\n"),
    ("a.csv", "value,meaning\n1,nothing\n"), ("a.csv", "value,name\n1,a\n1,b\n"),
    ("a.yaml", "3"), ("a.yaml", "classes: [1]"), ("a.yaml", "classes: [{name: a}]"),
    ("a.yaml", "{"), ("a.yaml", "classes: [{value: 1, color: red}]"),
])
def test_broken_files_are_refused_in_a_sentence(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(SourceError, match="holds no class table"):
        read_classes(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.csv or \.yaml"):
        write_classes(tmp_path / "classes.txt", TABLE)
    with pytest.raises(SourceError, match="does not exist"):
        read_classes(tmp_path / "none.csv")
