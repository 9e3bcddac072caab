"""How much GDAL keeps of what it has decoded, in all its open files together."""

from __future__ import annotations

import os

from rasterio.env import get_gdal_config, set_gdal_config

CACHE = 128 * 2**20
"""Bytes: a row of windows of most scenes; more was no quicker."""


def bound_cache() -> None:
    """Have GDAL keep at most `CACHE`, where the user's ``GDAL_CACHEMAX`` says nothing else.

    By itself it takes a twentieth of the machine's memory, whatever a run was allowed. This holds
    for the whole process.
    """
    if "GDAL_CACHEMAX" not in os.environ:
        set_gdal_config("GDAL_CACHEMAX", CACHE)


def cache_limit() -> int:
    """Return the most bytes that GDAL keeps."""
    return int(get_gdal_config("GDAL_CACHEMAX"))
