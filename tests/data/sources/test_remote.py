"""The same contract over http and S3, each from a real server on this computer."""

from __future__ import annotations

import logging
import multiprocessing
import re
import socket
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from source_makers import (
    SHAPE,
    bioformats2raw,
    ngff_04,
    ngff_05,
    ngff_05_sharded,
    picture,
    png,
    pyramidal_tiff,
)
from test_contract import PyramidContract

from napari_muvit.data.convert import convert
from napari_muvit.data.describe import describe
from napari_muvit.data.pyramid import Pyramid, open_pyramid
from napari_muvit.data.sources import remote
from napari_muvit.errors import SourceError, SourceNotFoundError

pytest.importorskip("aiohttp", reason="needs napari-muvit[remote]")

MAKERS = (ngff_04, ngff_05, ngff_05_sharded, bioformats2raw, pyramidal_tiff, png)
OLD_CONNECTIONS: list[Any] = []
"""A connection that is dropped while it is open complains."""


class QuietHandler(SimpleHTTPRequestHandler):
    """Python's own server, which knows no ranges, with ranges as every other server has them."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        file = Path(self.translate_path(self.path))
        if asked is None or not file.is_file():
            super().do_GET()
            return
        content = file.read_bytes()
        first, last = asked.groups()
        begin = int(first) if first else len(content) - int(last)
        end = min(int(last) + 1, len(content)) if first and last else len(content)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        self.wfile.write(content[begin:end])


class UnlistedBucket(QuietHandler):
    """What a public bucket is that nobody may list: what is not there is denied."""

    def send_error(self, code: int, *_args: Any, **_kwargs: Any) -> None:
        super().send_error(403 if code == 404 else code)

    def list_directory(self, _path: Any) -> None:
        self.send_error(403)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder with one source of each kind, and their paths in it."""
    folder = tmp_path_factory.mktemp("served")
    paths = {}
    for make in MAKERS:
        (folder / make.__name__).mkdir()
        made = Path(make(folder / make.__name__))
        paths[make.__name__] = made.relative_to(folder).as_posix()
    return folder, paths


@pytest.fixture(scope="module")
def http(served: tuple[Path, dict[str, str]]) -> Iterator[str]:
    with _running(partial(QuietHandler, directory=str(served[0]))) as address:
        yield address


class _running:
    """A web server for as long as the block runs; its address."""

    def __init__(self, handler: Any) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(scope="module")
def s3_address() -> Iterator[str]:
    moto = pytest.importorskip("moto.server", reason="needs moto[s3] and flask")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nobody is logged in, and no service of a cloud computer is asked for keys."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    remote.has_s3_login.cache_clear()
    yield
    remote.has_s3_login.cache_clear()


