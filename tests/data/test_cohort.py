"""Cohort CSVs."""

from __future__ import annotations

from pathlib import Path

import pytest

from napari_muvit.data.cohort import (
    CohortRow,
    is_cohort,
    read_cohort,
    resolve_images,
    write_cohort,
)
from napari_muvit.errors import InputError, SourceError, SourceNotFoundError


def write(folder, text, encoding="utf-8"):
    path = folder / "cohort.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_rows_are_read_whatever_spreadsheet_wrote_them(tmp_path, separator, encoding):
    lines = ["Image,labels,split,group", "a.zarr,a_labels.zarr,train,1", "b.zarr,,VAL,2", ",,,",
             '"/data/c.zarr",,,']
    path = write(tmp_path, "\r\n".join(lines).replace(",", separator), encoding)
    rows = read_cohort(path)
    assert rows[0] == CohortRow(
        str(tmp_path / "a.zarr"), str(tmp_path / "a_labels.zarr"), "train", "1"
    )
    assert (rows[1].labels, rows[1].split) == (None, "val")
    assert rows[2].image.endswith("c.zarr")
    assert len(rows) == 3


def test_urls_stay_as_they_are(tmp_path):
    path = write(tmp_path, "image\nhttps://a.org/b.zarr\ns3://bucket/c.zarr\n")
    assert [row.image for row in read_cohort(path)] == [
        "https://a.org/b.zarr", "s3://bucket/c.zarr",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image,lables\na,b\n", "Did you mean 'labels'"),
        ("labels\na\n", "needs image"),
        ("", "needs image"),
        ("image,split\na,trian\n", "line 2.*Did you mean 'train'"),
        ("image,labels\n,b\n", "line 2.*image is missing"),
        ("image\na,b\n", "more values than columns"),
        ("image,split\n", "no rows"),
        ("image,split\na,train\na,val\n", "in train and in val"),
    ],
)
def test_mistakes_are_named(tmp_path, text, words):
    with pytest.raises(InputError, match=words):
        read_cohort(write(tmp_path, text))


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(SourceNotFoundError, match="no cohort file"):
        read_cohort(tmp_path / "none.csv")
    path = tmp_path / "x.csv"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(SourceError, match="UTF-8"):
        read_cohort(path)


def test_written_cohorts_are_read_back(tmp_path):
    rows = (
        CohortRow(str(tmp_path / "a, b.zarr"), str(tmp_path / "l.zarr"), "val", "g"),
        CohortRow("https://a.org/c.zarr"),
    )
    write_cohort(tmp_path / "out.csv", rows)
    assert "l.zarr" in (tmp_path / "out.csv").read_text()
    assert str(tmp_path) not in (tmp_path / "out.csv").read_text()
    assert read_cohort(tmp_path / "out.csv") == rows


def test_images_and_labels_are_paired(tmp_path):
    assert resolve_images(["a", "b"], ["c", "d"])[1] == CohortRow("b", "d", "train", None)
    assert resolve_images(["a"])[0].labels is None
    path = write(tmp_path, "image\na\n")
    assert is_cohort(path)
    assert len(resolve_images([str(path)])) == 1
    with pytest.raises(InputError, match="2 images are given with 1 labels"):
        resolve_images(["a", "b"], ["c"])
    with pytest.raises(InputError, match="column labels"):
        resolve_images([str(path)], ["c"])
    with pytest.raises(InputError, match="one cohort alone"):
        resolve_images([str(path), "b"])


def test_paths_outside_the_folder_are_found_again(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").touch()
    monkeypatch.chdir(tmp_path)
    table = tmp_path / "tables" / "images.csv"
    table.parent.mkdir()
    rows = [CohortRow("elsewhere/a.png", None), CohortRow("https://server/b.zarr", None)]
    write_cohort(table, rows)
    found = [row.image for row in read_cohort(table)]
    assert Path(found[0]) == tmp_path / "elsewhere" / "a.png"
    assert found[1] == "https://server/b.zarr"
