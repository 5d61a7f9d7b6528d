"""Pretrained models from a server on this computer: archives, a hub, and what goes wrong."""

from __future__ import annotations

import hashlib
import http.server
import io
import shutil
import tarfile
import threading
import zipfile

import pytest
import torch

from napari_muvit.errors import ConfigError
from napari_muvit.models.checkpoint import ModelMeta, load_model, save_model
from napari_muvit.models.encoder import Encoder
from napari_muvit.training import RunFolder, find_model, start_finetune
from napari_muvit.training.fetch import fetch_model, is_address, parse_address


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A tiny saved encoder."""
    torch.manual_seed(0)
    model = Encoder(in_channels=1, levels=(1, 2), dim=48, num_layers=2, heads=2, patch_size=4)
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(folder, model, ModelMeta(kind="encoder", crop_size=(16, 16)))
    return folder


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *args, asked, **kwargs):
        self.asked = asked
        super().__init__(*args, **kwargs)

    def do_GET(self):
        self.asked.append((self.path, self.headers.get("Authorization")))
        if "/secret/" in self.path:
            self.send_error(401)
        elif "/short/" in self.path:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x" * 10)
        else:
            super().do_GET()

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A served folder, its URL, and the list of what was asked for; with an empty cache."""
    root, asked = tmp_path / "served", []
    root.mkdir()
    monkeypatch.setenv("NAPARI_MUVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *args: _Quiet(*args, asked=asked, directory=str(root)))
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", url)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield root, url, asked
    server.shutdown()
    thread.join()
    server.server_close()


def pack(path, folder, inner=""):
    """Write the files of `folder` as an archive at `path`; its sha256."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in folder.iterdir():
                archive.write(file, inner + file.name)
    else:
        with tarfile.open(path, "w:gz") as archive:
            for file in folder.iterdir():
                archive.add(file, inner + file.name)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def weights(folder):
    return load_model(folder).state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", ["m.zip", "m.tar.gz"])
@pytest.mark.parametrize("inner", ["", "pretrained/"])
def test_an_archive_is_fetched_once(served, model_folder, name, inner):
    root, url, asked = served
    digest = pack(root / name, model_folder, inner)
    found = fetch_model(f"{url}/{name}#sha256={digest}")
    assert same(weights(found), weights(model_folder))
    (root / name).unlink()
    assert fetch_model(f"{url}/{name}") == found
    assert len(asked) == 1


@pytest.mark.parametrize(("address", "place"), [
    ("hf://lab/net", "lab/net/resolve/main"),
    ("hf://lab/net/deep/down@v1.0", "lab/net/resolve/v1.0/deep/down"),
    ("hf://lab/net@refs/pr/1", "lab/net/resolve/refs/pr/1"),
])
def test_a_hub_repository_is_fetched(served, model_folder, address, place, monkeypatch):
    root, _, asked = served
    monkeypatch.setenv("HF_TOKEN", "word")
    shutil.copytree(model_folder, root / place)
    digest = hashlib.sha256((model_folder / "model.safetensors").read_bytes()).hexdigest()
    found = fetch_model(f"{address}#sha256={digest}")
    assert same(weights(found), weights(model_folder))
    assert {token for _, token in asked} == {"Bearer word"}
    with pytest.raises(ConfigError, match="should have the sha256"):
        fetch_model(f"{address}#sha256={'0' * 64}")


def test_an_official_folder_on_the_hub_has_other_weights(served):
    root, _, _ = served
    folder = root / "lab/net/resolve/main"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("dim: 48\n")
    (folder / "model.pth").write_bytes(b"abc")
    assert (fetch_model("hf://lab/net") / "model.pth").read_bytes() == b"abc"


def test_the_token_goes_to_the_hub_alone(served, model_folder, monkeypatch):
    root, url, asked = served
    monkeypatch.setenv("HF_TOKEN", "word")
    pack(root / "m.zip", model_folder)
    fetch_model(f"{url}/m.zip")
    assert asked == [("/m.zip", None)]


def test_a_fetched_model_starts_a_run(served, model_folder, finetune_options):
    root, url, _ = served
    pack(root / "m.zip", model_folder)
    for name in ("dim", "heads", "num_layers", "patch_size"):
        del finetune_options[name]
    options = {**finetune_options, "pretrained": f"{url}/m.zip", "steps": 1,
               "freeze_encoder": True}
    run = start_finetune(options)
    run.wait()
    assert RunFolder(run.folder).config().pretrained == f"{url}/m.zip"
    encoder = load_model(find_model(run.folder)).encoder
    assert same(encoder.state_dict(), weights(model_folder))


def test_what_goes_wrong_is_said_and_leaves_nothing(served, model_folder, tmp_path):
    root, url, _ = served
    pack(root / "m.zip", model_folder)
    (root / "text.zip").write_text("no archive")
    with zipfile.ZipFile(root / "empty.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    for address, words in {
        f"{url}/absent.zip": "404",
        "hf://lab/absent": "404",
        "hf://secret/net": "401.*HF_TOKEN",
        f"{url}/short/m.zip": "broke off after 10 of 1000|10 bytes read",
        f"{url}/text.zip": "no zip or tar archive",
        f"{url}/empty.zip": "no model folder",
        f"{url}/m.zip#sha256={'0' * 64}": "sha256 0{64}; the archive there has",
        "http://127.0.0.1:9/m.zip": "cannot be reached",
    }.items():
        with pytest.raises(ConfigError, match=words) as caught:
            fetch_model(address)
        assert caught.value.field == "pretrained"
    assert not any((tmp_path / "cache" / "models").iterdir())


def test_a_cache_that_cannot_be_written_is_named(served, model_folder, tmp_path, monkeypatch):
    root, url, _ = served
    pack(root / "m.zip", model_folder)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NAPARI_MUVIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="Set NAPARI_MUVIT_CACHE"):
        fetch_model(f"{url}/m.zip")


@pytest.mark.parametrize("name", ["../out.txt", "/out.txt", "a/../../out.txt", "..\\out.txt",
                                  "C:/out.txt"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_paths_that_leave_the_folder_are_refused(served, tmp_path, name, kind):
    root, url, _ = served
    if kind == "zip":
        with zipfile.ZipFile(root / "m.zip", "w") as archive:
            archive.writestr(name, "x")
    else:
        with tarfile.open(root / "m.tar", "w") as archive:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(ConfigError, match="leaves its folder"):
        fetch_model(f"{url}/m.{kind}")
    assert not list(tmp_path.rglob("out.txt"))


def test_links_in_archives_are_left_out(served, model_folder):
    root, url, _ = served
    with tarfile.open(root / "m.tar", "w") as archive:
        for file in model_folder.iterdir():
            archive.add(file, file.name)
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
    assert not (fetch_model(f"{url}/m.tar") / "link").is_symlink()


def test_addresses_are_told_from_folders():
    assert [is_address(text) for text in (
        "hf://a/b", "https://x/y.zip", "HTTP://x/y", "C:\\runs\\a", "runs/hf", "/a/b")] == [
            True, True, True, False, False, False]
    for wrong in ("hf://alone", "hf://a/../b", "https://x/y.zip#md5=1", "hf://a/b#sha256=12"):
        with pytest.raises(ConfigError, match="Correct it"):
            parse_address(wrong)
