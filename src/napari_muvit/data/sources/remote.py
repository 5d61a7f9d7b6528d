"""Paths and URLs: what lies on this computer and what is fetched through fsspec."""

from __future__ import annotations

import re

from napari_muvit.errors import require_extra

_URL = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+://")
_PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs"}


def is_url(source: str) -> bool:
    """Whether `source` is a URL; Windows drives such as ``C:\\`` are not."""
    return bool(_URL.match(source))


def check_protocol(url: str) -> None:
    """Raise the error that names the pip command where a protocol's package is missing."""
    import importlib.util

    package = _PACKAGES.get(url.split("://", 1)[0].lower())
    for name in ("fsspec", package):
        if name is not None and importlib.util.find_spec(name) is None:
            raise require_extra(name, "remote", f"Reading {url}")


def url_suffix(url: str) -> str:
    """The lower-case suffix of a URL's path, without query or fragment."""
    path = re.split(r"[?#]", url, maxsplit=1)[0].rstrip("/")
    name = path.rsplit("/", 1)[-1]
    return "." + name.rsplit(".", 1)[-1].lower() if "." in name else ""
