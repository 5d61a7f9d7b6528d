"""Paths and URLs: what lies on this computer and what is fetched through fsspec."""

from __future__ import annotations

import functools
import re
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from napari_muvit.errors import MuvitError, SourceError, SourceNotFoundError, require_extra

_URL = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+://")
WEB = ("http", "https")
S3_LOGIN = "a private bucket needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs"}

CONNECT_SECONDS, READ_SECONDS = 15.0, 60.0
"""How long a web server may stay silent before the source counts as unreadable."""


def is_url(source: str) -> bool:
    """Whether `source` is a URL; Windows drives such as ``C:\\`` are not."""
    return bool(_URL.match(source))


def local_path(source: str) -> str:
    """`source`, or the path that it names on this computer by ``file://``."""
    if not source.lower().startswith("file://"):
        return source
    return url2pathname(urlsplit(source).path)


def check_protocol(url: str) -> None:
    """Refuse an address without a host, or a protocol whose package is missing."""
    import importlib.util

    if _protocol(url) in _PACKAGES and not urlsplit(url).netloc:
        raise SourceError(f"{url} names no server or bucket. Pass the whole address.", url)
    package = _PACKAGES.get(_protocol(url))
    for name in ("fsspec", package):
        if name is not None and importlib.util.find_spec(name) is None:
            raise require_extra(name, "remote", f"Reading {url}")


def url_suffix(url: str) -> str:
    """The lower-case suffix of a URL's path, without query or fragment."""
    path = re.split(r"[?#]", url, maxsplit=1)[0].rstrip("/")
    name = path.rsplit("/", 1)[-1]
    return "." + name.rsplit(".", 1)[-1].lower() if "." in name else ""


def storage_options(url: str) -> dict[str, Any]:
    """What fsspec needs to know for a URL; its own configuration and environment win.

    Public buckets are read without a login where nobody is logged in, and web servers that
    never answer are given up.
    """
    from fsspec.config import conf

    protocol = _protocol(url)
    if conf.get(protocol):
        return {}
    if protocol in WEB:
        import aiohttp

        timeout = aiohttp.ClientTimeout(sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
        return {"client_kwargs": {"timeout": timeout}}
    return {"anon": True} if protocol == "s3" and not has_s3_login() else {}


@functools.cache
def has_s3_login() -> bool:
    """Whether keys for S3 are found where Amazon's tools look for them: environment, files."""
    from botocore.session import get_session  # type: ignore[import-untyped]  # s3fs brings it

    return get_session().get_credentials() is not None


def open_store_url(url: str) -> Any:
    """A read-only zarr store behind a URL."""
    from zarr.storage import FsspecStore

    options = storage_options(url)
    absent: tuple[type[Exception], ...] = (
        FileNotFoundError, IsADirectoryError, NotADirectoryError)
    if options.get("anon"):
        # a bucket that nobody may list denies what it does not have
        absent = (*absent, PermissionError)
    return FsspecStore.from_url(
        url, storage_options=options, read_only=True, allowed_exceptions=absent)


def open_url(url: str) -> Any:
    """An open file behind a URL, read in parts.

    Raises
    ------
    SourceNotFoundError, SourceError
    """
    import fsspec

    check_protocol(url)
    try:
        return fsspec.open(url, "rb", **storage_options(url)).open()
    except MuvitError:
        raise
    except FileNotFoundError as error:
        cause = error.__cause__
        if isinstance(cause, Exception) and _protocol(url) in WEB and getattr(
                cause, "status", 0) != 404 and not isinstance(cause, FileNotFoundError):
            # fsspec calls whatever goes wrong on the web a file that is not there
            raise remote_error(url, cause) from error
        raise not_there(url) from error
    except Exception as error:
        raise remote_error(url, error) from error


def not_there(url: str) -> SourceNotFoundError:
    """The error of a URL that has no image; a login may be what is missing."""
    is_anonymous = _protocol(url) == "s3" and storage_options(url).get("anon")
    login = f"; nobody is logged in, and {S3_LOGIN}" if is_anonymous else ""
    return SourceNotFoundError(f"{url} does not exist. Check the address{login}.", url)


def remote_error(url: str, error: Exception) -> SourceError:
    """What went wrong on the way to a URL, and the remedy."""
    if _protocol(url) == "s3":
        remedy = (f"Check bucket and path; {S3_LOGIN}, another S3 service than Amazon's "
                  "AWS_ENDPOINT_URL.")
    else:
        remedy = "Check the address, the network and whether you need to log in."
    text = " ".join(str(error).split())[:200]
    kind = type(error).__name__
    return SourceError(
        f"{url} cannot be read ({kind}{': ' if text else ''}{text}). {remedy}", url)


def _protocol(url: str) -> str:
    return url.split("://", 1)[0].lower()
