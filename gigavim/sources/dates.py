"""When an image was taken: as its product, its file's tags or its name say."""

from __future__ import annotations

import re
from datetime import date
from pathlib import PurePath

from gigavim.errors import SourceError
from gigavim.sources.source import Source

_IN_NAME = re.compile(r"(?<!\d)((?:19|20)\d\d)([-_.]?)(\d\d)\2(\d\d)(?!\d)")


def date_of(source: Source) -> date | None:
    """Return the day on which an image was taken; None where nothing says it.

    Asked are, in this order: the metadata of a product; ``ACQUISITIONDATETIME`` of GDAL's
    IMAGERY domain; the first date in the name of the file or folder; the ``DateTime`` tag of a
    TIFF, which software may also set to the day on which it wrote the file.
    """
    told = parse_date(source.metadata.get("sensed", ""))
    if told is not None:
        return told
    taken, written = _tags(source) if source.reader == "rasterio" else ("", "")
    in_name = date_in_name(PurePath(source.path.rstrip("/")).name)
    return parse_date(taken) or in_name or parse_date(written)


def date_in_name(name: str) -> date | None:
    """Return the first date in a name, year first; None where there is none.

    >>> date_in_name("S2A_MSIL2A_20221005T115411_N0400_R023_T29UNU.SAFE")
    datetime.date(2022, 10, 5)
    >>> date_in_name("LC08_L1TP_224078_20200518_20200601_01_RT.TIF")
    datetime.date(2020, 5, 18)
    """
    for year, _, month, day in _IN_NAME.findall(name):
        try:
            return date(int(year), int(month), int(day))
        except ValueError:
            continue
    return None


def parse_date(text: str) -> date | None:
    """Return the day at the beginning of a time, in ISO 8601 or as TIFF writes it.

    >>> parse_date("2022:10:05 11:54:11")
    datetime.date(2022, 10, 5)
    """
    try:
        return date.fromisoformat(text[:10].replace(":", "-"))
    except ValueError:
        return None


def _tags(source: Source) -> tuple[str, str]:
    """Return what a raster says of when it was taken, and of when it was written."""
    from gigavim.sources.raster_source import open_dataset

    try:
        with open_dataset(source.path) as dataset:
            taken = dataset.tags(ns="IMAGERY").get("ACQUISITIONDATETIME", "")
            return taken, dataset.tags().get("TIFFTAG_DATETIME", "")
    except SourceError:
        # A folder of files, of which each may have its own.
        return "", ""
