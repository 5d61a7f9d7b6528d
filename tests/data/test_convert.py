"""Conversion: same pixels, exact places, goes on where it stopped, bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_muvit.data import convert as convert_room
from napari_muvit.data.convert import LOG_NAME, ConvertEvent, convert
from napari_muvit.data.omezarr import create_pyramid
from napari_muvit.data.pyramid import open_pyramid, pyramid_from_arrays
from napari_muvit.errors import InputError, LockedError, RunExistsError, SourceNotFoundError

NOISE = np.random.default_rng(3).integers(0, 256, (3, 150, 210)).astype(np.uint8)


@pytest.mark.parametrize(("fmt", "shard"), [("0.4", None), ("0.5", None), ("0.5", 64)])
def test_pixels_metadata_and_events(tmp_path: Path, fmt: str, shard: int | None) -> None:
    source = pyramid_from_arrays([NOISE], axes="cyx", pixel_size=(0.5, 0.25), name="slide",
                                 channel_names=["a", "b", "c"])
    out = tmp_path / "out.ome.zarr"
    events = list(convert(source, out, levels=(1, 2, 6), chunk=32, shard=shard, fmt=fmt))
    assert events[0].done == 0
    assert events[-1] == ConvertEvent(events[-1].total, events[-1].total, 0.0)
    assert [event.done for event in events[:-1]] == list(range(events[-1].total + 1))
    pyramid = open_pyramid(out)
    assert (pyramid.name, pyramid.kind) == ("slide", f"OME-Zarr {fmt}")
    assert pyramid.pixel_size == ((0.5, 0.25), (1.0, 0.5), (3.0, 1.5))
    assert pyramid.factors == ((1.0, 1.0), (2.0, 2.0), (6.0, 6.0))
    assert pyramid.channel_names == ("a", "b", "c")
    np.testing.assert_array_equal(pyramid.read(0, (0, 0), (150, 210)), NOISE)
    np.testing.assert_array_equal(pyramid.read(1, (0, 0), (75, 105)), source.level_image(2))
    assert not (out / LOG_NAME).exists()


def test_interrupted_conversions_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_muvit.data.convert.BLOCK_BYTES", 1)
    whole, part = tmp_path / "whole.zarr", tmp_path / "part.zarr"
    total = list(convert(NOISE, whole, chunk=32))[-1].total
    job = convert(NOISE, part, chunk=32, workers=1)
    for event in job:
        if event.done == total // 2:
            break
    job.close()  # type: ignore[attr-defined]
    rows = [json.loads(line) for line in (part / LOG_NAME).read_text().splitlines()]
    assert len(rows) == 1 + total // 2
    # a line that was cut short by a crash does not count
    with (part / LOG_NAME).open("a") as log:
        log.write('{"array": 0, "bl')
    job = convert(NOISE, part, chunk=32, workers=1)
    for event in job:
        if event.done == total // 2 + 3:
            break
    job.close()  # type: ignore[attr-defined]
    events = list(convert(NOISE, part, chunk=32, workers=1))
    assert events[1].done == total // 2 + 4
    for index in range(4):
        a, b = open_pyramid(whole), open_pyramid(part)
        np.testing.assert_array_equal(a.read(index, (0, 0), a.shapes[index]),
                                      b.read(index, (0, 0), b.shapes[index]))


def test_one_process_writes_an_output(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.zarr"
    first, second = convert(NOISE, out, chunk=32), convert(NOISE, out, chunk=32)
    next(first)
    with pytest.raises(LockedError, match="open for writing"):
        list(second)
    late = convert(NOISE, out, chunk=32)
    list(first)
    with pytest.raises(RunExistsError, match="holds something already"):
        list(late)
    assert [path.name for path in out.parent.iterdir()] == ["out.zarr"]
    np.testing.assert_array_equal(open_pyramid(out).read(0, (0, 0), (150, 210)), NOISE)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    list(convert(NOISE, out))
    with pytest.raises(RunExistsError, match="holds something already"):
        convert(NOISE, out)
    other = tmp_path / "other.zarr"
    job = convert(NOISE, other, chunk=32)
    next(job)
    job.close()  # type: ignore[attr-defined]
    with pytest.raises(RunExistsError, match="unfinished conversion of something else"):
        convert(NOISE, other, chunk=64)
    with pytest.raises(RunExistsError, match="something else"):
        convert(255 - NOISE, other, chunk=32)
    list(convert(NOISE, other, chunk=32))


def test_mistakes_are_told_at_the_call(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError):
        convert(tmp_path / "none.tif", tmp_path / "out.zarr")
    with pytest.raises(InputError, match="ascending"):
        convert(NOISE, tmp_path / "out.zarr", levels=(4, 1))
    with pytest.raises(InputError, match="workers"):
        convert(NOISE, tmp_path / "out.zarr", workers=0)
    with pytest.raises(InputError, match="address"):
        convert(NOISE, "s3://bucket/out.zarr")
    with pytest.raises(InputError, match="multiple of chunk"):
        convert(NOISE, tmp_path / "out.zarr", chunk=64, shard=100)
    assert not (tmp_path / "out.zarr").exists()


def test_labels_take_the_majority(tmp_path: Path) -> None:
    labels = np.zeros((64, 64), np.uint8)
    labels[:, 31:] = 4
    list(convert(labels, tmp_path / "labels.zarr", levels=(1, 4), as_labels=True))
    pyramid = open_pyramid(tmp_path / "labels.zarr")
    assert pyramid.is_labels
    assert pyramid.stored_axes == "yx"
    assert set(np.unique(pyramid.read(1, (0, 0), (16, 16)))) == {0, 4}


def test_all_time_points_and_planes(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).integers(0, 99, (2, 3, 4, 40, 50)).astype(np.uint16)
    list(convert(volume, tmp_path / "v.zarr", levels=(1, 2), chunk=16))
    for t in (0, 1):
        pyramid = open_pyramid(tmp_path / "v.zarr", t=t)
        assert pyramid.shape == (3, 4, 40, 50)
        np.testing.assert_array_equal(pyramid.read(0, (0, 0, 0), (4, 40, 50)), volume[t])
    list(convert(volume, tmp_path / "one.zarr", levels=(1,), t=1, z=2, channels=[1], chunk=16))
    one = open_pyramid(tmp_path / "one.zarr")
    np.testing.assert_array_equal(one.read(0, (0, 0), (40, 50))[0], volume[1, 1, 2])
    list(convert(volume[0], tmp_path / "z.zarr", levels=(1, 2), scaled_axes=("z", "y", "x"),
                 chunk=16))
    assert open_pyramid(tmp_path / "z.zarr").factors[1] == (2.0, 2.0, 2.0)


def test_levels_that_start_above_one(tmp_path: Path) -> None:
    list(convert(NOISE, tmp_path / "half.zarr", levels=(2, 4), chunk=32))
    pyramid = open_pyramid(tmp_path / "half.zarr")
    np.testing.assert_array_equal(
        pyramid.read(0, (0, 0), (75, 105)), open_pyramid(NOISE).level_image(2))
    assert pyramid.spacing == (2.0, 2.0)
    assert pyramid.origin == (0.5, 0.5)


def test_slides(tmp_path: Path, real_data: Path) -> None:
    source = open_pyramid(real_data / "slides" / "cmu_small_region.svs")
    list(convert(source, tmp_path / "slide.ome.zarr", levels=(1, 4)))
    pyramid = open_pyramid(tmp_path / "slide.ome.zarr")
    assert pyramid.is_rgb
    assert pyramid.pixel_size is not None
    assert pyramid.pixel_size[0] == pytest.approx((0.499, 0.499))
    np.testing.assert_array_equal(pyramid.read(0, (1000, 900), (300, 300)),
                                  source.read(0, (1000, 900), (300, 300)))


MEASURE = r"""
import re, sys
from napari_muvit.data.convert import convert
for event in convert(sys.argv[1], sys.argv[2]):
    pass