@pytest.fixture
def login(no_login: None, monkeypatch: pytest.MonkeyPatch, s3_address: str) -> None:
    """The environment variables by which people log in to an S3 service."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_address)


def _forget_connections() -> None:
    import s3fs

    OLD_CONNECTIONS.extend(s3fs.S3FileSystem._cache.values())
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def filled(s3_address: str, served: tuple[Path, dict[str, str]]) -> str:
    """A bucket that holds everything."""
    import s3fs

    for name, rule in (("images", "public-read"), ("private", "private")):
        bucket = s3fs.S3FileSystem(
            key="a", secret="b", endpoint_url=s3_address, s3_additional_kwargs={"ACL": rule})
        bucket.mkdir(name, acl=rule)
        bucket.put(f"{served[0]}/", f"{name}/", recursive=True)
    return "s3://images"


class TestHttp(PyramidContract):
    @pytest.fixture(params=["ngff_04", "ngff_05_sharded", "pyramidal_tiff"])
    def kind(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def sources(self, http: str, served: tuple[Path, dict[str, str]]) -> dict[str, Any]:
        return {kind: f"{http}/{path}" for kind, path in served[1].items()}

    @pytest.fixture
    def pyramid(self, kind: str, sources: dict[str, Any]) -> Pyramid:
        return open_pyramid(sources[kind])


class TestS3(PyramidContract):
    @pytest.fixture(params=["ngff_04", "ngff_05_sharded", "pyramidal_tiff", "png"])
    def kind(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def sources(
        self, filled: str, served: tuple[Path, dict[str, str]], login: None
    ) -> dict[str, Any]:
        return {kind: f"{filled}/{path}" for kind, path in served[1].items()}

    @pytest.fixture
    def pyramid(self, kind: str, sources: dict[str, Any]) -> Pyramid:
        return open_pyramid(sources[kind])

    def test_images_inside_are_found(self, sources: dict[str, Any]) -> None:
        assert open_pyramid(sources["bioformats2raw"]).shape == SHAPE

    def test_other_processes_open_it_too(self, sources: dict[str, Any]) -> None:
        pyramid = open_pyramid(sources["ngff_05_sharded"])
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            part = pool.apply(pyramid.read, (0, (31, 90), (40, 13)))
            pool.close()
            pool.join()
        np.testing.assert_array_equal(part, picture()[:, 31:71, 90:103])


@pytest.mark.usefixtures("login")
class TestS3AsPeopleUseIt:
    def test_info_and_convert(
        self, filled: str, served: tuple[Path, dict[str, str]], tmp_path: Path
    ) -> None:
        source = f"{filled}/{served[1]['ngff_04']}"
        info = describe(source)
        assert (info.kind, info.shape) == ("OME-Zarr 0.4", SHAPE)
        assert source in info.to_dict()["source"]
        list(convert(source, tmp_path / "copy.ome.zarr", levels=(1, 2), chunk=64))
        np.testing.assert_array_equal(
            open_pyramid(tmp_path / "copy.ome.zarr").read(0, (0, 0), SHAPE[1:]), picture())

    @pytest.mark.parametrize("name", ["nothing.ome.zarr", "nothing.tif", "nothing.png"])
    def test_what_is_not_there(self, filled: str, name: str) -> None:
        for url in (f"{filled}/{name}", f"s3://nobody-has-this/{name}"):
            with pytest.raises(SourceNotFoundError) as caught:
                open_pyramid(url)
            assert url in str(caught.value)


@pytest.mark.usefixtures("no_login")
class TestS3WithoutLogin:
    def test_public_buckets_need_none(
        self, filled: str, served: tuple[Path, dict[str, str]], s3_address: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3_address)
        _forget_connections()
        for name in ("ngff_05", "pyramidal_tiff", "png"):
            pyramid = open_pyramid(f"{filled}/{served[1][name]}")
            np.testing.assert_array_equal(pyramid.read(0, (3, 4), (5, 6)),
                                          picture()[:, 3:8, 4:10])

    def test_buckets_that_nobody_may_list(
        self, served: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder, paths = served
        with _running(partial(UnlistedBucket, directory=str(folder.parent))) as address:
            monkeypatch.setenv("AWS_ENDPOINT_URL", address)
            _forget_connections()
            for name in ("ngff_04", "ngff_05"):
                pyramid = open_pyramid(f"s3://{folder.name}/{paths[name]}")
                np.testing.assert_array_equal(pyramid.read(0, (3, 4), (5, 6)),
                                              picture()[:, 3:8, 4:10])
            for name in ("nothing.ome.zarr", "nothing.tif"):
                with pytest.raises(SourceError, match=r"AWS_ACCESS_KEY_ID"):
                    open_pyramid(f"s3://{folder.name}/{name}")

    def test_private_buckets_ask_for_the_login(
        self, filled: str, served: tuple[Path, dict[str, str]], s3_address: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3_address)
        _forget_connections()
        for name in ("ngff_05", "pyramidal_tiff", "png"):
            with pytest.raises(SourceError, match=r"AWS_ACCESS_KEY_ID"):
                open_pyramid(f"s3://private/{served[1][name]}")

    def test_settings_of_fsspec_win(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from fsspec.config import conf

        assert remote.storage_options("s3://images/a.zarr") == {"anon": True}
        monkeypatch.setitem(conf, "s3", {"profile": "lab"})
        assert remote.storage_options("s3://images/a.zarr") == {}


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "READ_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"http://127.0.0.1:{mute.getsockname()[1]}"
        for name in ("image.ome.zarr", "image.tif", "image.png"):
            with pytest.raises(SourceError, match=r"Timeout.*Check the address"):
                open_pyramid(f"{address}/{name}")


def test_what_the_web_does_not_have(http: str) -> None:
    for name in ("nothing.ome.zarr", "nothing.tif", "nothing.png"):
        with pytest.raises(SourceNotFoundError) as caught:
            open_pyramid(f"{http}/{name}")
        assert f"{http}/{name}" in str(caught.value)


def test_unknown_protocols_are_named() -> None:
    with pytest.raises(SourceError, match="gopher"):
        open_pyramid("gopher://host/image.ome.zarr")


def test_addresses_of_files_are_paths(tmp_path: Path) -> None:
    file = Path(png(tmp_path))
    assert open_pyramid(file.as_uri()).source == str(file)
