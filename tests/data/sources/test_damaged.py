"""Damaged, foreign and malicious sources: a sentence that names the file, the key, the remedy."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from source_makers import ngff_04, ngff_05, pyramidal_tiff, tiff

from napari_muvit.data.memory import shared_cache
from napari_muvit.data.pyramid import open_pyramid
from napari_muvit.errors import InputError, MuvitError, SourceError, SourceNotFoundError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def use(source: Any) -> None:
    """Open a source and read a little of it at two levels."""
    pyramid = open_pyramid(source)
    center = [n / 2 for n in pyramid.spatial_shape]
    pyramid.crop(center=center, levels=(1, 4), size=16)


def refusal(source: Any) -> str:
    """The one sentence with which a source is refused."""
    with pytest.raises(SourceError) as caught:
        use(source)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith((".", "git lfs pull", ".ome.zarr"))
    return text


class TestWhatIsNotThere:
    def test_a_missing_path_names_the_nearest(self, tmp_path: Path) -> None:
        (tmp_path / "section.ome.zarr").mkdir()
        with pytest.raises(SourceNotFoundError, match=r"Did you mean .*section\.ome\.zarr"):
            open_pyramid(tmp_path / "sektion.ome.zarr")
        with pytest.raises(FileNotFoundError):
            open_pyramid("/no/such/image.tif")

    def test_a_folder_that_is_no_store(self, tmp_path: Path) -> None:
        (tmp_path / "photo.txt").write_text("hello")
        assert "zarr.json or .zattrs" in refusal(tmp_path)

    def test_a_folder_of_images_lists_them(self, tmp_path: Path) -> None:
        ngff_05(tmp_path)
        (tmp_path / "b.svs").touch()
        (tmp_path / "notes.txt").touch()
        text = refusal(tmp_path)
        assert "2 images, none itself: b.svs, image.ome.zarr" in text
        assert str(tmp_path / "b.svs") in text

    @pytest.mark.parametrize("source", ["", " "])
    def test_nothing(self, source: str) -> None:
        with pytest.raises(InputError, match="empty"):
            open_pyramid(source)

    @pytest.mark.parametrize("source", ["http://", "s3:///a.zarr"])
    def test_addresses_without_a_server(self, source: str) -> None:
        assert f"{source} names no server" in refusal(source)

    @pytest.mark.parametrize(("name", "advice"), [
        ("a.npz", ".npy"), ("a.csv", "Name one image"), ("a.docx", "bioformats2raw")])
    def test_what_to_do_instead(self, tmp_path: Path, name: str, advice: str) -> None:
        (tmp_path / name).write_bytes(b"x")
        assert advice in refusal(tmp_path / name)

    @pytest.mark.parametrize("suffix", [".mrxs", ".czi", ".vsi"])
    def test_vendors_files_name_the_converter(self, tmp_path: Path, suffix: str) -> None:
        file = tmp_path / f"slide{suffix}"
        file.write_bytes(b"x")
        assert f"bioformats2raw {file} slide.ome.zarr" in refusal(file)
        # also before it exists: the kind is what is wrong
        assert "bioformats2raw" in refusal(f"https://example.org/slide{suffix}")

    def test_unknown_files(self, tmp_path: Path) -> None:
        file = tmp_path / "thesis.docx"
        file.write_bytes(b"x")
        assert ".docx" in refusal(file)

    @pytest.mark.parametrize("source", [None, 7, {"a": 1}, [], ["a.png", "b.png"], object()])
    def test_things_that_are_no_source(self, source: Any) -> None:
        with pytest.raises(InputError, match="no image source"):
            open_pyramid(source)

    @pytest.mark.parametrize("array", [
        np.zeros(5), np.zeros((2, 3, 4, 5, 6, 7)), np.zeros((0, 5)), np.array([["a", "b"]]),
        np.zeros((4, 4), complex)])
    def test_arrays_that_are_no_image(self, array: Any) -> None:
        with pytest.raises(MuvitError):
            open_pyramid(array)

    def test_nothing_listens(self) -> None:
        pytest.importorskip("aiohttp")
        assert "127.0.0.1:9" in refusal("http://127.0.0.1:9/image.ome.zarr")
        assert "127.0.0.1:9" in refusal("http://127.0.0.1:9/image.tif")


class TestDamagedFiles:
    @pytest.mark.parametrize("name", ["slide.ome.tif", "x.tif", "x.svs", "x.png", "x.jpg", "x.npy"])
    @pytest.mark.parametrize("content", [b"", b"II*\0", b"\x89PNG\r\n\x1a\n", POINTER, b"\xff\xd8",
                                         b"\x93NUMPY", b"MM\0*\xff\xff\xff\xff", b"noise" * 100])
    def test_no_image_at_all(self, tmp_path: Path, name: str, content: bytes) -> None:
        file = tmp_path / name
        file.write_bytes(content)
        text = refusal(file)
        assert str(file) in text
        if content == POINTER:
            assert "git lfs pull" in text

    @pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.99])
    @pytest.mark.parametrize("make", [tiff, pyramidal_tiff])
    def test_tiffs_that_were_cut_short(
        self, tmp_path: Path, make: Callable[[Path], Path], share: float
    ) -> None:
        file = make(tmp_path)
        content = file.read_bytes()
        file.write_bytes(content[:int(len(content) * share)])
        assert str(file) in refusal(file)

    def test_a_picture_that_was_cut_short(self, tmp_path: Path) -> None:
        from source_makers import png

        file = Path(png(tmp_path))
        content = file.read_bytes()
        for share in (0.1, 0.5, 0.95):
            file.write_bytes(content[:int(len(content) * share)])
            assert str(file) in refusal(file)

    @pytest.mark.parametrize("make", [ngff_04, ngff_05])
    @pytest.mark.parametrize("damage", ["cut", "noise", "pointer", "empty"])
    def test_chunks(self, tmp_path: Path, make: Callable[[Path], Path], damage: str) -> None:
        shared_cache.clear()
        root = Path(make(tmp_path))
        for file in root.rglob("*"):
            if file.is_file() and "." not in file.name:
                content = file.read_bytes()
                file.write_bytes({
                    "cut": content[:len(content) // 2], "empty": b"", "pointer": POINTER,
                    "noise": np.random.default_rng(0).bytes(len(content)),
                }[damage])
        text = refusal(root)
        assert str(root) in text
        assert ("git lfs pull" in text) == (damage == "pointer")

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", POINTER,
                                         b"[" * 100_000])
    @pytest.mark.parametrize(
        "name", ["zarr.json", "0/zarr.json", ".zattrs", ".zgroup", "0/.zarray"])
    def test_metadata_files(self, tmp_path: Path, name: str, content: bytes) -> None:
        root = Path(ngff_05(tmp_path) if "zarr.json" in name else ngff_04(tmp_path))
        (root / name).write_bytes(content)
        assert root.name in refusal(root)

    def test_chunks_that_would_fill_the_memory(self, tmp_path: Path) -> None:
        root = Path(ngff_05(tmp_path))
        file = root / "0" / "zarr.json"
        found = json.loads(file.read_text())
        found["shape"] = [3, 10**6, 10**6]
        found["chunk_grid"]["configuration"]["chunk_shape"] = [3, 10**6, 10**6]
        file.write_text(json.dumps(found))
        assert "chunks" in refusal(root)


class TestSeveralImages:
    def test_a_plate_lists_its_images(self, real_data: Path) -> None:
        text = refusal(real_data / "stores" / "examples" / "valid" / "plate-01.zarr")
        assert "A/1/0, A/2/0, B/1/0, B/2/0" in text
        assert "image='A/1/0', on the command line --image A/1/0" in text

    def test_choosing_one(self, real_data: Path) -> None:
        plate = real_data / "stores" / "examples" / "valid" / "plate-01.zarr"
        by_name = open_pyramid(plate, image="B/1/0")
        by_number = open_pyramid(plate, image=2)
        by_path = open_pyramid(plate / "B" / "1" / "0")
        assert by_name.shape == by_number.shape == by_path.shape
        with pytest.raises(SourceError, match=r"Did you mean 'B/1/0'"):
            open_pyramid(plate, image="B/1/00")

    def test_arrays_that_are_no_pyramid_are_listed(self, tmp_path: Path) -> None:
        import zarr

        group = zarr.create_group(tmp_path / "g.zarr")
        group.create_array("image", data=np.zeros((3, 20, 20), np.uint8))
        group.create_array("mask", data=np.zeros((20, 20), bool))
        text = refusal(tmp_path / "g.zarr")
        assert "image (3, 20, 20) uint8, mask (20, 20) bool" in text
        assert open_pyramid(tmp_path / "g.zarr" / "mask").shape == (1, 20, 20)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**12) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner,
                                                              max_size=3),
    max_leaves=5,
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON tree."""
    found = [path] if path else []
    rows = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(
        tree, list) else ()
    for key, value in rows:
        found += places(value, (*path, key))
    return found


