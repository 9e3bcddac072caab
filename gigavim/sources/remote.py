"""Rasters that lie elsewhere: how GDAL reaches them, and how long it waits.

Whoever sets one of these options in the environment keeps it.
"""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import rasterio
from rasterio.errors import RasterioError

from gigavim.errors import SourceError

TIMEOUT_S = 30
"""For one answer of a server."""

OPTIONS = {
    "GDAL_HTTP_TIMEOUT": str(TIMEOUT_S),
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_MAX_RETRY": "2",
    "GDAL_HTTP_RETRY_DELAY": "1",
    # A server would be asked for a list of all that lies beside the file.
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_HTTP_MULTIPLEX": "YES",
    "VSI_CACHE": "TRUE",
}

VIRTUAL = ("/vsicurl", "/vsis3", "/vsigs", "/vsiaz", "/vsiadls", "/vsioss", "/vsiswift")

NETWORK_FAULT = re.compile(
    r"curl|timed? ?out|http (error|response)|response_code|resolve|connect|network", re.IGNORECASE
)


def is_remote(path: str) -> bool:
    """Whether a path is an address, or one of GDAL's virtual file systems of a network.

    >>> is_remote("s3://bucket/scene.tif"), is_remote("scene.tif")
    (True, False)
    """
    return re.match(r"[a-z][a-z0-9+]+://", path) is not None or path.startswith(VIRTUAL)


def network(paths: tuple[str, ...]) -> AbstractContextManager[object]:
    """Return GDAL's options for reading from a network, where any of the paths lies there."""
    if not any(is_remote(path) for path in paths):
        return nullcontext()
    env: AbstractContextManager[object] = rasterio.Env(
        **{key: value for key, value in OPTIONS.items() if key not in os.environ}
    )
    return env


@contextmanager
def reaching(path: str) -> Iterator[None]:
    """Tell a fault of the network from one of the file.

    Raises
    ------
    SourceError
        In place of what is raised inside, where a server is away or has no such file.
    """
    try:
        yield
    except (RasterioError, SourceError) as fault:
        told = fault if fault.__cause__ is None else fault.__cause__
        text = " ".join(str(told).split()).rstrip(".")
        # The address itself says http.
        words = re.sub(r"\S*(://|/vsi)\S*", "", text)
        if not is_remote(path) or not NETWORK_FAULT.search(words):
            raise
        raise SourceError(
            f"{path} could not be reached ({text}); check the address and the network, "
            "or wait longer with GDAL_HTTP_TIMEOUT"
        ) from fault


def fetch(url: str) -> bytes:
    """Return what lies at an address.

    Raises
    ------
    SourceError
        If the server does not answer in time, or says no.
    """
    wait_s = float(os.environ.get("GDAL_HTTP_TIMEOUT", TIMEOUT_S))
    try:
        with urllib.request.urlopen(url, timeout=wait_s) as answer:
            content: bytes = answer.read()
            return content
    except (OSError, ValueError, urllib.error.URLError) as error:
        raise SourceError(
            f"{url} could not be reached ({error}); check the address and the network, "
            "or wait longer with GDAL_HTTP_TIMEOUT"
        ) from error
