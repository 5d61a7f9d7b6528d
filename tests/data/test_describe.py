"""What ``info`` says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from napari_muvit.data.describe import describe, readable_bytes
from napari_muvit.errors import InputError


def test_values() -> None:
    info = describe([np.zeros((301, 400), np.uint16), np.zeros((150, 200), np.uint16)],
                    levels=(1, 2, 3, 8))
    assert (info.axes, info.shape, info.dtype) == ("cyx", (1, 301, 400), "uint16")
    assert info.nbytes == 2 * (301 * 400 + 150 * 200)
    assert info.arrays[1].factor == (301 / 150, 2.0)
    assert [(row.level, row.array) for row in info.levels] == [(1, "0"), (2, "1"), (3, "0"),
                                                               (8, "1")]
    assert info.levels[1].how == "read directly"
    assert info.levels[2].how == "averaged over 3 x 3 px"
    json.dumps(info.to_dict())


def test_text_names_everything() -> None:
    text = str(describe([np.zeros((301, 400), np.uint16), np.zeros((150, 200), np.uint16)],
                        levels=(1, 8)))
    for part in ("y=301 x=400", "uint16", "2.00667 x 2", "0.503333 x 0.5", "unknown",
                 "averaged over 4 x 4 px", "293.8 KiB"):
        assert part in text, text


def test_slides(real_data: Path) -> None:
    text = str(describe(real_data / "slides" / "dapi_section.ndpi", levels=(1, 8, 32)))
    for part in ("TIFF (NDPI), RGB", "y=4864 x=3968 c=3", "0.228175 x 0.228175", "3.4 MiB on disk",
                 "series 0 level 3  averaged over 4 x 4 px"):
        assert part in text, text


def test_time_points_are_mentioned(real_data: Path) -> None:
    info = describe(real_data / "slides" / "artificial_4d.ome.tiff")
    assert "time point 0 of 7" in str(info)
    assert info.stored_shape == (7, 5, 167, 439)


def test_slow_levels_are_noted(tmp_path: Path) -> None:
    from napari_muvit.data.omezarr import create_pyramid

    create_pyramid(tmp_path / "a.zarr", shape=(20_000, 20_000), axes="yx", levels=(1, 64),
                   dtype="uint8")
    notes = describe(tmp_path / "a.zarr", levels=(1, 4, 16, 32, 64)).notes
    assert len(notes) == 1
    assert "level 16, 32 are slow" in notes[0]
    assert notes[0].endswith("--levels 1 16 32")
    assert not describe(np.zeros((100, 100)), levels=(1, 32)).notes


def test_levels_are_checked() -> None:
    with pytest.raises(InputError, match="ascending"):
        describe(np.zeros((8, 8)), levels=(8, 1))


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"),
                                             (3 * 2**40, "3.0 TiB"), (2**60, "1048576.0 TiB")])
def test_bytes_for_people(count: int, text: str) -> None:
    assert readable_bytes(count) == text