def changed(tree: Any, place: tuple[Any, ...], value: Any, remove: bool) -> Any:
    tree = copy.deepcopy(tree)
    node = tree
    for key in place[:-1]:
        node = node[key]
    if remove:
        del node[place[-1]]
    else:
        node[place[-1]] = value
    return tree


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    names = {"0.4": ngff_04, "0.5": ngff_05}
    return {k: Path(make(tmp_path_factory.mktemp("fuzz"))) for k, make in names.items()}


@pytest.mark.faults
class TestFuzzedMetadata:
    """Whatever the metadata say, the answer is an image or one of our sentences."""

    @pytest.mark.parametrize(("version", "name"), [
        ("0.5", "zarr.json"), ("0.5", "1/zarr.json"), ("0.4", ".zattrs"), ("0.4", "1/.zarray"),
        ("0.4", ".zgroup")])
    @settings(max_examples=60, deadline=None,
              suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_json(
        self, stores: dict[str, Path], version: str, name: str, data: st.DataObject
    ) -> None:
        file = stores[version] / name
        original = file.read_text()
        tree = json.loads(original)
        for _ in range(data.draw(st.integers(1, 2))):
            options = places(tree)
            if not options:
                break
            tree = changed(tree, data.draw(st.sampled_from(options)), data.draw(json_values),
                           data.draw(st.booleans()))
        file.write_text(json.dumps(tree))
        shared_cache.clear()
        try:
            with contextlib.suppress(MuvitError):
                use(stores[version])
        finally:
            file.write_text(original)

    @settings(max_examples=60, deadline=None,
              suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6))
    def test_bytes_of_a_slide(self, tmp_path: Path, flips: list[tuple[float, int]]) -> None:
        file = tmp_path / "slide.ome.tif"
        if not file.exists():
            shutil.copy(pyramidal_tiff(tmp_path), tmp_path / "original.tif")
        content = bytearray((tmp_path / "original.tif").read_bytes())
        for place, value in flips:
            # the head and the directories, which are at the end
            half = int(place * 600)
            content[half if half < 300 else -(half - 299)] = value
        file.write_bytes(content)
        with contextlib.suppress(MuvitError):
            use(file)