print(int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) // 1024)
"""


def _mebibytes(source: Any, output: Path) -> int:
    """Largest memory of a process that converts."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the largest memory of a process is read from /proc, which Linux has")
    done = subprocess.run([sys.executable, "-c", MEASURE, str(source), str(output)],
                          capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_memory_of_a_slide(tmp_path: Path, real_data: Path) -> None:
    source = real_data / "slides" / "dapi_section.ndpi"
    assert _mebibytes(source, tmp_path / "out.zarr") < 400


@pytest.mark.slow
def test_memory_of_a_gigapixel_image(tmp_path: Path) -> None:
    source = tmp_path / "big.zarr"
    arrays = create_pyramid(source, shape=(3, 40_000, 40_000), axes="cyx", levels=1,
                            dtype="uint8", channel_names=["red", "green", "blue"])
    arrays[0][:, 20_000:24_000, :8000] = 77
    assert _mebibytes(source, tmp_path / "out.zarr") < 1024


def test_a_conversion_that_was_killed_before_its_first_block_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.ome.zarr"
    pixels = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    create = convert_room.create_pyramid

    def create_and_die(*given: Any, **options: Any) -> Any:
        create(*given, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(convert_room, "create_pyramid", create_and_die)
    with pytest.raises(KeyboardInterrupt):
        list(convert(pixels, output, levels=(1, 2)))
    monkeypatch.undo()
    output.mkdir(exist_ok=True)  # an empty folder is free, too
    list(convert(pixels, output, levels=(1, 2)))
    np.testing.assert_array_equal(open_pyramid(str(output)).read(0, (0, 0), (64, 64))[0], pixels)
    assert [path.name for path in tmp_path.iterdir()] == ["out.ome.zarr"]
