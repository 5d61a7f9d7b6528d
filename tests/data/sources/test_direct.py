"""Reading chunk files directly gives what zarr gives, or leaves it to zarr."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from napari_muvit.data.sources.direct import MOST_CHUNKS, DirectArray, find_layout

SHAPE = (3, 70, 90)
CHUNKS = (2, 16, 32)
V3 = {
    "raw": {"compressors": None}, "blosc": {"compressors": zarr.codecs.BloscCodec()},
    "zstd": {"compressors": zarr.codecs.ZstdCodec()},
    "gzip": {"compressors": zarr.codecs.GzipCodec()},
    "sharded": {"shards": (4, 64, 64)},
    "one chunk to a shard": {"shards": CHUNKS, "compressors": zarr.codecs.ZstdCodec()},
    "index first": {"shards": {"shape": CHUNKS, "index_location": "start"}},
    "keys": {"chunk_key_encoding": {
        "name": "v2", "separator": "."}},
}
V2 = {
    "raw": {"compressors": None}, "blosc": {"compressors": numcodecs.Blosc(shuffle=2)},
    "zlib": {"compressors": numcodecs.Zlib()}, "lz4": {"compressors": numcodecs.LZ4()},
    "slashes": {"chunk_key_encoding": {"name": "v2", "separator": "/"}},
}
KINDS = [(3, name) for name in V3] + [(2, name) for name in V2]


def make(folder: Path, version: int, kind: str, dtype: str = "uint16", fill: float = 7) -> Any:
    """An array whose chunks in the middle were never written."""
    options = (V3 if version == 3 else V2)[kind]
    array = zarr.create_array(folder / "a.zarr", shape=SHAPE, chunks=CHUNKS, dtype=dtype,
                              zarr_format=version, fill_value=fill, **options)
    data = np.random.default_rng(0).integers(0, 100, SHAPE).astype(dtype)
    array[:, :20] = data[:, :20]
    array[:, 50:, 40:] = data[:, 50:, 40:]
    return zarr.open_array(folder / "a.zarr", mode="r")


@pytest.mark.parametrize(("version", "kind"), KINDS)
@settings(max_examples=15, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_same_as_zarr(tmp_path_factory: pytest.TempPathFactory, version: int, kind: str,
                      data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("direct")
    array = make(folder, version, kind, data.draw(st.sampled_from(["uint8", ">u2", "float32"])))
    layout = find_layout(folder / "a.zarr", array)
    assert layout is not None
    direct = DirectArray(array, layout)
    for _ in range(3):
        index: list[Any] = []
        for size in SHAPE:
            start = data.draw(st.integers(0, size - 1))
            index.append(slice(start, data.draw(st.integers(start + 1, size))))
        if data.draw(st.booleans()):
            index[0] = index[0].start
        found = direct[tuple(index)]
        expected = array[tuple(index)]
        np.testing.assert_array_equal(found, expected)
        assert found.shape == expected.shape


@pytest.mark.parametrize(("version", "kind"), KINDS)
def test_small_reads_bypass_zarr_and_large_ones_do_not(
    tmp_path: Path, version: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = make(tmp_path, version, kind)
    layout = find_layout(tmp_path / "a.zarr", array)
    assert layout is not None
    direct = DirectArray(array, layout)
    assert np.prod(np.ceil(np.divide(SHAPE, CHUNKS))) > MOST_CHUNKS

    def refuse(*_args: Any) -> Any:
        raise OSError("zarr was asked")

    monkeypatch.setattr(zarr.Array, "__getitem__", refuse)
    assert direct[0:1, 0:16, 0:16].shape == (1, 16, 16)
    with pytest.raises(OSError, match="zarr was asked"):
        direct[0:3, 0:70, 0:90]


@pytest.mark.parametrize(("version", "options"), [
    (2, {"order": "F"}), (2, {"filters": [numcodecs.Delta("uint16")]}),
    (2, {"compressors": numcodecs.BZ2()}),
    (3, {"filters": zarr.codecs.TransposeCodec(order=(0, 2, 1))}),
    (3, {"compressors": [zarr.codecs.GzipCodec(), zarr.codecs.ZstdCodec()]}),
])
def test_the_unusual_is_left_to_zarr(tmp_path: Path, version: int, options: Any) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", shape=SHAPE, chunks=CHUNKS, dtype="uint16",
                              zarr_format=version, **options)
    assert find_layout(tmp_path / "a.zarr", array) is None


def test_a_chunk_of_another_length_is_an_error(tmp_path: Path) -> None:
    array = make(tmp_path, 3, "blosc", "uint8")
    layout = find_layout(tmp_path / "a.zarr", array)
    assert layout is not None
    file = layout.file((0, 0, 0))
    other = numcodecs.Blosc().encode(np.zeros(17, np.uint8))
    # a header that asks for 3 GiB must not be believed
    for content in (other, other[:4] + (3 * 2**30).to_bytes(4, "little") + other[8:], b"", b"x"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="bytes"):
            DirectArray(array, layout)[0:1, 0:5, 0:5]
