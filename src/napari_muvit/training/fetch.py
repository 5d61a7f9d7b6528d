"""Pretrained models from elsewhere: a Hugging Face repository, or an archive at a URL.

What was fetched stays in a cache folder and is never fetched again. Nothing in it is run:
model folders are plain YAML and tensors.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import sys
import tarfile
import urllib.error
import urllib.request
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from napari_muvit.errors import ConfigError
from napari_muvit.training.files import write_whole
from napari_muvit.training.folder import FACTS

CHUNK = 1 << 20
TIMEOUT = 30.0
"""Seconds that a server may stay silent."""

WEIGHTS = ("model.safetensors", "model.pth")
"""Files of weights in a model folder: ours, then the official project's."""

MARKS = ("config.yaml", "rdf.yaml", FACTS)
"""Files by which a model folder, a bioimage.io package and a run folder are known."""

CHECKSUM = "sha256"
"""File beside a fetched model that holds its checksum."""

_HUB = re.compile(r"hf://([^/@#]+/[^/@#]+)((?:/[^/@#]+)*)/?(?:@([^#]+))?")


@dataclass(frozen=True)
class Address:
    """Where a model lies, taken apart.

    Attributes
    ----------
    place
        The address without its checksum.
    sha256
        Wanted checksum in hexadecimal: of the archive, or of the repository's weights file.
    hub
        Base URL of the model's files in a Hugging Face repository; None for an archive.
    """

    place: str
    sha256: str | None = None
    hub: str | None = None


def is_address(pretrained: str) -> bool:
    """Whether `pretrained` is fetched rather than a folder of this computer."""
    scheme, mark, _ = pretrained.partition("://")
    return bool(mark) and scheme.lower() in {"hf", "http", "https"}


def parse_address(given: str) -> Address:
    """An address ``hf://owner/name[/subfolder][@revision]`` or of an archive, taken apart.

    Either may end in ``#sha256=...``.

    Raises
    ------
    ConfigError
        If it is neither.
    """
    place, _, fragment = given.partition("#")
    key, _, digest = fragment.partition("=")
    if fragment and (key != "sha256" or not re.fullmatch(r"[0-9a-fA-F]{64}", digest)):
        raise _problem(given, f"ends in {'#' + fragment!r}; a checksum is #sha256= and 64 "
                       "hexadecimal digits. Correct it or leave it out")
    checksum = digest.lower() or None
    if not place.lower().startswith("hf://"):
        return Address(place, checksum)
    found = _HUB.fullmatch(place)
    if found is None or ".." in place.split("/"):
        raise _problem(given, "is no Hugging Face address; these are "
                       "hf://owner/name[/subfolder][@revision]. Correct it")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    repository, subfolder, revision = found.groups()
    return Address(place, checksum,
                   f"{endpoint}/{repository}/resolve/{revision or 'main'}{subfolder}")


def cache_folder() -> Path:
    """Where fetched models stay: ``NAPARI_MUVIT_CACHE``, else the user's cache folder."""
    own = os.environ.get("NAPARI_MUVIT_CACHE")
    if own:
        return Path(own)
    home = Path.home()
    usual = {"win32": home / "AppData" / "Local", "darwin": home / "Library" / "Caches"}
    base = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    return (Path(base) if base else usual.get(sys.platform, home / ".cache")) / "napari-muvit"


def fetch_model(pretrained: str) -> Path:
    """The local folder of the model at an address, fetched if it is not in the cache.

    Raises
    ------
    ConfigError
        If it cannot be reached or kept, is not there, is no model, or has another checksum.
    """
    address = parse_address(pretrained)
    key = hashlib.sha256(f"{address.hub} {address.place}".encode()).hexdigest()[:20]
    kept = cache_folder() / "models" / key
    try:
        if not (kept / CHECKSUM).is_file():
            _fetch_into(address, kept)
        found = (kept / CHECKSUM).read_text(encoding="ascii")
    except OSError as error:
        raise _problem(address.place, f"cannot be kept in {str(kept.parent)!r}: "
                       f"{error.strerror or error}. Set NAPARI_MUVIT_CACHE to a folder that you "
                       "may write, with room for it") from error
    _check_sum(address, found, f"what was fetched before; delete {str(kept)!r} to fetch again")
    return model_root(kept / "model", address.place)


def _fetch_into(address: Address, kept: Path) -> None:
    """Fetch a model beside its place, then move it there: it is whole or absent."""
    beside = kept.with_name(f".{kept.name}.{uuid.uuid4().hex}")
    (beside / "model").mkdir(parents=True)
    try:
        if address.hub is None:
            archive = beside / "archive"
            digest = _download(address.place, archive, address.place)
            _check_sum(address, digest, "the archive there")
            unpack(archive, beside / "model", address.place)
            archive.unlink()
        else:
            digest = _fetch_files(address, address.hub, beside / "model")
            _check_sum(address, digest, "the weights there")
        model_root(beside / "model", address.place)
        write_whole(beside / CHECKSUM, digest.encode("ascii"))
        with suppress(OSError):  # another process was faster, and its copy is as good
            beside.rename(kept)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _fetch_files(address: Address, base: str, folder: Path) -> str:
    """The files of a model folder in a repository; checksum of its weights."""
    _download(f"{base}/config.yaml", folder / "config.yaml", address.place)
    *others, last = WEIGHTS
    for name in others:
        with suppress(_MissingError):
            return _download(f"{base}/{name}", folder / name, address.place)
    return _download(f"{base}/{last}", folder / last, address.place)


def _download(url: str, path: Path, place: str) -> str:
    """Write what is at `url` to `path`; its sha256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for chunk in _read_url(url, place):
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


class _MissingError(ConfigError):
    """The server has no such file."""


def _read_url(url: str, place: str) -> Iterator[bytes]:
    """The bytes at `url`; what a network does wrong becomes a sentence."""
    request = urllib.request.Request(url, headers={"User-Agent": "napari-muvit"})
    token = os.environ.get("HF_TOKEN")
    if token and place.startswith("hf://"):
        # Not sent on to where the answer redirects.
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    num_bytes = 0
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            expected = int(answer.headers.get("Content-Length") or -1)
            while chunk := answer.read(CHUNK):
                num_bytes += len(chunk)
                yield chunk
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise _MissingError(
                f"pretrained is {place!r}: the server has no {url!r} (404). Correct the address.",
                field="pretrained") from None
        advice = ("Set HF_TOKEN if the repository is private, or correct the name"
                  if error.code in {401, 403} else "Try again later")
        raise _problem(place, f"was refused by the server ({error.code} {error.reason}). {advice}"
                       ) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise _problem(place, f"cannot be reached: {reason}. Check the address and the network, "
                       "or download it elsewhere and pass its folder") from error
    if num_bytes < expected:
        raise _problem(place, f"broke off after {num_bytes} of {expected} bytes. Try again")


def _check_sum(address: Address, found: str, what: str) -> None:
    if address.sha256 is not None and address.sha256 != found:
        raise _problem(address.place, f"should have the sha256 {address.sha256}; {what} has "
                       f"{found}. Correct the checksum, or do not trust the file")


def unpack(archive: Path, folder: Path, place: str) -> None:
    """Extract the files of a zip or tar archive into `folder`, and nothing outside it.

    Raises
    ------
    ConfigError
        If it is no such archive, is damaged, or holds a path that leaves the folder.
    """
    members = _zip_members if zipfile.is_zipfile(archive) else _tar_members
    try:
        for name, content in members(archive):
            target = folder.joinpath(*_inner_parts(name, place))
            target.parent.mkdir(parents=True, exist_ok=True)
            with content, target.open("wb") as file:
                shutil.copyfileobj(content, file, CHUNK)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError,
            NotImplementedError) as error:
        raise _problem(place, f"is no zip or tar archive that can be read ({error}). Pass the "
                       "address of an archive of a model folder") from error


def _inner_parts(name: str, place: str) -> tuple[str, ...]:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or name[:1] in "/\\" or ".." in parts or any(":" in part for part in parts):
        raise _problem(place, f"holds {name!r}, a path that leaves its folder. Do not trust it")
    return parts


def _zip_members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            is_link = (member.external_attr >> 16) & 0o170000 == 0o120000
            if not (member.is_dir() or is_link):
                yield member.filename, opened.open(member)


def _tar_members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with tarfile.open(archive) as opened:
        for member in opened:
            content = opened.extractfile(member) if member.isfile() else None
            if content is not None:
                yield member.name, content


def model_root(folder: Path, place: str) -> Path:
    """The model or run folder in what was fetched: `folder`, or the only folder inside.

    Raises
    ------
    ConfigError
        If there is none.
    """
    inner = [folder, *(path for path in sorted(folder.iterdir()) if path.is_dir())]
    for path in inner[:1] if len(inner) > 2 else inner:
        if any((path / name).is_file() for name in (*MARKS, *WEIGHTS)):
            return path
    raise _problem(place, f"holds no model folder (with {MARKS[0]} and {WEIGHTS[0]}). Pass the "
                   "address of a repository or archive of one")


def _problem(place: str, text: str) -> ConfigError:
    return ConfigError(f"pretrained is {place!r}, which {text}.", field="pretrained")
